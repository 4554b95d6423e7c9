"""What runs is proven or watched, whatever follows what: the reducer with its journal, one hole of old in each test."""

from __future__ import annotations

import unittest

from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.runtime.rollout.inputs import Answer, RollbackAttemptFailed
from nixfleet_agent.runtime.rollout.orders import ResetProbes
from nixfleet_agent.state_machine import ProbeStatus, State
from tests.runtime.harness import HALT, NEWER, PRIOR, TARGET, THIRD, TestHost

FAIL, PASS = ProbeStatus.FAIL, ProbeStatus.PASS
R, S, T = "stable@aa", "stable@bb", "stable@cc"


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.host = TestHost(self)
        self.host.start()

    def fails(self, rollout_id: str = R) -> None:
        """Its probe has failed for longer than the threshold, and a tick sees it."""
        for _ in range(2):
            self.host.tell(rollout_id, "ProbeResult", status=FAIL)
            self.host.clock.advance(61)
        self.host.tick()


class TheWayBack(Case):
    def way_back(self, rollout_id: str) -> str | None:
        return self.host.record(rollout_id).prior_closure

    def test_of_what_follows_an_unproven_release_is_the_last_proven_one(self) -> None:
        self.host.soaking(R)
        self.host.dispatch(S, NEWER)
        self.assertEqual(self.way_back(S), PRIOR)
        self.host.dispatch(T, THIRD)
        self.assertEqual(self.way_back(T), PRIOR)
        self.host.restart(TARGET)
        self.assertEqual(self.way_back(T), PRIOR, "it is durable")
        self.assertEqual(self.host.journal.read(T)[0].event["currentClosure"], TARGET, "and so is what ran")

    def test_is_what_converged_here(self) -> None:
        self.host.soaking(R, soak_floor=0)
        self.host.tell(R, "ProbeResult", status=PASS)
        self.host.tick()
        self.host.dispatch(S, NEWER)
        self.assertEqual(self.way_back(S), TARGET)

    def test_is_not_half_a_system(self) -> None:
        """Accepted in the middle of a switch whose link has flipped already."""
        self.host.dispatch(R, TARGET)
        self.host.switching(R)
        self.host.current = TARGET
        self.host.dispatch(S, NEWER)
        self.assertEqual(self.way_back(S), PRIOR)

    def test_of_a_successor_with_the_same_closure_is_kept_and_its_failure_owes_it(self) -> None:
        self.host.soaking(R)
        self.host.dispatch(S, TARGET)
        self.assertEqual(self.way_back(S), PRIOR)
        self.host.tell(S, "ActivationStarted", switch_method="noop")
        self.host.tell(S, "ActivationCompleted", observed_current_closure=TARGET)
        self.host.declare(S, "web")
        self.fails(S)
        self.assertEqual(self.host.order(), Rollback(S, PRIOR, TARGET, True, TARGET))

    def test_is_no_release_that_failed_and_stays_by_its_policy(self) -> None:
        self.host.soaking(R, policy=HALT)
        self.fails()
        self.assertTrue(self.host.record(R).terminal)
        self.host.dispatch(S, NEWER)
        self.assertEqual(self.way_back(S), PRIOR)

    def test_is_no_choice_of_an_operator_while_an_earlier_release_waits_for_a_reboot(self) -> None:
        """Nor after a newer one failed before it changed anything."""
        self.host.dispatch(R, TARGET)
        self.host.tell(R, "ActivationStarted")
        self.host.tell(R, "ActivationDeferred", boot_id="boot-1")
        self.host.current = THIRD
        self.host.dispatch(S, NEWER, policy=HALT)
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=THIRD)
        self.assertTrue(self.host.record(S).terminal)
        self.host.dispatch(T, NEWER)
        self.assertEqual(self.way_back(T), PRIOR)

    def test_waits_where_it_cant_be_read_what_runs_and_says_why(self) -> None:
        self.host.current = None
        self.host.current_system.symlink_to(self.host.current_system)
        answer, reason = self.host.dispatch(R, TARGET, current_closure=None)
        self.assertIs(answer, Answer.NOT_NOW)
        self.assertIn(f"can't be read which closure runs: {self.host.current_system} leads in a circle", reason)


