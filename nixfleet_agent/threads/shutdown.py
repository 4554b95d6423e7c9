"""The token by which a worker learns that it must stop, and by which its waits are cut short."""

from __future__ import annotations

import threading

from nixfleet_agent.threads.clock import Clock


class ShutdownToken:
    """Set once; every wait made through it ends at once when it is set."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._set = threading.Event()
        self._lock = threading.Lock()
        self._wakeups: list[threading.Event] = []

    @property
    def is_set(self) -> bool:
        return self._set.is_set()

    def set(self) -> None:
        """Stop everything that waits on this token or on a wake-up made by it."""
        with self._lock:
            self._set.set()
            wakeups = list(self._wakeups)
        for wakeup in wakeups:
            wakeup.set()

    def wait(self, seconds: float | None) -> bool:
        """Sleep for ``seconds``; True at once when shutdown begins."""
        return self._clock.wait(self._set, seconds)

    def wakeup(self, event: threading.Event | None = None) -> threading.Event:
        """An event (the given one) that shutdown sets too, so that a thread waits for work and end in one place."""
        event = event or threading.Event()
        with self._lock:
            self._wakeups.append(event)
            if self._set.is_set():
                event.set()
        return event

    def forget(self, wakeup: threading.Event) -> None:
        """Stop tracking a wake-up whose owner is done."""
        with self._lock:
            if wakeup in self._wakeups:
                self._wakeups.remove(wakeup)
