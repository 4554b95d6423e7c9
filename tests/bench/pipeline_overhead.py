"""What the pipeline adds to Nix and to the switch itself, and how soon it sees that a switch has ended.

Overhead is the time of a whole forward minus the time of the Nix calls that it makes (measured one by one in the
same run) and minus what its script takes. Bars: 100 ms of overhead (p50), and
``poll_interval`` + 50 ms from the end of a switch to its outcome (worst).
"""

from __future__ import annotations

import logging
import statistics
import sys
import threading
import time
from dataclasses import dataclass

from nixfleet_agent.activation import processes
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.model import Completed, Forward
from nixfleet_agent.activation.pipeline import Pipeline
from nixfleet_agent.threads.clock import SystemClock
from tests.bench import figures
from tests.bench.figures import Figure
from tests.support.nix import Nixery, NixHost

OVERHEAD_BAR_SECS = 0.100
SEEN_BAR_SECS = 0.050
#: Nix's part of a forward whose closure is there, to the two calls of Nix that it can't do without.
NIX_BAR = 2.0
POLL_SECS = 0.5
_LOG = logging.getLogger("bench")


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds: the forward, its children other than the switch, and from the switch's end to the outcome.

    ``bare`` is what the calls take without which no forward can be.
    """

    whole: float
    nix: float
    script: float
    seen: float
    bare: float

    @property
    def overhead(self) -> float:
        return self.whole - self.nix - self.script


def one_round(host: NixHost, number: int, target: str, prior: str) -> Round:
    """One forward in a fresh rollout; the children are timed by a spy around the function that runs them."""
    children: list[float] = []
    run = Context.run

    def timed(context: Context, *arguments: object, **keywords: object) -> processes.Finished:
        begin = time.monotonic()
        try:
            return run(context, *arguments, **keywords)  # type: ignore[arg-type]
        finally:
            children.append(time.monotonic() - begin)

    Context.run = timed  # type: ignore[method-assign, assignment]
    try:
        context = Context(
            host.activation, host.state_dir, SystemClock(), lambda: None, _wait, _LOG, base_environment=host.environment
        )
        pipeline = Pipeline(context)
        begin = time.monotonic()
        outcome = pipeline.forward(
            Forward(f"bench@{number:x}", target, prior, "rollback-and-halt"), lambda method: None
        )
        end, ended_wall = time.monotonic(), time.time()
    finally:
        Context.run = run  # type: ignore[method-assign]
    if outcome != Completed(target, 0, ()):
        raise SystemExit(f"the forward did not complete: {outcome}")
    pipeline.release(f"bench@{number:x}")
    started, stopped = (float(word) for word in host.bootloader.read_text().split())
    # The last poll may come up to one interval after the end: that is `seen`, and no overhead.
    whole, seen = end - begin - (ended_wall - stopped), ended_wall - stopped
    return Round(whole, sum(children), stopped - started, seen, bare(host, prior, target))


def bare(host: NixHost, other: str, target: str) -> float:
    """Seconds that the two calls take that nobody can do without, on the same host in the same minute."""
    profile = ("nix-env", "--profile", str(host.profile), "--set")
    host.nix(*profile, f"/nix/store/{other}")
    begin = time.monotonic()
    host.nix("nix-store", "--realise", f"/nix/store/{target}", "--add-root", str(host.root / "bare"))
    host.nix(*profile, f"/nix/store/{target}")
    return time.monotonic() - begin


def measured(rounds: int) -> list[Round]:
    """Forwards between two closures, there and back, each as its own rollout."""
    stamp = 'echo "$(date +%s.%N)"'
    script = f'{stamp} >"$SWITCH_BOOTLOADER"; flip "$self"; {stamp} >>"$SWITCH_BOOTLOADER"\n'
    with Nixery() as nixery:
        ends = [nixery.system(f"bench-{name}", script) for name in ("a", "b")]
        host = nixery.host("bench")
        host.configure(poll_interval_secs=POLL_SECS)
        for closure in reversed(ends):
            host.boot(closure)
        return [one_round(host, n, ends[n % 2], ends[(n + 1) % 2]) for n in range(1, rounds + 1)]


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def measure(quick: bool) -> list[Figure]:
    rounds = 4 if quick else 20
    found = measured(rounds)

    def p50(field: str) -> float:
        values: list[float] = [getattr(each, field) for each in found]
        return 1000 * statistics.median(values)

    return [
        Figure(
            what="activation beside Nix and the switch, p50",
            value=p50("overhead"),
            unit="ms",
            most=1000 * OVERHEAD_BAR_SECS,
            runs=rounds,
        ),
        Figure(what="the whole forward, p50", value=p50("whole"), unit="ms", runs=rounds),
        Figure(
            what="of it Nix, p50",
            value=p50("nix"),
            unit="ms",
            baseline=p50("bare"),
            against="one nix-store --realise and one nix-env --set",
            most=NIX_BAR,
            runs=rounds,
        ),
        Figure(
            what=f"end of a switch -> outcome, worst (a poll is {POLL_SECS:g} s)",
            value=1000 * max(each.seen for each in found),
            unit="ms",
            most=1000 * (POLL_SECS + SEEN_BAR_SECS),
            runs=rounds,
        ),
    ]


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
