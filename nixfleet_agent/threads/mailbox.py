"""Where the reducer leaves the latest order for a worker: it never blocks, and no forward order replaces a rollback."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.shutdown import ShutdownToken

Order = TypeVar("Order")


class Mailbox(Generic[Order]):
    """One slot. ``outranks(waiting, new)`` says that the order that waits must not be overwritten by the new one."""

    def __init__(
        self, clock: Clock, shutdown: ShutdownToken, outranks: Callable[[Order, Order], bool] | None = None
    ) -> None:
        self._clock = clock
        self._shutdown = shutdown
        self._outranks = outranks or (lambda waiting, new: False)
        self._lock = threading.Lock()
        self._filled = shutdown.wakeup()
        self._slot: Order | None = None

    def put(self, order: Order, *, replace: bool = False) -> bool:
        """Leave ``order``; False when what waits outranks it and stays. ``replace`` is for the one who knows better."""
        with self._lock:
            if not replace and self._slot is not None and self._outranks(self._slot, order):
                return False
            self._slot = order
            self._filled.set()
        return True

    def peek(self) -> Order | None:
        """The order that waits, left where it is: a worker in the middle of another asks whether to stop."""
        with self._lock:
            return self._slot

    @property
    def filled(self) -> threading.Event:
        """Set while an order waits, and by shutdown: what a worker waits on in the middle of its work."""
        return self._filled

    def take(self, timeout: float | None = None) -> Order | None:
        """The order, waiting up to ``timeout`` seconds (None: for ever); None when time is up or at shutdown."""
        if not self._shutdown.is_set:
            self._clock.wait(self._filled, timeout)
        with self._lock:
            order, self._slot = self._slot, None
            if not self._shutdown.is_set:
                self._filled.clear()
        return None if self._shutdown.is_set else order
