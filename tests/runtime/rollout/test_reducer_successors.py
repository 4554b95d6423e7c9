"""Which of several rollouts is in charge, and what the others may still do."""

from __future__ import annotations

import unittest

from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.runtime.rollout.inputs import (
    Answer,
    RollbackAttemptFailed,
)
from nixfleet_agent.runtime.rollout.orders import ResetProbes, StopProbes
from nixfleet_agent.state_machine import State
from tests.runtime.harness import HALT, NEWER, PRIOR, TARGET, THIRD, TestHost
from tests.runtime.rollout.reducer_case import PASS, Case, R, S, T


class TheNewestRolloutWins(Case):
    def test_a_newer_one_supersedes_and_what_runs_is_watched_until_its_switch(self) -> None:
        self.host.soaking(R)
        self.host.order()
        self.host.probe_order()
        self.assertEqual(self.host.dispatch(S, NEWER)[0], Answer.ACCEPTED)
        self.assertEqual(self.host.order(), Forward(S, NEWER, PRIOR, "rollback-and-halt"))
        self.assertIsNone(self.host.probe_order(), "its probes go on")
        self.assertIs(self.host.tell(R, "ProbeResult"), Answer.ACCEPTED)
        self.assertIs(self.host.switching(S), Answer.ACCEPTED)
        self.assertEqual(self.host.probe_order(), StopProbes())
        before = self.host.log(R)
        for kind in ("ProbeResult", "Failed", "Converged", "ActivationCompleted"):
            self.assertIs(self.host.tell(R, kind), Answer.NOT_NOW)
        self.host.clock.advance(3600)
        self.host.tick()
        self.assertEqual(self.host.log(R), before)
        self.assertIs(self.host.record(R).state, State.SOAKING)
        self.assertIsNone(self.host.activation.peek())
        self.assertEqual(set(self.host.view.reported), {R, S})

    def test_it_waits_while_nobody_can_tell_what_runs_and_goes_on_once_somebody_can(self) -> None:
        self.host.current = None
        reason = f"it can't be read which closure runs: {self.host.current_system} does not exist"
        for _ in range(2):
            self.assertEqual(self.host.dispatch(R, TARGET), (Answer.NOT_NOW, reason))
        self.assertEqual(self.host.log(R), [], "nothing is said that has no currentClosureAtDispatch")
        self.assertIsNone(self.host.activation.peek())
        self.host.current = PRIOR
        self.assertEqual(self.host.dispatch(R, TARGET), (Answer.ACCEPTED, ""))
        self.assertEqual(self.host.record(R).current_closure_at_dispatch, PRIOR)
        self.assertEqual(self.host.order(), Forward(R, TARGET, PRIOR, "rollback-and-halt"))

    def test_a_rollout_runs_once(self) -> None:
        self.host.soaking(R)
        self.host.order()
        for target in (TARGET, NEWER):
            answer, reason = self.host.dispatch(R, target)
            self.assertIs(answer, Answer.REPEAT)
            self.assertIn("new commit", reason)
        self.assertIsNone(self.host.activation.peek())
        self.host.dispatch(S, NEWER)
        self.assertIs(self.host.dispatch(R, TARGET)[0], Answer.REPEAT)
        self.host.restart(NEWER)
        self.assertIs(self.host.dispatch(R, TARGET)[0], Answer.REPEAT)

    def test_it_interrupts_an_activation_that_has_not_ended(self) -> None:
        self.host.dispatch(R, TARGET)
        self.host.dispatch(S, NEWER)
        self.assertEqual(self.host.order(), Forward(S, NEWER, PRIOR, "rollback-and-halt"))

    def test_its_acceptance_number_is_the_highest_and_survives_a_restart(self) -> None:
        for rollout, target in ((R, TARGET), (S, NEWER), (T, THIRD)):
            self.host.dispatch(rollout, target)
        numbers = [self.host.journal.read(rollout)[0].event["acceptance"] for rollout in (R, S, T)]
        self.assertEqual(numbers, [1, 2, 3])
        self.host.restart(PRIOR)
        self.assertEqual(self.host.view.active_id, T)
        self.host.dispatch("stable@dd", TARGET)
        self.assertEqual(self.host.journal.read("stable@dd")[0].event["acceptance"], 4)


