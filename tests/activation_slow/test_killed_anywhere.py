"""SIGKILL at every durable-write boundary of a whole forward and a whole rollback: the host ends in the same state."""

from __future__ import annotations

import signal

from nixfleet_agent.activation.model import Completed, Failed, RolledBack
from tests.activation import agent_process
from tests.activation.case import ROLLOUT, PipelineCase, processes_of, until
from tests.support.nix import FAIL


class KilledAnywhereTest(PipelineCase):
    def killed_at(self, number: int, intent: object) -> bool:
        """Run a process that dies at the given boundary; False when it came to its end before."""
        process = agent_process.start(self.host, intent, kill_at=number)  # type: ignore[arg-type]
        said, _ = process.communicate(timeout=30)
        self.assertIn(process.returncode, (0, -signal.SIGKILL), said)
        return process.returncode != 0

    def assert_settled(self, closure: str) -> None:
        self.assertEqual((self.host.running(), self.host.profile_closure()), (closure, closure))
        self.assertEqual(self.records("guard"), [])
        until(lambda: not processes_of(self.host.root), "the end of everything")

    def test_a_forward_killed_anywhere_is_completed_with_one_switch(self) -> None:
        number = 1
        while self.killed_at(number, self.intent(self.v2)):
            self.assertEqual(self.resume(self.v2), Completed(self.v2, 0, ()), f"killed at boundary {number}")
            self.assert_settled(self.v2)
            self.assertEqual(self.host.switches(), [f"switch {self.v2}"], f"killed at boundary {number}")
            self.setUp()
            number += 1
        self.assertGreater(number, 15, "the boundaries were really met")

    def test_a_rollback_killed_anywhere_is_completed(self) -> None:
        bad = self.nixery.system("bad", FAIL)
        number = 1
        while True:
            self.assertIsInstance(self.forward(bad), Failed)
            if not self.killed_at(number, self.back(bad)):
                break
            self.assertEqual(self.pipeline().rollback(self.back(bad)), RolledBack(self.v1, 0), f"boundary {number}")
            self.assert_settled(self.v1)
            self.assertIn(f"switch {self.v1}", self.host.switches())
            self.assertLessEqual(self.host.switches().count(f"switch {self.v1}"), 1, f"boundary {number}")
            self.setUp()
            number += 1
        self.assertGreater(number, 5, "the boundaries were really met")
        self.pipeline().release(ROLLOUT)
