"""The ticker: once an interval it tells what runs at that moment, skips a turn rather than block, and ends at once."""

from __future__ import annotations

import threading
import unittest

from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.rollout.inputs import AdvanceTick, ReplayRequested
from nixfleet_agent.runtime.workers.advance_ticker import AdvanceTicker
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.support.clock import PATIENCE, FakeClock


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = FakeClock()
        self.shutdown = ShutdownToken(self.clock)
        self.current: str | None = "a"
        self.addCleanup(self.stop)

    def start(self, interval: float = 1.0, capacity: int = 64) -> None:
        self.inputs = InputQueue(self.shutdown, capacity)
        self.worker = AdvanceTicker(self.shutdown, self.clock, self.inputs, lambda: self.current, interval)
        self.thread = threading.Thread(target=self.worker.run, name="advance_ticker")
        self.thread.start()
        self.clock.until_waiting()

    def stop(self) -> None:
        self.shutdown.set()
        self.thread.join(PATIENCE)
        self.assertFalse(self.thread.is_alive(), "the ticker does not end")

    def pass_by(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.clock.until_waiting()

    def test_each_second_tells_what_was_read_just_then(self) -> None:
        self.start()
        self.assertEqual(self.inputs.get(0), AdvanceTick("a"), "the first comes at once")
        for current in ("b", None, "c"):
            self.current = current
            self.pass_by(0.5)
            self.assertIsNone(self.inputs.get(0), "not before its time")
            self.pass_by(0.5)
            self.assertEqual(self.inputs.get(0), AdvanceTick(current))

    def test_ticks_that_nobody_took_are_one_and_the_latest(self) -> None:
        self.start()
        for current in "bcd":
            self.current = current
            self.pass_by(1)
        self.assertEqual((self.inputs.depth(), self.inputs.get(0)), (1, AdvanceTick("d")))

    def test_a_full_queue_costs_ticks_and_blocks_nothing(self) -> None:
        self.start(capacity=1)
        self.inputs.get(0)
        self.inputs.put(ReplayRequested((), 1))
        self.pass_by(5)
        self.assertEqual(self.inputs.get(0), ReplayRequested((), 1))
        self.assertIsNone(self.inputs.get(0))
        self.pass_by(1)
        self.assertEqual(self.inputs.get(0), AdvanceTick("a"))

    def test_a_step_of_the_wall_clock_neither_delays_nor_bunches_ticks(self) -> None:
        self.start()
        for step in (-86_400, 86_400):
            self.inputs.get(0)
            self.clock.step(step)
            self.pass_by(0.9)
            self.assertIsNone(self.inputs.get(0))
            self.pass_by(0.1)
            self.assertEqual(self.inputs.get(0), AdvanceTick("a"))

    def test_its_limit_covers_any_interval(self) -> None:
        for interval in (0.1, 1.0, 3600.0):
            self.start(interval)
            self.pass_by(interval)
            self.assertLess(self.worker.silent_for() + interval, self.worker.limit)
            self.stop()
            self.shutdown = ShutdownToken(self.clock)


if __name__ == "__main__":
    unittest.main()
