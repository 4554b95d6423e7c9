"""The base of every worker: one named thread, its life signs, and what happens when it dies."""

from __future__ import annotations

import logging
from typing import ClassVar

from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.shutdown import ShutdownToken


class Worker:
    """One loop in one thread, named after its module. Subclasses write ``run`` and nothing of the life cycle.

    ``limit`` is how many seconds a worker may go without a sign of life before the watchdog is no longer fed; a
    subclass raises it to more than its longest legitimate wait. One whose work is ``telemetry`` may be silent for
    ever: that is told, and the watchdog fed all the same.
    """

    name: ClassVar[str]
    telemetry: ClassVar[bool] = False
    limit: float = 180.0

    def __init__(self, shutdown: ShutdownToken, clock: Clock) -> None:
        self.shutdown = shutdown
        self.clock = clock
        self.log = logging.getLogger(f"nixfleet_agent.{self.name}")
        self._last_sign = clock.monotonic()

    def run(self) -> None:
        """The loop; returns once shutdown is set, and whatever it raises is the supervisor's to handle."""
        raise RuntimeError(f"worker {self.name} has no loop")

    def alive(self) -> None:
        """Called by the worker in every turn of its loop."""
        self._last_sign = self.clock.monotonic()

    def silent_for(self) -> float:
        """Seconds since the last sign of life."""
        return self.clock.monotonic() - self._last_sign
