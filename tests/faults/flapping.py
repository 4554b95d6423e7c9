"""A fault that is on half of the time, from before the start of a story to its end: the end is that of no fault."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

from tests.faults.rig import Problem, Rig
from tests.faults.runs import KEPT, Outcome, Runs
from tests.faults.stories import STORIES

ON_SECS, OFF_SECS = 0.5, 0.4

#: Prepares a rig for the fault, and returns what turns it on and off.
Fault = Callable[[Rig], Callable[[bool], object]]


def flapping(runs: Runs, name: str, fault: Fault, story: str = "rollback") -> Outcome:
    """One run of a story under the fault."""
    rig = runs.rig(name)
    turn = fault(rig)
    done = threading.Event()

    def flap() -> None:
        for on in itertools.cycle((True, False)):
            turn(on)
            if done.wait(ON_SECS if on else OFF_SECS):
                turn(False)
                return

    flapper = threading.Thread(target=flap, name="flapper")

    def tell(rig: Rig) -> None:
        flapper.start()
        try:
            STORIES[story].tell(rig)
        finally:
            done.set()
            flapper.join()

    return judged(runs, rig, tell, story, name)


def judged(
    runs: Runs, rig: Rig, tell: Callable[[Rig], None], story: str | None, what: str, but: frozenset[str] = frozenset()
) -> Outcome:
    """One run: without a flaw, and with the end of the undisturbed story, if there is one."""
    outcome = Outcome(tries=1)
    try:
        finished = runs.finish(rig, tell)
    except Problem as problem:
        outcome.problems.append(f"{what}: {problem} [{KEPT / rig.folder.name}]")
        return outcome
    found = STORIES[story].differences(runs.baseline(story).ending, finished.ending, but) if story else []
    outcome.problems += [f"{what}: {line}" for line in [*found, *finished.flaws]]
    return outcome
