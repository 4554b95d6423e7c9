"""The token by which a worker learns that it must stop, and by which its waits are cut short."""

from __future__ import annotations

import threading

from nixfleet_agent.threads.cancel import CancelToken
from nixfleet_agent.threads.clock import Clock


class ShutdownToken(CancelToken):
    """Set once; every wait made through it, and on a wake-up made by it, ends at once when it is set."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, seconds: float | None) -> bool:
        """Sleep for ``seconds``; True at once when shutdown begins."""
        return self._clock.wait(self._set, seconds)

    def wakeup(self, event: threading.Event | None = None) -> threading.Event:
        """An event (the given one) that shutdown sets too, so that a thread waits for work and end in one place."""
        event = event or threading.Event()
        self._call(event, event.set)
        return event

    def forget(self, wakeup: threading.Event) -> None:
        """Stop tracking a wake-up whose owner is done."""
        self._forget(wakeup)
