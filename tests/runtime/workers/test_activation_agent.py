"""A release that brings another agent, and what is let go of when a rollout is over."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from dataclasses import replace

from nixfleet_agent.activation.context import SHUTDOWN
from nixfleet_agent.activation.errors import PhaseInterrupted
from nixfleet_agent.activation.model import (
    Completed,
    Deferred,
    Failed,
    Rollback,
    RollbackDrift,
    RolledBack,
)
from nixfleet_agent.errors import StorageError
from nixfleet_agent.runtime.agent_change import READY_STEP_SECS
from nixfleet_agent.runtime.own_unit import UnitChanged
from nixfleet_agent.runtime.rollout.orders import HandOver, Release, StandDown
from nixfleet_agent.runtime.workers.activation import IDLE
from nixfleet_agent.state_machine import RolloutRecord, State
from nixfleet_agent.state_machine.events import (
    LocalActivationCompleted,
    LocalActivationDeferred,
    LocalActivationFailed,
    LocalRollbackCompleted,
)
from nixfleet_agent.telemetry.status import RolloutsView
from tests.runtime.harness import NEWER, PRIOR, TARGET, THIRD, until
from tests.runtime.workers.activation_case import BACK, FAILED, FORWARD, Case, R, S, ScriptedPipeline, starts

UNFIRED = Failed(-1, "realise: no", "realise", False, TARGET)


class StandsDown(Case):
    def test_a_rollback_that_stands_still_ends_without_a_word_when_it_is_wanted_no_more(self) -> None:
        self.start(BACK, RollbackDrift(NEWER), RollbackDrift(NEWER))
        until(lambda: self.board.get("rollback") == {"rollout_id": R, "drift": NEWER}, "the rollback that stands still")
        self.mailbox.put(StandDown(R), replace=True)
        until(lambda: self.board.get("rollback") is None, "the end of the rollback")
        self.idle()
        self.assertEqual(list(self.calls()), ["rollback"])


class Releases(Case):
    def test_what_is_over_or_superseded_is_let_go_of_and_what_is_open_is_not(self) -> None:
        self.pipeline.held = {R, S, "stable@cc"}
        soaks = RolloutRecord(
            rollout_id=S,
            hostname="web-01",
            channel="stable",
            target_closure=TARGET,
            dispatched_at=self.clock.now(),
            state=State.SOAKING,
        )
        self.board.publish_rollouts(RolloutsView(R, True, records=(soaks,)))
        self.start(Release(R))
        until(lambda: self.pipeline.held == {S}, "the release")
        self.idle()
        self.assertEqual(set(self.pipeline.released), {R, "stable@cc"})

    def test_a_disk_that_refuses_is_said_and_stops_nobody(self) -> None:
        self.start(Release(R), StorageError("read-only"))
        until(lambda: self.pipeline.script == [], "the release")
        self.idle()
        self.assertIn("read-only", self.said[0])

    def test_shutdown_while_a_guard_is_awaited_leaves_it_to_the_next_start(self) -> None:
        self.pipeline.held = {R}
        self.start(Release(R), PhaseInterrupted(SHUTDOWN))
        until(lambda: self.pipeline.script == [], "the release")
        self.idle()
        self.assertEqual(self.pipeline.released, [])


class AnotherAgent(Case):
    """A release that changes the agent: guarded from its switch on, left for, and taken over from."""

    GUARD = ("guard", R, "nixfleet-agent.service")

    def setUp(self) -> None:
        super().setUp()
        self.opens(R)

    def opens(self, *rollouts: str) -> None:
        """Those are open, and no other."""
        self.board.publish_rollouts(RolloutsView(rollouts[-1], active_open=True, watched=rollouts))

    def guards(self) -> int:
        return self.pipeline.calls.count(self.GUARD)

    def switched(self) -> None:
        self.unit.another = "/nix/b/bin/nixfleet-agent run"
        self.start(FORWARD, starts(Completed(TARGET, 0, ())))
        self.accept_start()
        self.event(LocalActivationCompleted)

    def test_its_start_is_guarded_before_the_success_is_told_and_as_long_as_this_one_lives(self) -> None:
        self.switched()
        self.assertEqual((self.guards(), self.left), (1, []))
        for turn in (2, 3):
            self.clock.until_waiting()
            self.clock.advance(IDLE)
            until(lambda turn=turn: self.guards() == turn, "a renewed guard")

    def test_a_shutdown_renews_nothing(self) -> None:
        self.switched()
        self.clock.until_waiting()
        self.stop()
        self.assertEqual(self.guards(), 1)

    def test_one_that_stays_the_same_is_not(self) -> None:
        self.start(FORWARD, starts(Completed(TARGET, 0, ())))
        self.accept_start()
        self.event(LocalActivationCompleted)
        self.clock.until_waiting()
        self.clock.advance(IDLE)
        self.clock.until_waiting()
        self.assertEqual(self.guards(), 0)

    def test_one_of_which_systemd_does_not_say_whether_it_stays_the_same_is(self) -> None:
        """A switch may replace systemd itself, which then does not answer for a moment."""
        self.unit.silent = True
        self.start(FORWARD, starts(Completed(TARGET, 0, ())))
        self.accept_start()
        self.event(LocalActivationCompleted)
        self.assertEqual(self.guards(), 1)

    def test_what_was_disarmed_since_is_not_renewed(self) -> None:
        self.switched()
        self.clock.until_waiting()
        self.pipeline.disarm()
        self.clock.advance(IDLE)
        self.clock.until_waiting()
        self.assertEqual(self.guards(), 1)

    def test_one_that_could_not_be_armed_is_tried_again(self) -> None:
        self.pipeline.refusals = ["no space"]
        self.switched()
        self.assertEqual((self.guards(), self.pipeline.waiting_for), (1, None))
        self.clock.until_waiting()
        self.clock.advance(IDLE)
        until(lambda: self.pipeline.waiting_for == R, "a guard after all")

    def test_but_not_in_the_middle_of_a_newer_switch_whose_guard_that_would_end(self) -> None:
        self.pipeline.refusals = ["no space"]
        self.newer(FAILED, self.a_minute_later)
        self.event(LocalActivationFailed)
        self.assertEqual(self.guards(), 1)

    def newer(self, outcome: object, *before: Callable[[], object]) -> None:
        """A newer release is on its way; ``before`` it comes to its outcome, something else happens."""

        def does(pipeline: ScriptedPipeline, on_started: Callable[[str], None]) -> object:
            for each in before:
                each()
            return outcome

        self.switched()
        self.idle()
        self.pipeline.script = [does]
        self.mailbox.put(replace(FORWARD, rollout_id=S))

    def a_minute_later(self) -> None:
        self.clock.advance(IDLE)
        self.pipeline.interrupted()

    def test_while_a_newer_release_comes_it_stays_guarded(self) -> None:
        self.opens(R, S)
        self.newer(UNFIRED, self.a_minute_later, self.pipeline.interrupted, self.a_minute_later)
        self.event(LocalActivationFailed)
        self.assertEqual((self.guards(), self.pipeline.waiting_for), (3, R))

    def test_but_not_once_it_is_over(self) -> None:
        self.opens(R)
        self.newer(UNFIRED, lambda: self.opens(S), self.a_minute_later)
        self.event(LocalActivationFailed)
        self.assertEqual((self.guards(), self.pipeline.waiting_for), (1, None))

    def test_a_newer_switch_that_was_turned_away_has_it_guarded_again(self) -> None:
        self.newer(UNFIRED, self.pipeline.disarm)
        self.event(LocalActivationFailed)
        self.assertEqual((self.guards(), self.pipeline.waiting_for), (2, R))

    def test_and_one_that_takes_a_reboot_after_all(self) -> None:
        self.newer(Deferred("kernel", "boot-1"), self.pipeline.disarm)
        self.event(LocalActivationDeferred)
        self.assertEqual((self.guards(), self.pipeline.waiting_for), (2, R))

    def test_what_a_newer_release_owes_without_a_switch_leaves_the_guard(self) -> None:
        self.opens(R, S)
        self.newer(UNFIRED)
        self.event(LocalActivationFailed)
        self.pipeline.script = [RolledBack(TARGET, 0)]
        self.mailbox.put(Rollback(S, PRIOR, THIRD, False, TARGET))
        self.event(LocalRollbackCompleted)
        self.idle()
        self.clock.advance(IDLE)
        until(lambda: self.guards() == 2, "a renewed guard")

    def test_a_newer_switch_that_was_fired_has_its_own(self) -> None:
        self.opens(R, S)
        self.newer(FAILED, self.pipeline.disarm)
        self.event(LocalActivationFailed)
        self.pipeline.waiting_for = R  # nothing of this process any more
        self.idle()
        self.clock.advance(IDLE)
        self.idle()
        self.assertEqual(self.guards(), 1)

    def test_it_is_left_for_only_when_its_time_is_guarded(self) -> None:
        self.unit.another = "/nix/b/bin/nixfleet-agent run"
        self.pipeline.refusals = ["no space"]
        self.start(HandOver(FORWARD))
        self.clock.until_waiting()
        self.assertEqual((self.guards(), self.left), (1, []))
        self.clock.advance(16)
        until(lambda: self.left, "that it leaves")
        self.assertEqual((self.guards(), self.left), (2, [UnitChanged(self.unit.another)]))

    def test_a_newer_order_comes_first(self) -> None:
        self.pipeline.refusals = ["no space"] * 9
        self.start(HandOver(FORWARD))
        self.clock.until_waiting()
        self.mailbox.put(Release(S))
        self.mailbox.put(BACK, replace=True)
        self.pipeline.script = [RolledBack(PRIOR, 0)]
        self.event(LocalRollbackCompleted)
        self.assertEqual(self.left, [])

    def test_the_new_one_ends_the_guard_when_systemd_counts_it_as_ready_and_takes_no_order_before(self) -> None:
        self.pipeline.waiting_for = R
        self.pipeline.script = [RolledBack(PRIOR, 0)]
        self.mailbox.put(BACK)
        self.run_worker()
        for turn in (1, 2):
            self.clock.until_waiting()
            self.assertEqual((self.unit.looks, self.pipeline.waiting_for, self.pipeline.calls), (turn, R, []))
            self.unit.ready = turn == 2
            self.clock.advance(READY_STEP_SECS)
        self.event(LocalRollbackCompleted)

    def test_it_tells_that_it_is_ready_once_the_guard_is_disarmed(self) -> None:
        self.pipeline.waiting_for, self.pipeline.stubborn, self.unit.ready = R, 1, True
        self.run_worker()
        self.clock.until_waiting()
        self.assertEqual(self.ready, [])
        self.clock.advance(READY_STEP_SECS)
        until(lambda: self.ready == [R], "that it is ready")

    def test_one_that_the_guard_came_before_is_not_ready(self) -> None:
        self.pipeline.waiting_for = R
        self.run_worker()
        self.clock.until_waiting()
        self.pipeline.waiting_for, self.unit.ready = None, True
        self.clock.advance(READY_STEP_SECS)
        self.clock.until_waiting()
        self.assertEqual(self.ready, [])

    def test_a_shutdown_before_that_leaves_the_guard(self) -> None:
        self.pipeline.waiting_for = R
        self.run_worker()
        self.clock.until_waiting()
        self.stop()
        self.assertEqual(self.pipeline.waiting_for, R)


if __name__ == "__main__":
    unittest.main()
