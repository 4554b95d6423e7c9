"""Rollouts that meet: one supersedes, fails or hands back while another is at some point of its own life."""

from __future__ import annotations

import unittest

from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.runtime.rollout.inputs import Activate, Answer, RollbackAttemptFailed
from nixfleet_agent.runtime.rollout.orders import Release, ResetProbes, StopProbes
from nixfleet_agent.state_machine import ProbeStatus, State
from tests.runtime.harness import HALT, NEWER, PRIOR, TARGET, THIRD, TestHost

R, S, T, U = "stable@aa", "stable@bb", "stable@cc", "stable@dd"


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.host = TestHost(self)
        self.host.start()

    def converge(self, rollout_id: str) -> None:
        self.host.tell(rollout_id, "ProbeResult", status=ProbeStatus.PASS)
        self.host.clock.advance(3600)
        self.host.tick()
        self.assertIs(self.host.record(rollout_id).state, State.CONVERGED)

    def fails(self, rollout_id: str) -> None:
        """Sustained failure of the soaking rollout."""
        for _ in range(3):
            self.host.tell(rollout_id, "ProbeResult", status=ProbeStatus.FAIL)
            self.host.clock.advance(60)
        self.host.tick()
        self.assertIs(self.host.record(rollout_id).state, State.FAILED)


class TheWayBack(Case):
    def test_a_debt_of_long_ago_is_none_once_its_closure_was_brought_again_and_converged(self) -> None:
        self.host.soaking(R)
        self.fails(R)
        self.host.put(RollbackAttemptFailed(R, "fire"))
        self.host.soaking(S, NEWER)
        self.converge(S)
        self.host.soaking(T, TARGET)
        self.converge(T)
        self.host.order()
        self.host.dispatch(U, THIRD)
        self.assertEqual(self.host.order(), Forward(U, THIRD, TARGET, "rollback-and-halt"))

    def test_is_what_runs_when_the_dispatch_is_accepted_and_not_when_it_was_looked_at(self) -> None:
        self.host.soaking(R)
        self.fails(R)
        self.host.order()
        late = self.host.acceptance(S, NEWER)
        self.host.current = PRIOR
        self.host.tell(R, "RollbackComplete", reverted_to_closure=PRIOR)
        self.host.order()
        self.host.asked(lambda ack: Activate(late, ack))
        self.host.settle()
        self.assertEqual(self.host.order(), Forward(S, NEWER, PRIOR, "rollback-and-halt"))


