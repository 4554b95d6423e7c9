"""The disk refuses every durable write, or all of the journal's, for a while, from any boundary on, and is well again.

Which error it says makes no difference to whoever writes; so each boundary meets one of them, in turns.

Nothing fires before its event is durable: each switch script looks for that itself. The end is that of an undisturbed
run; or, where the refusal hit what a switch needs before it may be fired (its record, its way back, its guard), the
release has failed for exactly that reason and the host is back where it was. An agent that can't open its journal at
the start ends with 1, and is started again as an init system would.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from nixfleet_agent.state_machine import State
from tests.faults.ending import STILL_PENDING, Ending
from tests.faults.rig import Problem, Rig
from tests.faults.runs import KEPT, Key, Outcome, Runs, of_its_own, spread
from tests.faults.stories import STORIES

QUICK = 2
SECONDS = 0.5
#: Story -> its release.
RELEASES = {"forward": "good", "rollback": "sick", "failed-switch": "broken", "deferred": "kernel"}
CODES = (errno.ENOSPC, errno.EIO, errno.EROFS)
#: Letting go of roots is not tried again before the next release or start; nor is the removal of a decided Dispatch,
#: which the next start knows for a repeat.
LOOSE = frozenset({"roots"})
JOURNAL = "outbound-"
OVER = (State.CONVERGED, State.REVERTED)


def failing_everywhere(runs: Runs, story: str, codes: Sequence[int], only: str = "") -> Outcome:
    return runs.each(_tries(runs, story, codes, only))


def _tries(runs: Runs, story: str, codes: Sequence[int], only: str) -> Iterator[Callable[[], Outcome]]:
    for boot in runs.baseline(story).traces:
        keys = [key for key in of_its_own(runs, story, boot) if only in key[0]]
        for at, code in zip(spread(keys, QUICK) if runs.quick else keys, itertools.cycle(codes), strict=False):
            yield partial(_failing, runs, story, code, boot, at, only)


def _failing(runs: Runs, story: str, code: int, boot: int, at: Key, only: str = "") -> Outcome:
    release, outcome = RELEASES[story], Outcome(tries=1)
    what = f"{story}, {errno.errorcode[code]} in boot {boot} from {at[0]} ({at[1]}) on"
    plan = {"action": "error", "at": at[0], "occurrence": at[1], "code": code, "seconds": SECONDS, "only": only}
    rig = runs.rig(story, {boot: plan})
    rig.forked = True
    rig.tolerated |= {1}
    tails: list[str] = []

    def tell(rig: Rig) -> None:
        _to_the_end(rig, release)
        tails.extend(event["stderrTail"] for event in rig.events(release) if event["kind"] == "ActivationFailed")

    try:
        finished = runs.finish(rig, tell)
    except Problem as problem:
        outcome.problems.append(f"{what}: {problem} [{KEPT / rig.folder.name}]")
        return outcome
    found = STORIES[story].differences(runs.baseline(story).ending, finished.ending, LOOSE)
    if found and _gave_up(finished.ending, tails, code):
        outcome.notes.append(f"{what}: the release was given up: {tails[0]}")
        found = []
    outcome.problems += [f"{what}: {line}" for line in [*found, *finished.flaws] if line != STILL_PENDING]
    return outcome


def _to_the_end(rig: Rig, release: str) -> None:
    rig.publish(release)
    rig.start()
    rig.until(lambda: rig.state(release) in (*OVER, State.DEFERRED), "the end, or a deferral")
    if rig.state(release) is State.DEFERRED:
        rig.until_delivered()
        rig.reboot()
        rig.until(lambda: rig.state(release) in OVER, "the end")


def _gave_up(ending: Ending, tails: list[str], code: int) -> bool:
    """The host is where it was, and the reason is the disk's own."""
    back = (ending.runs, ending.profile, ending.boots) == ("v0", "v0", "v0")
    return back and set(ending.states.values()) == {"Reverted"} and any(os.strerror(code) in tail for tail in tails)


ITEMS: dict[str, Callable[[Runs], Outcome]] = {
    f"disk-{story}": partial(failing_everywhere, story=story, codes=CODES) for story in RELEASES
}
#: Only the journal's disk fails: whoever does not wait for it gets to fire.
ITEMS |= {f"journal-{story}": partial(failing_everywhere, story=story, codes=CODES, only=JOURNAL) for story in RELEASES}
