"""The host's clock is set while a release is under way, summer comes and goes, the host sleeps: the end is the same."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from functools import partial

from nixfleet_agent.state_machine import State
from tests.faults.flapping import Fault, flapping, judged
from tests.faults.rig import Rig
from tests.faults.runs import Outcome, Runs
from tests.faults.strokes import suspend

HOUR, MONTH = 3600, 30 * 86400
OFF = {
    "clock-hour-ahead": HOUR,
    "clock-hour-behind": -HOUR,
    "clock-month-ahead": MONTH,
    "clock-month-behind": -MONTH,
}


def off_by(secs: float) -> Fault:
    """The wall clock, for a while; durations are measured on another."""

    def install(rig: Rig) -> Callable[[bool], object]:
        rig.levers.mkdir()
        return lambda on: rig.pull("clock", secs if on else 0)

    return install


#: Summer comes when the agent is up, and does not last.
SUMMER_IN_SECS, SUMMER_SECS = 2, 2


def summer_time(runs: Runs) -> Outcome:
    """Local time leaps an hour ahead, and back again, while one release after the other converges."""
    rig = runs.rig("summer-time")
    begins = time.time() + SUMMER_IN_SECS
    ends = begins + SUMMER_SECS
    moments = _moment(begins), _moment(ends + HOUR)
    rig.host.environment["TZ"] = ",".join(("WIN0SUM-1", *moments))

    def tell(rig: Rig) -> None:
        rig.start()
        for number in itertools.count(1):
            name = f"s{number}"
            rig.publish(name, closure="good" if number % 2 else "next")
            rig.until_state(name, State.CONVERGED)
            if time.time() > ends + 1:
                break

    return judged(runs, rig, tell, None, "summer time")


def _moment(reading: float) -> str:
    """As POSIX writes a change in TZ: the day of the year, from 0, and the time that local clocks show."""
    local = time.gmtime(reading)
    return f"{local.tm_yday - 1}/{local.tm_hour}:{local.tm_min:02}:{local.tm_sec:02}"


def asleep(runs: Runs) -> Outcome:
    """Stopped at random moments of a rollback, connections cut meanwhile."""
    chance = random.Random(5)
    return runs.each(partial(_asleep, runs, chance.random()) for _ in range(1 if runs.quick else 8))


def _asleep(runs: Runs, seed: float) -> Outcome:
    def tell(rig: Rig) -> None:
        rig.publish("sick")
        rig.start()
        chance = random.Random(seed)
        for _ in range(3):
            suspend(rig, chance)
        rig.until(lambda: rig.has_event("sick", "RollbackComplete"), "RollbackComplete")

    return judged(runs, runs.rig("asleep"), tell, "rollback", f"suspended, seed {seed}")


ITEMS: dict[str, Callable[[Runs], Outcome]] = {
    **{name: partial(flapping, name=name, fault=off_by(secs)) for name, secs in OFF.items()},
    "clock-summer-time": summer_time,
    "suspended": asleep,
}
