"""The end of what one call, run or child may take, on the monotonic clock."""

from __future__ import annotations

import threading

from nixfleet_agent.threads.clock import Clock


class Deadline:
    """``seconds`` from now."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self.ends = clock.monotonic() + seconds

    def left(self) -> float:
        """Seconds left.

        Raises:
            TimeoutError: none are.
        """
        left = self.ends - self._clock.monotonic()
        if left <= 0:
            raise TimeoutError("time is up")
        return left

    def wait(self, event: threading.Event) -> bool:
        """Block until ``event`` is set: True; False at the end (raises TimeoutError where that is past already)."""
        return self._clock.wait(event, self.left())

    @property
    def over(self) -> bool:
        return self._clock.monotonic() >= self.ends
