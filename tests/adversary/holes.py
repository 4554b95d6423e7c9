"""Every hole that was found, as a world, the moves that led into it, and the rule of old that led there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from nixfleet_agent.activation import verify_poll
from nixfleet_agent.runtime.rollout import acceptances, decisions, evaluate, recovery, succession
from nixfleet_agent.trust import resolve
from tests.adversary.worlds import World, world

SOAKS = ("dispatch stable@c0", "begins", "flips", "ends with 0")


@dataclass(frozen=True)
class Hole:
    """``path`` led into it in ``world``; while ``rule_of_old`` is entered, the agent's code is as it was before."""

    world: World
    path: tuple[str, ...]
    rule_of_old: Callable[[], AbstractContextManager[Any]]


@contextlib.contextmanager
def _supervision_ends_at_acceptance() -> Iterator[None]:
    with contextlib.ExitStack() as patches:
        for module in (succession, decisions, evaluate):
            patches.enter_context(mock.patch.object(module, "predecessor", lambda host: None))
        yield


def _what_runs_is_the_way_back() -> Any:
    return mock.patch.object(acceptances, "rollback_target", lambda host, current: (current, False))


def _any_end_completes() -> Any:
    return mock.patch.object(verify_poll, "DONE", frozenset(range(-1, 256)))


def _oldest_first() -> Any:
    return mock.patch.object(decisions, "watched", lambda host: tuple(reversed(succession.watched(host))))


@contextlib.contextmanager
def _no_order_is_withdrawn() -> Iterator[None]:
    """A rollback that has begun is never called off, whoever answers for what runs by then."""
    order = decisions.Turn._order

    def of_old(turn: Any, rollout: Any, *, resume: bool) -> bool:
        order(turn, rollout, resume=resume)
        return True

    with mock.patch.object(decisions.Turn, "_order", of_old):
        yield


@contextlib.contextmanager
def _debts_before_the_boot() -> Iterator[None]:
    """What a boot did to a deferred release is told only after the order of the rollout in charge was given."""

    def resume(turn: Any) -> None:
        first = succession.in_charge(turn.host)
        if first is not None:
            turn._order(first, resume=True)
        turn.tick()

    with _no_order_is_withdrawn(), mock.patch.object(decisions.Turn, "resume", resume):
        yield


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


def _only_records_tell_what_has_begun() -> Any:
    """A boot into a release whose deferral never became durable is nobody's doing."""
    return mock.patch.object(recovery, "_brought_unheard", lambda host, current: None)


def _nothing_fired_nothing_to_undo() -> Any:
    """A release that a boot has brought unheard and that fails before its soak stays where it is."""
    return mock.patch.object(decisions, "as_it_runs", lambda rollout, event: event)


def _whoever_tried_it_goes_on() -> Any:
    """The agent that has tried the release's own ends the soak itself."""
    return mock.patch.object(decisions.Turn, "hand_over", lambda turn, rollout_id: True)


def _who_runs_is_ready() -> Any:
    """A new agent need not be counted as up."""
    return mock.patch.object(recovery.Guards, "told", lambda guards, rollout: rollout)


def _only_the_newest_is_open() -> Any:
    """Once the newest rollout has ended, an operator's own choice is proven, whatever still waits before it."""
    return mock.patch.object(succession, "_nothing_open", lambda host: host.active.record.terminal)


def _ordered_once() -> Any:
    """What a newer release has taken the order to leave away from never gets it again."""
    leave = decisions.Turn._leave
    return mock.patch.object(decisions.Turn, "_leave", lambda turn: None if turn.deeds else leave(turn))


