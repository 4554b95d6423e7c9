"""What an agent costs that waits: memory, CPU and wake-ups, with the default configuration, after a whole rollout.

The rollout is real: verified, realised by Nix, switched to, probed while it soaks, converged. Then one minute of
nothing but the long poll, a tick a second, heartbeats and looks at the fleet.
"""

from __future__ import annotations

import sys
import threading

from nixfleet_agent.state_machine import State
from tests.bench import figures
from tests.bench.figures import Figure
from tests.bench.processes import cost, rss
from tests.bench.rig import Rig

SOAK_SECS = 12.0


def measure(quick: bool) -> list[Figure]:
    with Rig(soak=SOAK_SECS) as rig:
        pid = rig.start()
        threading.Event().wait(4)
        fresh = rss(pid)
        rollout = rig.release(1)
        rig.reach(rollout, State.SOAKING)
        threading.Event().wait(SOAK_SECS / 2)
        soaking = rss(pid)
        rig.reach(rollout, State.CONVERGED)
        threading.Event().wait(5)
        idle = cost([pid], 10 if quick else 60)
        peak = rss(pid, "VmHWM")
    return [
        Figure(what="RSS, just started", value=fresh, unit="MB"),
        Figure(what="RSS, soaking, two probes running", value=soaking, unit="MB", most=50),
        Figure(what="RSS, idle after a rollout", value=idle.rss, unit="MB", most=50),
        Figure(what="of it not shared with files", value=idle.anonymous, unit="MB"),
        Figure(what="RSS, highest ever", value=peak, unit="MB"),
        Figure(what="CPU, idle", value=idle.cpu, unit="% of a core", most=0.1),
        Figure(what="wake-ups, idle", value=idle.wakeups, unit="/s", most=3),
        Figure(what="threads", value=idle.threads, unit=""),
    ]


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
