"""Minutes of random faults over random releases on one host, from a seed that is printed; checked after each release.

After each: what runs, the state, every seq once and the same on both sides, no child left. Of a process that lived
through many: as many threads and descriptors as before, and memory that does not grow.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nixfleet_agent.local_cp.server import Response
from nixfleet_agent.state_machine import State
from tests.faults.ending import MILESTONES, journal_events
from tests.faults.rig import HOSTNAME, Problem, Rig, end_all, processes_of, rollout_id
from tests.faults.runs import KEPT, Outcome, Runs, keep

GOOD, BAD = ("good", "next", "slow"), ("sick", "broken", "absent")
OVER = (State.CONVERGED, State.REVERTED)
#: A young process still grows into its caches; from this release of its life on it may not, but for this much.
GROWN_UP, GROWTH_KIB = 6, 6 * 1024


@dataclass(slots=True)
class Life:
    """What one process of the agent was seen to use, release by release: (threads, descriptors, RSS in KiB)."""

    pid: int
    seen: list[tuple[int, int, int]] = field(default_factory=list)

    def look(self) -> None:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if ":" in line
        )
        rss = int(status["VmRSS"].split()[0])
        self.seen.append((int(status["Threads"]), len(os.listdir(f"/proc/{self.pid}/fd")), rss))

    def growth(self) -> list[str]:
        """What has grown since the process was grown up."""
        if len(self.seen) <= GROWN_UP:
            return []
        threads, descriptors, rss = self.seen[GROWN_UP - 1]
        last = self.seen[-1]
        found = []
        # Connections come and go: two more or less say nothing.
        if last[0] > threads + 2 or last[1] > descriptors + 4:
            found.append(f"threads {threads} -> {last[0]}, descriptors {descriptors} -> {last[1]}")
        if last[2] - rss > GROWTH_KIB:
            found.append(f"RSS {rss} -> {last[2]} KiB in {len(self.seen) - GROWN_UP} releases")
        return found


class Soak:
    """One host's long life."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig = rig
        self.chance = random.Random(seed)
        self.releases = 0
        self.life: Life | None = None

    def round(self) -> None:
        """One release, and a fault or none (Problem: it did not end as it should)."""
        rig, self.releases = self.rig, self.releases + 1
        before = rig.world.name_of(rig.host.running())
        closure = self.chance.choice([name for name in (*GOOD, *BAD) if name != before])
        name = f"r{self.releases}"
        fault = self.chance.choice(FAULTS)
        what = f"release {self.releases} ({closure} over {before}, {fault.__name__})"
        rig.control_plane.control.store.run("DELETE FROM quarantine")
        rig.publish(name, closure=closure)
        try:
            fault(self)
            rig.until(lambda: rig.state(name) in OVER, f"the end of {what}")
            rig.until_delivered()
            self._check(name, closure, before)
        except Problem as problem:
            raise Problem(f"{what}: {problem}") from problem
        self._measure()

    def _check(self, name: str, closure: str, before: str) -> None:
        rig, key = self.rig, rollout_id(name)
        good = closure in GOOD
        expected = (State.CONVERGED, closure) if good else (State.REVERTED, before)
        found = (rig.state(name), rig.world.name_of(rig.host.running()))
        if found != expected:
            raise Problem(f"{found} instead of {expected}")
        there = {event["seq"]: event for event in rig.control_plane.control.store.events(HOSTNAME, key)}
        if there != journal_events(rig, key) or sorted(there) != list(range(1, len(there) + 1)):
            raise Problem(f"{len(there)} events there, {sorted(journal_events(rig, key))} here")
        kinds = [there[seq]["kind"] for seq in sorted(there) if there[seq]["kind"] in MILESTONES]
        if len(kinds) != len(set(kinds)) or rig.wire.changed():
            raise Problem(f"milestones {kinds}, changed {rig.wire.changed()}")
        rig.until(lambda: not self._children(), f"no child left: {self._children()}", 15.0)
        if lines := [line for line in rig.host.switches() if line.startswith("undurable")]:
            raise Problem(f"{lines}")

    def _children(self) -> dict[int, str]:
        """Processes of the host but for the agent and a probe that happens to run."""
        return {pid: line for pid, line in processes_of(self.rig.folder).items() if pid != self.rig.pid}

    def _measure(self) -> None:
        if self.life is None or self.life.pid != self.rig.pid:
            self.life = Life(self.rig.pid)
        self.life.look()
        if grown := self.life.growth():
            raise Problem(f"grown: {grown}")