HOLES: dict[str, Hole] = {
    "an operator's choice is the way back because a newer release failed early": Hole(
        world("CCB", "rhr", (1, 2, 3)),
        (
            *("dispatch stable@c0", "defers", "by hand to A", "dispatch edge@c1", "fails early", "dispatch stable@c2"),
            *("begins", "ends with 1"),
        ),
        _only_the_newest_is_open,
    ),
    "a release converges under the agent before its own": Hole(
        world("ABAB", party="agent"),
        (*SOAKS, "passes", "its agent passes its check", "later"),
        _whoever_tried_it_goes_on,
    ),
    "a release converges under its own agent before that is ready": Hole(
        world("ABAB", minutes=(4, 1, 2, 3), party="agent"),
        (*SOAKS, "its agent passes its check", "leaves for its agent", "its agent starts", "passes", "later"),
        _who_runs_is_ready,
    ),
    "a soak stays open because a newer release waits for a reboot": Hole(
        world("ACAB", party="agent"),
        (*SOAKS, "dispatch edge@c1", "its agent passes its check", "defers"),
        _ordered_once,
    ),
    "a release that a boot brought unheard fails, and is left running": Hole(
        world("AABC", party="disk"),
        (
            *("dispatch stable@c0", "begins", "the disk is full", "takes a reboot after all", "reboot into A"),
            *("fails early", "goes back"),
        ),
        _nothing_fired_nothing_to_undo,
    ),
    "a boot brings a release whose deferral the disk never took": Hole(
        world("AABC", party="disk"),
        (
            *("dispatch stable@c0", "begins", "dispatch stable@c2", "the disk is full", "takes a reboot after all"),
            "reboot into A",
        ),
        _only_records_tell_what_has_begun,
    ),
    "a debt goes on under a release that somebody brought to life meanwhile": Hole(
        world("AABC", minutes=(2, 1, 2, 3)),
        (
            *("dispatch edge@c1", "begins", "ends with 1", "can't go back", "dispatch stable@c0", "begins"),
            *("takes a reboot after all", "by hand to A"),
        ),
        _no_order_is_withdrawn,
    ),
    "a debt waits for an order that somebody else has got": Hole(
        world("ABAB", "rhrh"),
        (
            *("dispatch stable@c0", "by hand to A", "finds it there", "dispatch stable@c2", "dispatch edge@c3"),
            *("fails early", "reboot into P", "by hand to A"),
        ),
        _who_goes_on_gets_the_order,
    ),
    "a debt from before takes the order away from a switch that runs": Hole(
        world("AABC", minutes=(2, 1, 2, 3)),
        (
            *("dispatch edge@c1", "begins", "dispatch stable@c2", "flips", "ends with 2", "can't go back", "begins"),
            *("dispatch edge@c3", "ends with 1"),
        ),
        _a_debt_goes_before_the_switch_that_runs,
    ),
    "a debt takes the host away from under the release that a reboot brought": Hole(
        world("AABC", "rrrr", (2, 1, 2, 3)),
        (
            *("dispatch stable@c0", "begins", "dispatch edge@c3", "ends with 1", "can't go back", "defers"),
            "reboot into C",
        ),
        _debts_before_the_boot,
    ),
    "a rollback leads onto a release that soaked and failed": Hole(
        world("ABAB"),
        (*SOAKS, "dispatch edge@c1", "begins", "ends with 1"),
        _what_runs_is_the_way_back,
    ),
    "a rollback leads onto half a system": Hole(
        world("ABAB"),
        ("dispatch stable@c0", "begins", "flips", "dispatch edge@c1", "ends with 0", "begins", "ends with 1"),
        _what_runs_is_the_way_back,
    ),
    "a release is nobody's while its successor fetches": Hole(
        world("ABAB"),
        (*SOAKS, "dispatch edge@c1"),
        _supervision_ends_at_acceptance,
    ),
    "a release is nobody's while its successor waits for a reboot": Hole(
        world("ACAB"),
        (*SOAKS, "dispatch edge@c1", "defers"),
        _supervision_ends_at_acceptance,
    ),
    "a superseded switch ends unheard": Hole(
        world("ABAB"),
        ("dispatch stable@c0", "begins", "dispatch edge@c1", "flips", "ends with 0"),
        _supervision_ends_at_acceptance,
    ),
    "a failing release never fails, as long as it is sent again": Hole(
        world("AABC"),
        (*SOAKS, "fails", "soon", "dispatch edge@c1", "finds it there", "fails"),
        lambda: mock.patch.object(decisions, "taken_over", lambda host, heir: None),
    ),
    "a script that failed after the flip has switched the host": Hole(
        world("ABAB"),
        ("dispatch stable@c0", "begins", "flips", "ends with 2"),
        _any_end_completes,
    ),
    "a script that was killed after the flip has switched the host": Hole(
        world("ABAB"),
        ("dispatch stable@c0", "begins", "flips", "ends with killed"),
        _any_end_completes,
    ),
    "a release soaks for ever after a boot into another system": Hole(
        world("ABAB"),
        (*SOAKS, "reboot into P"),
        lambda: mock.patch.object(evaluate, "fell_back", lambda rollout, moment: False),
    ),
    "a control plane takes the host to an older release of another channel": Hole(
        world("ABAB", minutes=(2, 1, 2, 3)),
        ("dispatch stable@c0", "dispatch edge@c1"),
        lambda: mock.patch.object(resolve, "check_order", lambda manifest, marks: None),
    ),
    "a control plane chooses between two manifests of one instant": Hole(
        world("ABCA", minutes=(2, 1, 2, 3)),
        ("dispatch stable@c0", "dispatch stable@c2"),
        lambda: mock.patch.object(resolve, "check_order", lambda manifest, marks: None),
    ),
    "a debt is forgotten while its heir waits for a reboot": Hole(
        world("AABC"),
        ("dispatch stable@c0", "begins", "ends with 1", "can't go back", "dispatch edge@c3", "defers"),
        lambda: mock.patch.object(succession, "_waits_for_boot", lambda rollout: False),
    ),
    "the reboot that a successor waited for is a fallback of the one before": Hole(
        world("AABC"),
        ("by hand to A", "dispatch stable@c0", "finds it there", "dispatch edge@c3", "defers", "reboot into C"),
        _oldest_first,
    ),
}
