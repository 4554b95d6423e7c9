"""Rollouts that meet: one supersedes, fails or hands back while another is at some point of its own life."""

from __future__ import annotations

import unittest

from nixfleet_agent.runtime.inputs import RollbackAttemptFailed
from nixfleet_agent.runtime.orders import ActivateForward
from nixfleet_agent.state_machine import ProbeStatus, State
from tests.runtime.harness import HALT, NEWER, TARGET, THIRD, TestHost

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
        self.assertEqual(self.host.order(), ActivateForward(U, THIRD, TARGET, "rollback-and-halt"))


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


if __name__ == "__main__":
    unittest.main()