class WhileARollbackIsOwed(Case):
    def setUp(self) -> None:
        super().setUp()
        self.failed_by_probe()

    def test_a_dispatch_is_kept_until_the_rollback_came_through(self) -> None:
        answer, reason = self.host.dispatch(S, NEWER)
        self.assertIs(answer, Answer.NOT_NOW)
        self.assertIn(R, reason)
        self.assertIsInstance(self.host.order(), Rollback)
        self.assertEqual(self.host.log(S), [])
        self.host.current = PRIOR
        self.host.tell(R, "RollbackComplete", reverted_to_closure=PRIOR)
        self.host.order()
        self.assertIs(self.host.dispatch(S, NEWER)[0], Answer.ACCEPTED)
        self.assertEqual(self.host.order(), Forward(S, NEWER, PRIOR, "rollback-and-halt"))

    def test_after_one_failed_attempt_the_newer_one_inherits_the_way_back(self) -> None:
        self.host.put(RollbackAttemptFailed(R, "fire"))
        self.assertIs(self.host.dispatch(S, NEWER)[0], Answer.ACCEPTED)
        # The rollback's own order still waits, and gives way only because what it owes is inherited.
        self.assertEqual(self.host.order(), Forward(S, NEWER, PRIOR, "rollback-and-halt"))
        self.assertEqual(self.host.journal.read(S)[0].event["priorClosure"], PRIOR)
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        order = self.host.order()
        self.assertEqual(order, Rollback(S, PRIOR, NEWER, False, TARGET, inherited=True))

    def test_an_inherited_way_back_is_still_known_after_a_restart(self) -> None:
        self.host.put(RollbackAttemptFailed(R, "fire"))
        self.host.dispatch(S, NEWER)
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.host.restart(TARGET)
        self.assertEqual(self.host.order(), Rollback(S, PRIOR, NEWER, False, TARGET, inherited=True))

    def test_the_heir_of_an_heir_that_never_switched_inherits_too(self) -> None:
        self.host.put(RollbackAttemptFailed(R, "fire"))
        self.host.dispatch(S, NEWER)
        self.assertIs(self.host.dispatch(T, THIRD)[0], Answer.ACCEPTED)
        self.assertEqual(self.host.order(), Forward(T, THIRD, PRIOR, "rollback-and-halt"))

    def test_an_attempt_of_another_rollout_changes_nothing(self) -> None:
        self.host.put(RollbackAttemptFailed(S, "fire"))
        self.assertIs(self.host.dispatch(T, NEWER)[0], Answer.NOT_NOW)

    def test_no_forward_order_replaces_the_rollback(self) -> None:
        self.host.dispatch(S, NEWER)
        self.assertIsInstance(self.host.activation.peek(), Rollback)


class HandBack(Case):
    def test_a_rollout_that_never_fired_hands_back_to_the_one_that_soaked(self) -> None:
        self.host.soaking(R, soak_floor=30)
        self.probe(PASS)
        self.host.order()
        self.host.probe_order()
        self.host.dispatch(S, NEWER, policy=HALT)
        self.host.order()
        self.host.clock.advance(600)
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.assertEqual(self.host.view.active_id, R)
        self.host.tick()
        self.assertIsNone(self.host.probe_order(), "its probes never stopped")
        self.host.clock.advance(1100)
        self.host.tick()
        self.assertIs(self.host.record(R).state, State.SOAKING, "the soak is not over")
        self.host.clock.advance(100)
        self.host.tick()
        self.assertIs(self.host.record(R).state, State.CONVERGED)

    def test_with_a_rollback_owed_it_hands_back_once_that_is_done(self) -> None:
        self.host.soaking(R)
        self.host.dispatch(S, NEWER)
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.assertEqual(self.host.view.active_id, S)
        self.assertEqual(self.host.order(), Rollback(S, PRIOR, NEWER, False, TARGET))
        self.host.tell(S, "RollbackComplete", reverted_to_closure=TARGET)
        self.assertEqual(self.host.view.active_id, R)

    def test_a_switch_that_began_is_followed_to_its_end_before_its_successor(self) -> None:
        """Otherwise its release would run here with nobody to watch it."""
        self.host.dispatch(R, TARGET)
        self.host.switching(R)
        self.host.order()
        self.host.dispatch(S, NEWER, policy=HALT)
        self.assertIsNone(self.host.order(), "the worker still has the first one's")
        self.assertIs(self.host.switching(S), Answer.NOT_NOW)
        self.host.restart(PRIOR)
        order = self.host.order()
        assert isinstance(order, Forward)
        self.assertEqual((order.rollout_id, order.resume, order.already_started), (R, True, True))
        self.host.current = TARGET
        self.host.tell(R, "ActivationCompleted", observed_current_closure=TARGET)
        self.assertEqual(self.host.probe_order(), ResetProbes(R))
        self.assertEqual(self.host.order(), Forward(S, NEWER, PRIOR, "halt"))
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.assertEqual(self.host.view.active_id, R)
        self.assertIs(self.host.record(R).state, State.SOAKING)

    def test_the_same_host_comes_out_of_a_restart(self) -> None:
        self.host.soaking(R)
        self.host.dispatch(S, NEWER, policy=HALT)
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.host.restart(TARGET)
        self.assertEqual(self.host.view.active_id, R)
        self.assertEqual(self.host.probe_order(), ResetProbes(R))

    def test_not_after_a_switch_and_not_to_what_does_not_run(self) -> None:
        for fired, current in ((True, TARGET), (None, TARGET), (False, THIRD)):
            with self.subTest(fired=fired, current=current):
                host = TestHost(self)
                host.start()
                host.soaking(R)
                host.dispatch(S, NEWER, policy=HALT)
                host.current = current
                host.tell(S, "ActivationFailed", switch_fired=fired, observed_at_failure=current)
                self.assertEqual(host.view.active_id, S)
                host.stop()


if __name__ == "__main__":
    unittest.main()
