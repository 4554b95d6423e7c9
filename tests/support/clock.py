"""A clock that only tests move."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone

START = datetime(2026, 5, 16, 1, 30, tzinfo=timezone.utc)


class FakeClock:
    """Implements `nixfleet_agent.clock.Clock`; a wait with a timeout moves the clock by it and returns at once."""

    def __init__(self, now: datetime = START) -> None:
        self._now = now
        self._monotonic = 1000.0
        self._lock = threading.Lock()

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        if timeout is None:
            return event.wait()
        if not event.is_set():
            self.advance(timeout)
        return event.is_set()

    def advance(self, seconds: float) -> None:
        """Time goes by."""
        with self._lock:
            self._now += timedelta(seconds=seconds)
            self._monotonic += seconds

    def step_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        with self._lock:
            self._now += timedelta(seconds=seconds)
