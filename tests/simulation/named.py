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
    "a release that failed as an operator's own boot entry came to life first was not released again": Plan(
        seed=20260,
        hosts=1,
        preempt=0.05,
        advance=3.0,
        disk_latency=0.5,
        waves=1,
        steps=(
            Step(at=150.414, kind="release:unbootable", host=-1, seconds=0.0, amount=0),
            Step(at=173.171, kind="release:next-boot", host=-1, seconds=0.0, amount=0),
            Step(at=387.601, kind="release:kernel", host=-1, seconds=0.0, amount=0),
            Step(at=400.513, kind="by-hand", host=0, seconds=3.986, amount=0.258),
        ),
    ),
}
