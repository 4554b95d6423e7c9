"""What is decided about the release that comes next, as a table; and what the words about it say."""

from __future__ import annotations

import unittest
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

from nixfleet_agent.activation.readiness import Obstacle
from nixfleet_agent.commands.coming_release import in_a_sentence, in_short
from nixfleet_agent.prefetch.decision import RECHECK_SECS, Decision, Do, Situation, State, decide
from nixfleet_agent.prefetch.handover import GIVEN_UP, URGENT, Handover
from nixfleet_agent.prefetch.status import NextStatus, expected_end, percent
from nixfleet_agent.runtime.release import next_way_back
from nixfleet_agent.state_machine import RolloutRecord
from nixfleet_agent.state_machine import State as RolloutState
from nixfleet_agent.state_machine.record import WayBack
from nixfleet_agent.telemetry.status import RolloutsView, as_json
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.support.clock import FakeClock

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=timezone.utc)
FRESH = Situation(now=100.0, enabled=True, announced=True, closure="next", current="old", looked=True)
HELD = replace(FRESH, held="next")


class DecisionTest(unittest.TestCase):
    def case(self, situation: Situation, do: Do, state: State | None, *, keep: bool, **more: Any) -> Decision:
        found = decide(situation)
        self.assertEqual((found.do, found.state, found.keep), (do, state, keep), found)
        for name, value in more.items():
            self.assertEqual(getattr(found, name), value, name)
        return found

    def test_the_way_of_a_release(self) -> None:
        self.case(replace(FRESH, looked=False), Do.LOOK, State.WAITING, keep=False)
        self.case(replace(FRESH, starts_at=130.0), Do.REST, State.WAITING, keep=False, until=130.0)
        self.case(FRESH, Do.FETCH, State.FETCHING, keep=False)
        failed = replace(FRESH, failure="no cache", next_try_at=160.0)
        self.case(failed, Do.REST, State.FAILED, keep=False, until=160.0, reason="no cache")
        self.case(replace(failed, now=160.0), Do.FETCH, State.FETCHING, keep=False)
        self.case(HELD, Do.INSPECT, State.CHECKING, keep=True)
        self.case(replace(HELD, inspect_at=None), Do.REST, State.READY, keep=True, until=None)
        again = replace(HELD, inspect_at=700.0, obstructed=True)
        self.case(again, Do.REST, State.OBSTRUCTED, keep=True, until=700.0)
        self.case(replace(again, now=700.0), Do.INSPECT, State.CHECKING, keep=True)

    def test_what_is_in_the_store_does_not_wait_for_its_start(self) -> None:
        self.case(replace(FRESH, looked=False, starts_at=1e9), Do.LOOK, State.WAITING, keep=False)
        self.case(replace(HELD, starts_at=1e9), Do.INSPECT, State.CHECKING, keep=True)

    def test_reasons_to_leave_it_alone_take_the_root_with_them(self) -> None:
        for changes in (
            {"enabled": False},
            {"closure": None},
            {"current": "next"},
            {"had_its_turn": True},
        ):
            with self.subTest(changes):
                self.case(replace(HELD, **changes), Do.REST, None, keep=False, until=None)  # type: ignore[arg-type]
        found = self.case(replace(HELD, quarantined="it failed"), Do.REST, State.WAITING, keep=False)
        self.assertIn("it failed", str(found.reason))

    def test_reasons_to_wait_leave_the_root_of_what_is_still_next(self) -> None:
        for changes, until in (
            ({"refusal": "too old"}, 100.0 + RECHECK_SECS),
            ({"hold": "too old"}, 100.0 + RECHECK_SECS),
            ({"urgent": True}, None),
        ):
            for held in ("next", "former"):
                with self.subTest(changes, held=held):
                    s = replace(HELD, held=held, **changes)  # type: ignore[arg-type]
                    self.case(s, Do.REST, State.WAITING, keep=held == "next", until=until)

    def test_before_the_first_poll_nothing_is_let_go_of(self) -> None:
        self.case(replace(HELD, announced=False, closure=None), Do.REST, None, keep=True)

    def test_while_its_rollout_is_under_way_the_root_stays_and_nothing_is_done(self) -> None:
        for held, keep in (("next", True), ("former", False), (None, False)):
            s = replace(HELD, held=held, in_progress=True, urgent=True, had_its_turn=True, current="next")
            self.case(s, Do.REST, None, keep=keep)

    def test_no_reason_is_passed_over_on_the_way_to_the_cache(self) -> None:
        """Whatever else holds: with any of these nothing is fetched and no script is run."""
        for changes in (
            *({"enabled": False}, {"refusal": "r"}, {"quarantined": "q"}, {"hold": "h"}, {"urgent": True}),
            *({"had_its_turn": True}, {"in_progress": True}, {"current": "next"}, {"closure": None}),
        ):
            for base in (FRESH, HELD, replace(FRESH, failure="f"), replace(FRESH, looked=False)):
                with self.subTest(changes):
                    self.assertIs(decide(replace(base, **changes)).do, Do.REST)  # type: ignore[arg-type]


class ProgressTest(unittest.TestCase):
    def test_a_hundred_is_said_only_when_it_is_over(self) -> None:
        self.assertEqual([percent(n, 200) for n in (0, 1, 146, 200, 300)], [0, 0, 73, 99, 99])
        self.assertEqual((percent(5, None), percent(5, 0)), (None, None))

    def test_the_end_is_foreseen_once_enough_has_come(self) -> None:
        self.assertEqual(expected_end(NOW, 30.0, 25, 100), NOW + timedelta(seconds=90))
        for seconds, fetched, total in ((4.0, 25, 100), (30.0, 0, 100), (30.0, 25, None), (30.0, 100, 100)):
            self.assertIsNone(expected_end(NOW, seconds, fetched, total))


