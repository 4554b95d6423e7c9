"""Advance ticker: once a second it reads what runs and tells the reducer, so that soaks and failures come due."""

from __future__ import annotations

from collections.abc import Callable

from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.rollout.inputs import AdvanceTick
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.threads.timers import Timer
from nixfleet_agent.threads.worker import Worker


class AdvanceTicker(Worker):
    """``read_current`` returns the basename that runs, or None when it can't be read."""

    name = "advance_ticker"

    def __init__(
        self,
        shutdown: ShutdownToken,
        clock: Clock,
        inputs: InputQueue,
        read_current: Callable[[], str | None],
        interval: float,
    ) -> None:
        super().__init__(shutdown, clock)
        self.limit = 60.0 + 3 * interval
        self._inputs = inputs
        self._read_current = read_current
        self._interval = interval

    def run(self) -> None:
        """A tick that finds the queue full is skipped: the next one says more."""
        timer = Timer(self._interval, self.clock, self.shutdown)
        while timer.wait():
            self.alive()
            self._inputs.put_latest(AdvanceTick(self._read_current()))
