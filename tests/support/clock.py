"""A clock that only tests move: no waiting thread ever depends on how fast the machine is.

As a test uses it:

    clock = FakeClock()
    thread = threading.Thread(target=worker.run); thread.start()
    clock.until_waiting(1)       # the worker sleeps on the clock now
    clock.advance(30)            # and is woken exactly when its time has come
    clock.step(-3600)            # somebody corrects the wall clock; nobody may wake of it
"""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta, timezone
from typing import Any

EPOCH = datetime(2026, 5, 16, 1, 0, 0, tzinfo=timezone.utc)
#: A test that waits this long (real seconds) for a thread has found a deadlock. Long, because it costs nothing where
#: all is well: with thirty busy processes to a core a thread may not run for ten seconds.
PATIENCE = 60.0


class FakeClock:
    """Implements ``nixfleet_agent.threads.clock.Clock``."""

    def __init__(self, wall: datetime = EPOCH, monotonic: float = 1000.0) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._wall = wall
        self._monotonic = monotonic
        self._waiters: dict[object, tuple[threading.Event, float | None]] = {}

    def now(self) -> datetime:
        with self._lock:
            return self._wall

    def monotonic(self) -> float:
        with self._lock:
            return self._monotonic

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        """Returns when ``event`` is set or the fake time has passed, and for no other reason."""
        # The event's own condition is what `set` notifies. `advance` notifies it too, and because it is held, and the
        # waiter known, from before the look at the time until the sleep begins, neither can come between and be missed.
        condition: Any = event._cond  # type: ignore[attr-defined]
        token = object()
        with condition:
            deadline = None if timeout is None else self.monotonic() + timeout
            self._register(token, event, deadline)
            try:
                while not event.is_set() and (deadline is None or self.monotonic() < deadline):
                    condition.wait()
            finally:
                self._forget(token)
            return event.is_set()

    def advance(self, seconds: float) -> None:
        """Let time pass, on both clocks."""
        assert seconds >= 0, "time does not run backwards; step() sets the wall clock"
        with self._lock:
            self._monotonic += seconds
            self._wall += timedelta(seconds=seconds)
            due = [event for event, deadline in self._waiters.values() if deadline is not None]
        for event in due:
            condition: Any = event._cond  # type: ignore[attr-defined]
            with condition:
                condition.notify_all()

    def step(self, seconds: float) -> None:
        """Set the wall clock; no time passes."""
        with self._lock:
            self._wall += timedelta(seconds=seconds)

    def until_waiting(self, count: int = 1, on: threading.Event | None = None) -> None:
        """Block until ``count`` threads wait on this clock for a time that has not come; fails when they don't.

        ``on``: only those count that this event would wake, where a thread has more than one reason to wait.
        """
        until = time.monotonic() + PATIENCE
        with self._changed:
            while self._sleeping(on) < count:
                left = until - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"{self._sleeping(on)} threads wait on the clock, not {count}")
                self._changed.wait(left)

    def waits(self, on: threading.Event) -> bool:
        """Whether a thread waits now for this event or for a time that has not come."""
        with self._lock:
            return self._sleeping(on) > 0

    def next_deadline(self) -> float | None:
        """The earliest monotonic second that a thread waits for; None when none does."""
        with self._lock:
            return min((at for _, at in self._waiters.values() if at is not None), default=None)

    def _sleeping(self, on: threading.Event | None) -> int:
        return sum(
            on in (None, event) and not event.is_set() and (deadline is None or deadline > self._monotonic)
            for event, deadline in self._waiters.values()
        )

    def _register(self, token: object, event: threading.Event, deadline: float | None) -> None:
        with self._changed:
            self._waiters[token] = (event, deadline)
            self._changed.notify_all()

    def _forget(self, token: object) -> None:
        with self._lock:
            self._waiters.pop(token, None)
