"""Plans that once broke a promise, shrunk, and what was wrong: they run for ever, whatever seeds draw now."""

from __future__ import annotations

from tests.simulation.plan import Plan, Step

NAMED: dict[str, Plan] = {
    "what a deferred release left to the boot that came first was a third closure to its successor": Plan(
        seed=10,
        hosts=1,
        preempt=0.0,
        advance=3.0,
        disk_latency=0.5,
        waves=1,
        steps=(
            Step(at=5.0, kind="release:sick-units", host=-1, seconds=0.0, amount=0),
            Step(at=425.077, kind="by-hand", host=0, seconds=33.7, amount=0.672),
            Step(at=425.779, kind="release:no-boot", host=-1, seconds=0.0, amount=0),
        ),
    ),
}