class HandoverTest(unittest.TestCase):
    def setUp(self) -> None:
        self.handover = Handover(ShutdownToken(FakeClock()))

    def test_nothing_begins_while_an_activation_is_at_work(self) -> None:
        with self.handover.at_work("next"):
            self.assertIsNone(self.handover.begin("next", limited=False))
            self.assertEqual(self.handover.stop_reason(), URGENT)
        self.assertIsNone(self.handover.stop_reason())
        self.assertIsNotNone(self.handover.begin("next", limited=False))

    def test_only_the_same_closure_goes_on_and_only_without_a_limit(self) -> None:
        for closure, target, limited, reason in (
            ("next", "next", False, None),
            ("next", "next", True, URGENT),
            ("next", "other", False, URGENT),
            ("next", None, False, URGENT),
        ):
            with self.subTest(target=target, limited=limited):
                download = self.handover.begin(closure, limited=limited)
                assert download is not None
                with self.handover.at_work(target):
                    self.assertEqual(self.handover.stop_reason(), reason)
                self.handover.end(download)
                self.assertTrue(download.ended.is_set())

    def test_what_was_taken_over_and_given_up_ends(self) -> None:
        download = self.handover.begin("next", limited=False)
        self.assertIsNone(self.handover.take_over("other"))
        self.assertIs(self.handover.take_over("next"), download)
        assert download is not None
        self.assertTrue(download.taken_over)
        self.assertIsNone(self.handover.stop_reason())
        download.abandon()
        self.assertEqual(self.handover.stop_reason(), GIVEN_UP)
        self.handover.end(download)
        self.assertIsNone(self.handover.take_over("next"))

    def test_each_beginning_and_end_wakes_who_waits(self) -> None:
        for change in (self.handover.announce, lambda: self.handover.at_work(None).__enter__()):
            self.handover.changed.clear()
            change()
            self.assertTrue(self.handover.changed.is_set())


class WayBackTest(unittest.TestCase):
    def view(self, state: RolloutState, *, way_back: str = "proven", **changes: Any) -> RolloutsView:
        record = RolloutRecord(
            rollout_id="stable@aa",
            hostname="web-01",
            channel="stable",
            target_closure="target",
            dispatched_at=NOW,
            state=state,
            way_back=WayBack(way_back),
            **changes,
        )
        return RolloutsView("stable@aa", not record.terminal, records=(record,))

    def test_where_the_next_rollout_would_go_back_to(self) -> None:
        self.assertEqual(next_way_back(RolloutsView(), "runs"), "runs")
        self.assertEqual(next_way_back(self.view(RolloutState.CONVERGED), "target"), "target")
        self.assertEqual(next_way_back(self.view(RolloutState.SOAKING), "target"), "proven")
        self.assertEqual(next_way_back(self.view(RolloutState.FAILED, failed_at=NOW), "target"), "proven")
        self.assertEqual(next_way_back(self.view(RolloutState.SOAKING), "by-hand"), "proven")
        self.assertEqual(next_way_back(self.view(RolloutState.CONVERGED), "by-hand"), "by-hand")


class WordsTest(unittest.TestCase):
    def coming(self, state: State, **changes: Any) -> dict[str, Any]:
        shown: dict[str, Any] = as_json(NextStatus("stable@bb", "next", state, **changes))
        return shown

    def test_each_state_in_a_line_and_in_a_sentence(self) -> None:
        soon, blocking = NOW + timedelta(minutes=3), Obstacle("script", "no script", True)
        reboot = Obstacle("inhibitors", "it takes a reboot", False)
        for coming, line, sentence, look in (
            (self.coming(State.WAITING), "it is about to begin", "not fetched before its turn yet", False),
            (
                self.coming(State.WAITING, reason="held", next_try_at=soon),
                "held (again in 3 min)",
                "held (again in 3 min)",
                False,
            ),
            (
                self.coming(State.FETCHING, percent=73, ready_at=soon),
                "being fetched, 73 % so far, ready in 3 min",
                "73 % so far, ready in 3 min.",
                False,
            ),
            (self.coming(State.FETCHING), "being fetched", "it is being fetched before its turn.", False),
            (
                self.coming(State.FAILED, reason="no cache"),
                "could not be fetched yet: no cache",
                "at its turn in",
                True,
            ),
            (self.coming(State.CHECKING), "fetched, being looked at", "is being looked at", False),
            (self.coming(State.READY, ready_at=NOW), "ready since 2026", "ready for its turn.", False),
            (self.coming(State.READY, obstacles=(reboot,)), "ready; it takes a reboot", "; it takes a reboot.", False),
            (
                self.coming(State.OBSTRUCTED, obstacles=(reboot, blocking)),
                "stands in its way: no script",
                "would fail now: no script.",
                True,
            ),
        ):
            with self.subTest(line):
                text, somebody = in_short(coming, NOW)
                self.assertTrue(text.startswith("stable@bb: "), text)
                self.assertIn(line, text)
                self.assertIs(somebody, look)
                self.assertIn(sentence, in_a_sentence(coming, NOW))


if __name__ == "__main__":
    unittest.main()
