"""Long polls asleep: who is woken, who is sent home."""

from __future__ import annotations

import queue
import threading
import unittest
from collections.abc import Callable

from nixfleet_agent.local_cp.waiters import Waiters
from nixfleet_agent.threads.clock import SystemClock

LONG = 30.0


class LongPolls(unittest.TestCase):
    def setUp(self) -> None:
        self.waiters = Waiters(SystemClock())
        self.turns: dict[str, queue.SimpleQueue[str]] = {"a": queue.SimpleQueue(), "b": queue.SimpleQueue()}
        self.asked: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()

    def poll(self, hostname: str, seconds: float = LONG, gone: Callable[[], bool] = lambda: False) -> None:
        """A poll in a thread of its own, which has found nothing yet when this returns."""

        def fetch() -> str | None:
            self.asked.put(hostname)
            return None if self.turns[hostname].empty() else self.turns[hostname].get()

        def run() -> None:
            self.answers.put((hostname, self.waiters.wait(hostname, seconds, fetch, gone)))

        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join, LONG)
        self.addCleanup(self.waiters.stop)
        if not gone():
            self.assertEqual(self.asked.get(timeout=LONG), hostname)

    def answer(self) -> tuple[str, str | None]:
        return self.answers.get(timeout=LONG)

    def test_only_the_host_that_has_a_turn_is_woken(self) -> None:
        self.poll("a")
        self.poll("b")
        self.turns["b"].put("turn")
        self.waiters.wake("b")
        self.assertEqual(self.answer(), ("b", "turn"))
        self.assertEqual(self.asked.get(timeout=LONG), "b")
        self.assertTrue(self.asked.empty())
        self.assertEqual(len(self.waiters), 1)

    def test_a_wait_that_is_over_has_no_answer(self) -> None:
        self.poll("a", seconds=0.05)
        self.assertEqual(self.answer(), ("a", None))

    def test_a_turn_that_waits_already_needs_no_wake(self) -> None:
        self.turns["a"].put("turn")
        self.poll("a")
        self.assertEqual(self.answer(), ("a", "turn"))

    def test_nothing_is_fetched_for_a_client_that_is_gone(self) -> None:
        self.turns["a"].put("turn")
        self.poll("a", gone=lambda: True)
        self.assertEqual(self.answer(), ("a", None))
        self.assertFalse(self.turns["a"].empty())

    def test_an_older_poll_ends_when_a_newer_comes_and_takes_nothing(self) -> None:
        self.poll("a")
        self.poll("a")
        self.assertEqual(self.answer(), ("a", None))
        self.turns["a"].put("turn")
        self.waiters.wake("a")
        self.assertEqual(self.answer(), ("a", "turn"))
        self.assertEqual(len(self.waiters), 0)

    def test_a_stop_ends_all_and_every_later_one(self) -> None:
        self.poll("a")
        self.poll("b")
        self.waiters.stop()
        self.assertEqual({self.answer(), self.answer()}, {("a", None), ("b", None)})
        self.turns["a"].put("turn")
        self.assertIsNone(self.waiters.wait("a", LONG, lambda: self.turns["a"].get(), lambda: False))


if __name__ == "__main__":
    unittest.main()
