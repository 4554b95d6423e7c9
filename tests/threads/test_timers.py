"""Timers: no step of the wall clock, no change to summer time and no long gap delays or bunches what is due."""

from __future__ import annotations

import os
import random
import threading
import time
import unittest
from unittest import mock

from nixfleet_agent.threads.backoff import Backoff
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.threads.timers import Timer
from tests.support.clock import PATIENCE, FakeClock


class Ticking(unittest.TestCase):
    """A thread that writes down when it was woken, as a worker would."""

    def setUp(self) -> None:
        self.clock = FakeClock()
        self.shutdown = ShutdownToken(self.clock)
        self.woken: list[float] = []
        self.ended: list[bool] = []

    def start(self, interval: float = 60.0) -> Timer:
        timer = Timer(interval, self.clock, self.shutdown)

        def run() -> None:
            while timer.wait():
                self.woken.append(self.clock.monotonic() - 1000.0)
            self.ended.append(True)

        self.thread = threading.Thread(target=run)
        self.thread.start()
        self.addCleanup(self.thread.join, PATIENCE)
        self.addCleanup(self.shutdown.set)
        self.clock.until_waiting(1)
        return timer

    def pass_time(self, *seconds: float) -> None:
        for step in seconds:
            self.clock.advance(step)
            self.clock.until_waiting(1)

    def test_it_is_due_at_once_and_then_each_interval(self) -> None:
        self.start()
        self.assertEqual(self.woken, [0.0])
        self.pass_time(59.9, 0.1, 60, 30, 30)
        self.assertEqual(self.woken, [0.0, 60.0, 120.0, 180.0])

    def test_fractions_of_a_second_are_kept(self) -> None:
        self.start(0.25)
        self.pass_time(0.25, 0.25, 0.125)
        self.assertEqual(self.woken, [0.0, 0.25, 0.5])

    def test_a_clock_that_is_set_in_either_direction_changes_nothing(self) -> None:
        self.start()
        for step in (3600, -7200, 86_400, -365 * 86_400):
            self.clock.step(step)
            self.pass_time(30, 30)
        self.assertEqual(self.woken, [0.0, 60.0, 120.0, 180.0, 240.0])

    def test_a_change_to_summer_time_changes_nothing(self) -> None:
        # `schedule` computes with naive local time: 2026-03-29 02:00 does not exist in Berlin, 03:00 comes at once.
        with mock.patch.dict(os.environ, {"TZ": "Europe/Berlin"}):
            time.tzset()
            self.addCleanup(time.tzset)
            self.start(600)
            self.pass_time(*[600] * 4)
        self.assertEqual(self.woken, [0.0, 600.0, 1200.0, 1800.0, 2400.0])

    def test_after_a_long_gap_it_is_due_once_and_not_many_times(self) -> None:
        self.start()
        self.pass_time(3600, 59, 1)
        self.assertEqual(self.woken, [0.0, 3600.0, 3660.0])

    def test_the_cadence_does_not_drift_with_late_wake_ups(self) -> None:
        self.start()
        self.pass_time(65, 54, 1, 60)
        self.assertEqual(self.woken, [0.0, 65.0, 120.0, 180.0])

    def kick(self, timer: Timer) -> None:
        timer.kick()
        until = time.monotonic() + PATIENCE
        while timer.kicked.is_set() and time.monotonic() < until:
            threading.Event().wait(0.0005)
        self.clock.until_waiting(1)

    def test_a_kick_makes_it_due_now_and_keeps_the_cadence(self) -> None:
        timer = self.start()
        self.pass_time(20)
        self.kick(timer)
        self.assertEqual(self.woken, [0.0, 20.0])
        self.pass_time(40)
        self.assertEqual(self.woken, [0.0, 20.0, 60.0])

    def test_shutdown_ends_it_at_once(self) -> None:
        timer = self.start()
        self.shutdown.set()
        self.thread.join(PATIENCE)
        self.assertEqual((self.woken, self.ended, timer.wait()), ([0.0], [True], False))


class Until(unittest.TestCase):
    """``wait`` with a second of its own, in one thread."""

    def setUp(self) -> None:
        self.clock = FakeClock()
        self.shutdown = ShutdownToken(self.clock)
        self.timer = Timer(60.0, self.clock, self.shutdown)
        self.assertTrue(self.timer.wait())

    def test_a_second_that_has_passed_makes_it_due_and_does_not_move_the_cadence(self) -> None:
        self.clock.advance(5)
        self.assertTrue(self.timer.wait(1003.0))
        self.assertTrue(self.timer.wait(1005.0))
        self.clock.advance(55)
        self.assertTrue(self.timer.wait(5000.0))

    def test_a_second_after_the_interval_is_not_waited_for(self) -> None:
        self.clock.advance(60)
        self.assertTrue(self.timer.wait(2000.0))

    def test_counting_can_begin_anew(self) -> None:
        self.clock.advance(50)
        self.timer.reset()
        woken = threading.Thread(target=self.timer.wait)
        woken.start()
        self.clock.until_waiting(1)
        self.assertEqual(self.clock.next_deadline(), 1110.0)
        self.shutdown.set()
        woken.join(PATIENCE)


class Backoffs(unittest.TestCase):
    def test_double_up_to_the_maximum_with_full_jitter_and_begin_anew_after_a_success(self) -> None:
        backoff = Backoff(1.0, 60.0, random.Random(7))
        ceilings = [1, 2, 4, 8, 16, 32, 60, 60, 60]
        for number, ceiling in enumerate(ceilings):
            self.assertEqual(backoff.failures, number)
            self.assertTrue(0.05 * ceiling <= backoff.next() <= ceiling)
        backoff.reset()
        self.assertEqual(backoff.failures, 0)
        self.assertLessEqual(backoff.next(), 1.0)

    def test_spread_over_the_whole_range_so_that_a_fleet_does_not_return_in_step(self) -> None:
        waits = [Backoff(60.0, 60.0, random.Random(seed)).next() for seed in range(200)]
        self.assertTrue(min(waits) < 10 and max(waits) > 50)

    def test_are_never_under_what_the_server_asked_for(self) -> None:
        self.assertEqual(Backoff(1.0, 60.0).next(at_least=600.0), 600.0)

    def test_stay_finite_after_any_number_of_failures(self) -> None:
        backoff = Backoff(1.0, 60.0)
        for _ in range(2000):
            self.assertLessEqual(backoff.next(), 60.0)


if __name__ == "__main__":
    unittest.main()
