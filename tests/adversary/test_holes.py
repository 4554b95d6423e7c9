"""Every hole that was found, as a world and the moves that led into it; and the old rule, with which it is found.

The worlds keep what runs proven or watched with the code as it is. With the rule of old in its place each of them is
found to be broken: the model would have seen it.
"""

from __future__ import annotations

import contextlib
import logging
import unittest
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

from nixfleet_agent.activation import verify_poll
from nixfleet_agent.runtime.rollout import decisions, evaluate, succession
from nixfleet_agent.trust import resolve
from tests.adversary.explore import replayed
from tests.adversary.worlds import World, world

SOAKS = ("dispatch stable@c0", "begins", "flips", "ends with 0")
Hole = tuple[World, tuple[str, ...], Callable[[], AbstractContextManager[Any]]]


@contextlib.contextmanager
def _supervision_ends_at_acceptance() -> Iterator[None]:
    with contextlib.ExitStack() as patches:
        for module in (succession, decisions, evaluate):
            patches.enter_context(mock.patch.object(module, "predecessor", lambda host: None))
        yield


def _what_runs_is_the_way_back() -> Any:
    return mock.patch.object(decisions, "rollback_target", lambda host, current: (current, False))


def _any_end_completes() -> Any:
    return mock.patch.object(verify_poll, "DONE", frozenset(range(-1, 256)))


def _oldest_first() -> Any:
    return mock.patch.object(decisions, "watched", lambda host: tuple(reversed(succession.watched(host))))


def _debts_before_the_boot() -> Any:
    """What a boot did to a deferred release is told only after the order of the rollout in charge was given."""

    def resume(turn: Any) -> None:
        first = succession.in_charge(turn.host)
        if first is not None:
            turn._order(first, resume=True)
        turn.tick()

    return mock.patch.object(decisions.Turn, "resume", resume)


def _who_goes_on_gets_the_order() -> Any:
    """What was superseded in vain goes on with its order at once, whoever is in charge of the host."""

    def hand_back(turn: Any) -> None:
        ended, before = turn.host.active_id, succession.in_charge(turn.host)
        turn.host = succession.handed_back(turn.host, turn._moment.current)
        back = turn.host.active
        if back is not None and back.rollout_id != ended and (before is None or before is not back):
            turn._order(back, resume=True)

    return mock.patch.object(decisions.Turn, "hand_back", hand_back)


def _a_debt_goes_before_the_switch_that_runs() -> Any:
    """Whoever comes while a switch runs takes over the debt from before it."""
    takes_over = succession._takes_over_debt

    def of_old(host: Any, current: str | None) -> bool:
        brought = succession._brought(host, current)
        return takes_over(host, current) or (brought is not None and brought.record.rollback_owed)

    return mock.patch.object(succession, "_takes_over_debt", of_old)


HOLES: dict[str, Hole] = {
    "a debt waits for an order that somebody else has got": (
        world("ABAB", "rhrh"),
        (
            *("dispatch stable@c0", "by hand to A", "finds it there", "dispatch stable@c2", "dispatch edge@c3"),
            *("fails early", "reboot into P", "by hand to A"),
        ),
        _who_goes_on_gets_the_order,
    ),
    "a debt from before takes the order away from a switch that runs": (
        world("AABC", minutes=(2, 1, 2, 3)),
        (
            *("dispatch edge@c1", "begins", "dispatch stable@c2", "flips", "ends with 2", "can't go back", "begins"),
            *("dispatch edge@c3", "ends with 1"),
        ),
        _a_debt_goes_before_the_switch_that_runs,
    ),
    "a debt takes the host away from under the release that a reboot brought": (
        world("AABC", "rrrr", (2, 1, 2, 3)),
        (
            *("dispatch stable@c0", "begins", "dispatch edge@c3", "ends with 1", "can't go back", "defers"),
            *("reboot into C", "goes back"),
        ),
        _debts_before_the_boot,
    ),
    "a rollback leads onto a release that soaked and failed": (
        world("ABAB"),
        (*SOAKS, "dispatch edge@c1", "begins", "ends with 1"),
        _what_runs_is_the_way_back,
    ),
    "a rollback leads onto half a system": (
        world("ABAB"),
        ("dispatch stable@c0", "begins", "flips", "dispatch edge@c1", "ends with 0", "begins", "ends with 1"),
        _what_runs_is_the_way_back,
    ),
    "a release is nobody's while its successor fetches": (
        world("ABAB"),
        (*SOAKS, "dispatch edge@c1"),
        _supervision_ends_at_acceptance,
    ),
    "a release is nobody's while its successor waits for a reboot": (
        world("ACAB"),
        (*SOAKS, "dispatch edge@c1", "defers"),
        _supervision_ends_at_acceptance,
    ),
    "a superseded switch ends unheard": (
        world("ABAB"),
        ("dispatch stable@c0", "begins", "dispatch edge@c1", "flips", "ends with 0"),
        _supervision_ends_at_acceptance,
    ),
    "a failing release never fails, as long as it is sent again": (
        world("AABC"),
        (*SOAKS, "fails", "soon", "dispatch edge@c1", "finds it there", "fails"),
        lambda: mock.patch.object(decisions, "taken_over", lambda host, heir: None),
    ),
    "a script that failed after the flip has switched the host": (
        world("ABAB"),
        ("dispatch stable@c0", "begins", "flips", "ends with 2"),
        _any_end_completes,
    ),
    "a script that was killed after the flip has switched the host": (
        world("ABAB"),
        ("dispatch stable@c0", "begins", "flips", "ends with killed"),
        _any_end_completes,
    ),
    "a release soaks for ever after a boot into another system": (
        world("ABAB"),
        (*SOAKS, "reboot into P"),
        lambda: mock.patch.object(evaluate, "fell_back", lambda rollout, moment: False),
    ),
    "a control plane takes the host to an older release of another channel": (
        world("ABAB", minutes=(2, 1, 2, 3)),
        ("dispatch stable@c0", "dispatch edge@c1"),
        lambda: mock.patch.object(resolve, "check_order", lambda manifest, marks: None),
    ),
    "a control plane chooses between two manifests of one instant": (
        world("ABCA", minutes=(2, 1, 2, 3)),
        ("dispatch stable@c0", "dispatch stable@c2"),
        lambda: mock.patch.object(resolve, "check_order", lambda manifest, marks: None),
    ),
    "a debt is forgotten while its heir waits for a reboot": (
        world("AABC"),
        ("dispatch stable@c0", "begins", "ends with 1", "can't go back", "dispatch edge@c3", "defers"),
        lambda: mock.patch.object(succession, "_waits_for_boot", lambda rollout: False),
    ),
    "the reboot that a successor waited for is a fallback of the one before": (
        world("AABC"),
        ("by hand to A", "dispatch stable@c0", "finds it there", "dispatch edge@c3", "defers", "reboot into C"),
        _oldest_first,
    ),
}


class Holes(unittest.TestCase):
    def setUp(self) -> None:
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def test_every_promise_is_kept_where_it_was_broken(self) -> None:
        for name, (where, path, _) in HOLES.items():
            with self.subTest(hole=name):
                self.assertEqual(replayed(where, path)[1], "")

    def test_with_the_rule_of_old_the_model_finds_each(self) -> None:
        for name, (where, path, rule_of_old) in HOLES.items():
            with self.subTest(hole=name), rule_of_old():
                self.assertNotEqual(replayed(where, path)[1], "", "the model is blind for it")


if __name__ == "__main__":
    unittest.main()