class TakingOver(Case):
    def test_the_failures_of_a_release_go_on_being_timed_in_its_successor(self) -> None:
        """Otherwise a failing release never fails, as long as somebody sends it again."""
        for restarts in (False, True):
            with self.subTest(restarts=restarts):
                self.host = TestHost(self)
                self.host.start()
                self.host.soaking(R)
                self.host.tell(R, "ProbeResult", status=FAIL)
                self.host.clock.advance(61)
                self.host.tell(R, "ProbeResult", status=FAIL)
                self.host.clock.advance(40)
                self.host.tell(R, "ProbeResult", status=FAIL, failure_reason="still")
                self.host.dispatch(S, TARGET)
                self.host.tell(S, "ActivationStarted", switch_method="noop")
                self.host.tell(S, "ActivationCompleted", observed_current_closure=TARGET)
                self.host.declare(S, "web")
                self.host.tell(S, "ProbeResult", status=FAIL)
                if restarts:
                    self.host.restart(TARGET)
                    self.host.tick()
                self.host.clock.advance(30)
                self.host.tell(S, "ProbeResult", status=FAIL, failure_reason="more")
                self.host.tick()
                self.assertIs(self.host.record(S).state, State.FAILED)
                self.host.stop()

    def test_a_pass_in_between_ends_them(self) -> None:
        self.host.soaking(R)
        self.host.tell(R, "ProbeResult", status=FAIL)
        self.host.clock.advance(110)
        self.host.dispatch(S, TARGET)
        self.host.tell(S, "ActivationStarted", switch_method="noop")
        self.host.tell(S, "ActivationCompleted", observed_current_closure=TARGET)
        self.host.declare(S, "web")
        self.host.tell(S, "ProbeResult", status=PASS)
        self.host.clock.advance(30)
        for reason in ("a", "b"):
            self.host.tell(S, "ProbeResult", status=FAIL, failure_reason=reason)
        self.host.tick()
        self.assertIs(self.host.record(S).state, State.SOAKING)