class HandBack(Case):
    def test_not_to_one_whose_closure_made_room_for_another_in_between(self) -> None:
        self.host.soaking(R, policy=HALT)
        self.host.soaking(S, NEWER)
        self.fails(S)
        self.host.current = TARGET
        self.host.tell(S, "RollbackComplete", reverted_to_closure=TARGET)
        self.host.dispatch(T, THIRD, policy=HALT)
        self.host.tell(T, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.assertEqual(self.host.view.active_id, T)

    def test_later_where_it_could_not_be_read_what_runs(self) -> None:
        self.host.soaking(R)
        self.host.dispatch(S, NEWER, policy=HALT)
        self.host.current = None
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=None)
        self.host.tick(None)
        self.assertEqual(self.host.view.active_id, S)
        self.host.tick(TARGET)
        self.assertEqual(self.host.view.active_id, R)
        self.assertEqual(self.host.probe_order(), ResetProbes(R))

    def test_to_a_deferred_one_once_a_reboot_has_brought_it(self) -> None:
        self.host.dispatch(R, TARGET)
        self.host.tell(R, "ActivationDeferred", boot_id="boot-1")
        self.host.dispatch(S, NEWER, policy=HALT)
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=PRIOR)
        self.assertEqual(self.host.view.active_id, S)
        self.host.boot_id = "boot-2"
        self.host.restart(TARGET)
        self.assertIs(self.host.record(R).state, State.SOAKING)
        self.assertEqual(self.host.view.active_id, R)

    def test_is_remembered_when_what_came_back_fails_and_its_rollback_restarts_the_agent(self) -> None:
        self.host.soaking(R)
        self.host.dispatch(S, NEWER, policy=HALT)
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.host.tick()
        self.host.declare(R, "web")
        self.fails(R)
        order = self.host.order()
        self.assertEqual(order, Rollback(R, PRIOR, TARGET, True, TARGET))
        for current in (TARGET, THIRD, None, PRIOR):
            self.host.restart(current)
            self.assertEqual(self.host.order(), order)
        self.assertIs(self.host.tell(R, "RollbackComplete", reverted_to_closure=PRIOR), Answer.ACCEPTED)
        self.host.restart(PRIOR)
        self.assertIs(self.host.record(R).state, State.REVERTED)

    def test_of_a_debt_whose_heir_may_not_roll_back(self) -> None:
        self.host.soaking(R)
        self.fails(R)
        order = self.host.order()
        self.host.put(RollbackAttemptFailed(R, "fire"))
        self.host.dispatch(S, NEWER, policy=HALT)
        self.host.order()
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.assertEqual(self.host.order(), order)
        self.host.restart(TARGET)
        self.assertEqual(self.host.order(), order)

    def test_of_no_debt_that_its_heir_has_paid(self) -> None:
        self.host.soaking(R)
        self.fails(R)
        self.host.put(RollbackAttemptFailed(R, "fire"))
        self.host.dispatch(S, NEWER)
        self.host.order()
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.assertEqual(self.host.order(), Rollback(S, PRIOR, NEWER, False, TARGET, inherited=True))
        self.host.current = PRIOR
        self.host.tell(S, "RollbackComplete", reverted_to_closure=PRIOR)
        self.assertEqual((self.host.view.active_id, self.host.order()), (S, Release(S)))
        self.host.dispatch(T, THIRD, policy=HALT)
        self.host.order()
        self.host.tell(T, "ActivationFailed", switch_fired=False, observed_at_failure=PRIOR)
        self.assertEqual((self.host.view.active_id, self.host.order()), (T, Release(T)))
        self.host.restart(PRIOR)
        self.assertEqual((self.host.view.active_id, self.host.order()), (T, Release(T)))


class AnOperatorsOwnSwitch(Case):
    """While something else runs, probes would look at that: nothing of it may count for the rollout."""

    def setUp(self) -> None:
        super().setUp()
        self.host.soaking(R, soak_floor=1)
        self.host.order()
        self.host.probe_order()

    def test_probes_stop_and_start_anew_when_the_target_is_back(self) -> None:
        self.host.tick(THIRD)
        self.assertEqual(self.host.probe_order(), StopProbes())
        self.host.tick()
        self.assertIsNone(self.host.probe_order())
        self.host.tick(TARGET)
        self.assertEqual(self.host.probe_order(), ResetProbes(R))

    def test_failures_of_another_closure_take_nothing_back(self) -> None:
        self.host.tell(R, "ProbeResult", status=ProbeStatus.FAIL)
        self.host.tick(THIRD)
        for _ in range(5):
            self.host.tell(R, "ProbeResult", status=ProbeStatus.FAIL)
            self.host.clock.advance(60)
        self.host.tick(TARGET)
        self.host.declare(R, "web")
        self.host.tell(R, "ProbeResult", status=ProbeStatus.FAIL)
        self.host.tick()
        self.assertIs(self.host.record().state, State.SOAKING)
        self.assertIsNone(self.host.order())

    def test_a_link_that_can_not_be_read_for_a_moment_stops_no_probe(self) -> None:
        self.host.tick(None)
        self.assertIsNone(self.host.probe_order())


class Quarantine(Case):
    def test_a_release_that_failed_its_probes_goes_there_under_the_policy_halt_too(self) -> None:
        self.host.soaking(R, policy=HALT)
        self.fails(R)
        self.assertEqual(self.host.quarantined, [(R, TARGET)])

    def test_a_deferred_release_that_did_not_come_up_goes_there(self) -> None:
        self.host.dispatch(R, TARGET)
        self.host.tell(R, "ActivationDeferred", boot_id="boot-1")
        self.host.boot_id = "boot-2"
        self.host.restart(PRIOR)
        self.assertEqual(self.host.quarantined, [(R, TARGET)])


if __name__ == "__main__":
    unittest.main()
