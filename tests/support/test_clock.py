"""The fake clock keeps its promises; without them every test on top would prove nothing."""

from __future__ import annotations

import threading
import unittest
from datetime import timedelta
from unittest import mock

from tests.support.clock import EPOCH, PATIENCE, FakeClock


class FakeClockPromises(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = FakeClock()
        self.event = threading.Event()
        self.results: list[bool] = []

    def sleeper(self, timeout: float | None) -> threading.Thread:
        thread = threading.Thread(target=lambda: self.results.append(self.clock.wait(self.event, timeout)))
        thread.start()
        self.addCleanup(thread.join, PATIENCE)
        self.addCleanup(self.event.set)
        return thread

    def test_advance_moves_both_clocks_and_step_only_the_wall_clock(self) -> None:
        self.clock.advance(5)
        self.clock.step(-60)
        self.assertEqual(self.clock.now(), EPOCH + timedelta(seconds=-55))
        self.assertEqual(self.clock.monotonic(), 1005.0)

    def test_a_wait_ends_exactly_when_its_time_has_come(self) -> None:
        thread = self.sleeper(10)
        self.clock.until_waiting(1)
        self.clock.advance(9.999)
        self.clock.until_waiting(1)
        self.assertEqual(self.results, [])
        self.clock.advance(0.001)
        thread.join(PATIENCE)
        self.assertEqual(self.results, [False])

    def test_a_step_of_the_wall_clock_wakes_nobody(self) -> None:
        self.sleeper(10)
        self.clock.until_waiting(1)
        self.clock.step(3600)
        self.assertEqual(self.clock.next_deadline(), 1010.0)
        self.clock.until_waiting(1)
        self.assertEqual(self.results, [])

    def test_setting_the_event_ends_the_wait(self) -> None:
        thread = self.sleeper(None)
        self.clock.until_waiting(1)
        self.event.set()
        thread.join(PATIENCE)
        self.assertEqual(self.results, [True])

    def test_a_wait_for_no_time_or_on_a_set_event_returns_at_once(self) -> None:
        self.assertFalse(self.clock.wait(self.event, 0))
        self.event.set()
        self.assertTrue(self.clock.wait(self.event, None))

    def test_time_that_passes_between_a_sleepers_look_and_its_sleep_wakes_it(self) -> None:
        looks = iter(range(2))
        passes = threading.Thread(target=self.clock.advance, args=(10,))
        read = self.clock.monotonic

        def look() -> float:
            seen = read()
            if next(looks, None) == 1:
                passes.start()
                while read() == seen:
                    threading.Event().wait(0.001)
            return seen

        with mock.patch.object(self.clock, "monotonic", look):
            thread = self.sleeper(10)
            thread.join(PATIENCE)
        passes.join(PATIENCE)
        self.assertEqual(self.results, [False])

    def test_no_wake_up_is_lost_between_many_threads(self) -> None:
        threads = [self.sleeper(1 + number % 7) for number in range(40)]
        for _ in range(7):
            self.clock.advance(1)
        # A thread that began late measures from its own beginning.
        while any(thread.is_alive() for thread in threads):
            self.clock.advance(1)
            threads = [thread for thread in threads if thread.is_alive()]
        self.assertEqual(self.results, [False] * 40)


if __name__ == "__main__":
    unittest.main()