# -- faults -----------------------------------------------------------------------------------


def nothing(soak: Soak) -> None:
    """Peace."""


def kill(soak: Soak) -> None:
    """SIGKILL at one to three random moments."""
    for _ in range(soak.chance.randint(1, 3)):
        time.sleep(soak.chance.uniform(0.0, 0.6))
        soak.rig.process.kill() if soak.rig.process is not None else None
        soak.rig.process.wait() if soak.rig.process is not None else None
        soak.rig.look_after()


def stop(soak: Soak) -> None:
    """SIGTERM, and a start."""
    time.sleep(soak.chance.uniform(0.0, 0.6))
    took = soak.rig.stop()
    if took > 2.0:
        raise Problem(f"SIGTERM took {took:.1f} s")
    soak.rig.start()


def reboot(soak: Soak) -> None:
    """The whole host, in the middle."""
    time.sleep(soak.chance.uniform(0.0, 0.6))
    soak.rig.kill()
    end_all(soak.rig.folder)
    soak.rig.reboot()


def partition(soak: Soak) -> None:
    """No network for a while."""
    for _ in range(soak.chance.randint(1, 3)):
        soak.rig.control_plane.partition(True)
        time.sleep(soak.chance.uniform(0.1, 0.8))
        soak.rig.control_plane.partition(False)
        time.sleep(soak.chance.uniform(0.1, 0.4))


def errors(soak: Soak) -> None:
    """500 to one request in three."""
    chance = soak.chance
    soak.rig.wire.misbehave = lambda request: Response(status=500) if chance.random() < 0.33 else None
    time.sleep(chance.uniform(0.3, 1.5))
    soak.rig.wire.misbehave = lambda request: None


def hangup(soak: Soak) -> None:
    """SIGHUP and SIGUSR1, for what they may disturb."""
    for number in (signal.SIGHUP, signal.SIGUSR1):
        soak.rig.until_started()
        time.sleep(soak.chance.uniform(0.0, 0.4))
        os.kill(soak.rig.pid, number)


#: Peace is likelier, so that a process also lives long enough to be measured.
FAULTS: tuple[Callable[[Soak], None], ...] = (
    *(nothing, partition, errors, hangup) * 4,
    kill,
    stop,
    reboot,
)


def soaked(runs: Runs) -> Outcome:
    """For as long as ``runs.soak_secs``; the seed is in the outcome's notes."""
    outcome = Outcome()
    rig = runs.rig("soak", agent={"quarantine_hours": 0})
    soak = Soak(rig, runs.seed)
    until = time.monotonic() + runs.soak_secs
    print(f"soak: seed {runs.seed}, {runs.soak_secs:.0f} s", flush=True)
    try:
        rig.max_starts = 1 << 30
        rig.start()
        while time.monotonic() < until:
            soak.round()
            outcome.tries += 1
        rig.stop()
    except Problem as problem:
        keep(rig)
        outcome.problems.append(f"seed {runs.seed}: {problem} [{KEPT / rig.folder.name}]")
    finally:
        last = soak.life.seen[-1] if soak.life and soak.life.seen else None
        lived = len(soak.life.seen) if soak.life else 0
        outcome.notes.append(f"seed {runs.seed}: last process {lived} releases, (threads, fds, KiB) {last}")
        rig.close()
    return outcome


ITEMS: dict[str, Callable[[Runs], Outcome]] = {"soak": soaked}
