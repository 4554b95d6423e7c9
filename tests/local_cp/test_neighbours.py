"""Agents on this machine are asked what they wait for: only while somebody looks, and what none says is not known."""

from __future__ import annotations

import tempfile
import threading
import unittest
from collections.abc import Mapping
from pathlib import Path

from nixfleet_agent.errors import ConfigError
from nixfleet_agent.local_cp.neighbours import EVERY_SECS, MOST_ASKED, VIEWED_SECS, Neighbours, waiting_reason
from nixfleet_agent.telemetry.status_socket import StatusSocketWorker
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.support.clock import FakeClock

HELD = {"dispatch": {"reason": "held back by an operator: disk swap"}, "waiting": None}


class Words(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="neighbours-")
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        self.asked: list[str] = []
        self.hosts = ["web-01"]
        self.clock = FakeClock()
        self.neighbours = Neighbours(self.folder, lambda: self.hosts, self.clock)
        self.neighbours.start()
        self.addCleanup(self.neighbours.stop)

    def agent(self, name: str, status: object) -> None:
        state = self.folder / name / "state"
        state.mkdir(parents=True)

        def answer(request: Mapping[str, object]) -> object:
            self.asked.append(name)
            if isinstance(status, ConfigError):
                raise status
            return status

        clock = SystemClock()
        shutdown = ShutdownToken(clock)
        worker = StatusSocketWorker(shutdown, clock, state, {"status": answer})
        thread = threading.Thread(target=worker.run)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(shutdown.set)
        self.assertTrue(worker.listening.wait(30))

    def after_a_round(self) -> Mapping[str, str]:
        self.neighbours.words()
        self.clock.until_waiting()
        return self.neighbours.words()

    def test_an_agents_own_words_are_there_after_a_round(self) -> None:
        self.agent("web-01", HELD)
        self.assertEqual(self.neighbours.words(), {})
        self.assertEqual(self.after_a_round(), {"web-01": "held back by an operator: disk swap"})

    def test_one_that_waits_for_nothing_is_down_or_refuses_has_none(self) -> None:
        self.agent("web-01", {"dispatch": None})
        self.agent("web-03", ConfigError("not now"))
        self.agent("web-04", HELD)
        self.hosts = ["web-01", "web-02", "web-03", "web-04"]
        self.assertEqual(set(self.after_a_round()), {"web-04"})

    def test_only_those_that_are_worth_it_are_asked_and_not_too_many(self) -> None:
        self.agent("web-01", HELD)
        self.agent("web-02", HELD)
        self.hosts = ["nobody"] * MOST_ASKED + ["web-01"]
        self.assertEqual(self.after_a_round(), {})
        self.assertEqual(self.asked, [])

    def test_while_nobody_looks_nobody_is_asked(self) -> None:
        self.agent("web-01", HELD)
        self.after_a_round()
        rounds = 0
        while self.clock.monotonic() < 1000 + 3 * VIEWED_SECS:
            before = len(self.asked)
            self.clock.advance(EVERY_SECS)
            if self.clock.monotonic() < 1000 + VIEWED_SECS:
                self.clock.until_waiting()
                rounds += len(self.asked) > before
        self.assertEqual(rounds, VIEWED_SECS / EVERY_SECS - 1)
        asked = len(self.asked)
        self.assertLessEqual(asked, VIEWED_SECS / EVERY_SECS + 1)
        self.after_a_round()
        self.assertGreater(len(self.asked), asked)


class Reason(unittest.TestCase):
    def test_a_turn_that_is_kept_or_a_step_that_waits(self) -> None:
        self.assertEqual(waiting_reason(HELD), "held back by an operator: disk swap")
        self.assertEqual(waiting_reason({"dispatch": {"reason": None}, "waiting": {"reason": "a veto"}}), "a veto")
        for status in ({}, {"dispatch": {}}, {"waiting": {"reason": 3}}):
            self.assertIsNone(waiting_reason(status))


if __name__ == "__main__":
    unittest.main()