class Supervision(Case):
    def test_a_failure_is_decided_and_carried_out_while_the_successor_fetches(self) -> None:
        self.host.soaking(R)
        self.host.dispatch(S, NEWER)
        self.host.order()
        self.fails()
        self.assertEqual(self.host.order(), Rollback(R, PRIOR, TARGET, True, TARGET))
        self.assertIs(self.host.switching(S), Answer.NOT_NOW, "the switch of the successor waits for it")
        self.host.current = PRIOR
        self.host.tell(R, "RollbackComplete", reverted_to_closure=PRIOR)
        self.assertIs(self.host.record(R).state, State.REVERTED)
        order = self.host.order()
        assert isinstance(order, Forward)
        self.assertEqual((order.rollout_id, order.target, order.prior), (S, NEWER, PRIOR))
        self.assertIs(self.host.switching(S), Answer.ACCEPTED)

    def test_also_after_a_restart_in_the_middle_of_it(self) -> None:
        self.host.soaking(R)
        self.host.dispatch(S, NEWER)
        self.fails()
        self.host.restart(TARGET)
        self.assertEqual(self.host.order(), Rollback(R, PRIOR, TARGET, True, TARGET))

    def test_a_rollback_that_fails_lets_the_successor_go_first(self) -> None:
        """It may be the cure; where it never starts, the rollback is tried again."""
        self.host.soaking(R)
        self.host.dispatch(S, NEWER, policy=HALT)
        self.fails()
        self.host.order()
        self.host.put(RollbackAttemptFailed(R, "fire"))
        self.host.settle()
        order = self.host.order()
        assert isinstance(order, Forward)
        self.assertEqual(order.rollout_id, S)
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.assertEqual(self.host.view.active_id, R)
        self.assertIsInstance(self.host.order(), Rollback)

    def test_a_release_that_waits_for_a_reboot_loses_its_boot_entry_to_the_way_back(self) -> None:
        self.host.soaking(R)
        self.host.dispatch(S, NEWER)
        self.host.tell(S, "ActivationStarted")
        self.host.tell(S, "ActivationDeferred", boot_id="boot-1")
        self.fails()
        self.assertEqual(self.host.order(), Rollback(R, PRIOR, TARGET, True, TARGET))
        self.assertIs(self.host.record(S).state, State.DEFERRED, "a reboot may still bring it")
        self.host.current = PRIOR
        self.host.tell(R, "RollbackComplete", reverted_to_closure=PRIOR)
        self.host.tick()
        record = self.host.record(S)
        self.assertEqual((record.state, record.rollback_owed), (State.FAILED, False))
        self.assertTrue(str(self.host.journal.read(S)[-1].event["stderrTail"]).startswith("superseded-failed: "))
        self.assertNotIn((S, NEWER), self.host.quarantined, "nothing of it was tried")

    def test_a_debt_is_not_forgotten_while_its_heir_waits_for_a_reboot(self) -> None:
        self.host.soaking(R)
        self.fails()
        self.host.order()
        self.host.put(RollbackAttemptFailed(R, "fire"))
        self.host.dispatch(S, NEWER)
        self.host.order()
        self.host.tell(S, "ActivationStarted")
        self.host.tell(S, "ActivationDeferred", boot_id="boot-1")
        self.assertEqual(self.host.order(), Rollback(R, PRIOR, TARGET, True, TARGET))

    def test_a_release_converges_while_its_successor_waits_for_a_reboot(self) -> None:
        self.host.soaking(R, soak_floor=0)
        self.host.dispatch(S, NEWER)
        self.host.tell(S, "ActivationStarted")
        self.host.tell(S, "ActivationDeferred", boot_id="boot-1")
        self.host.tell(R, "ProbeResult", status=PASS)
        self.host.tick()
        self.assertIs(self.host.record(R).state, State.CONVERGED)
        self.host.boot_id = "boot-2"
        self.host.restart(NEWER)
        self.assertIs(self.host.record(S).state, State.SOAKING)

    def test_the_reboot_that_a_successor_waited_for_is_no_fallback_of_the_one_before(self) -> None:
        self.host.soaking(R)
        self.host.dispatch(S, NEWER)
        self.host.tell(S, "ActivationStarted")
        self.host.tell(S, "ActivationDeferred", boot_id="boot-1")
        self.host.boot_id = "boot-2"
        self.host.restart(NEWER)
        self.host.tick()
        self.assertIs(self.host.record(S).state, State.SOAKING)
        self.assertIs(self.host.record(R).state, State.SOAKING, "superseded, and nothing more")

    def test_what_a_reboot_brings_is_watched_although_it_was_superseded(self) -> None:
        self.host.dispatch(R, TARGET)
        self.host.tell(R, "ActivationStarted")
        self.host.tell(R, "ActivationDeferred", boot_id="boot-1")
        self.host.dispatch(S, NEWER)
        self.host.boot_id = "boot-2"
        self.host.restart(TARGET)
        self.host.tick()
        self.assertIs(self.host.record(R).state, State.SOAKING)
        self.assertEqual(self.host.probe_order(), ResetProbes(R))
        self.assertEqual(self.host.record(S).prior_closure, PRIOR)

    def test_a_boot_entry_that_was_written_while_its_successor_was_accepted_is_known(self) -> None:
        self.host.dispatch(R, TARGET)
        self.host.tell(R, "ActivationStarted")
        self.host.dispatch(S, NEWER)
        self.assertIs(self.host.tell(R, "ActivationDeferred", boot_id="boot-1"), Answer.ACCEPTED)
        self.assertIs(self.host.record(R).state, State.DEFERRED)


if __name__ == "__main__":
    unittest.main()
