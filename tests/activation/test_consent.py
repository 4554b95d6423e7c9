"""A switch waits for as long as one of this host's own programs refuses it, and nothing is switched meanwhile."""

from __future__ import annotations

import unittest

from nixfleet_agent.activation.model import Completed, Forward, Interrupted
from tests.activation.case import PipelineCase


class ConsentTest(PipelineCase):
    def test_the_switch_waits_until_nobody_refuses_and_then_goes_on(self) -> None:
        answers = ["three users left", "three users left", "one user left", None]
        asked: list[tuple[str, str | None, str | None]] = []

        def consent(intent: Forward) -> str | None:
            asked.append((intent.target, self.host.running(), self.host.profile_closure()))
            return answers.pop(0)

        self.consent = consent
        outcome = self.forward(self.v2)
        self.assertIsInstance(outcome, Completed)
        self.assertEqual(asked, [(self.v2, self.v1, self.v1)] * 4, "what boots next is what runs while it waits")
        told = [(waiting.kind, waiting.reason, waiting.tries) for waiting in self.waits if waiting]
        self.assertEqual(
            told, [("veto", "three users left", 1), ("veto", "three users left", 2), ("veto", "one user left", 3)]
        )
        self.assertIsNone(self.waits[-1])

    def test_a_newer_release_or_the_end_of_the_agent_ends_the_wait_and_nothing_was_fired(self) -> None:
        for reason in ("superseded", "shutdown"):
            with self.subTest(reason):
                self.reason = None
                self.wake.clear()

                def refuse(intent: Forward, reason: str = reason) -> str:
                    self.interrupt(reason)
                    return "not today"

                self.consent = refuse
                self.assertEqual(self.forward(self.v2), Interrupted(reason))
                self.assertEqual((self.host.running(), self.host.profile_closure()), (self.v1, self.v1))
                self.assertEqual(self.records("forward"), [])

    def test_a_rollback_asks_nobody(self) -> None:
        self.assertIsInstance(self.forward(self.v2), Completed)

        def refuse(intent: Forward) -> str:
            raise AssertionError("a rollback has asked")

        self.consent = refuse
        self.pipeline().rollback(self.back(self.v2))
        self.assertEqual(self.host.running(), self.v1)


if __name__ == "__main__":
    unittest.main()
