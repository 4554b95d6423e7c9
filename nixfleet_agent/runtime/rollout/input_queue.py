"""The reducer's bounded queue: workers wait for room in slices, periodic inputs replace what still waits."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from nixfleet_agent.runtime.rollout.inputs import AdvanceTick, HealthChecksReload, ManifestSetUpdated, ReducerInput
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.threads.threads import SYSTEM_THREADS, Queue, Threads

#: Enough for a burst of every probe of a large host; a full queue slows workers down and loses nothing.
CAPACITY = 64
#: How long a worker blocks on a full queue before it looks at shutdown again, in seconds.
SLICE = 0.25

_Periodic = AdvanceTick | ManifestSetUpdated | HealthChecksReload


def _nobody_asks() -> None:
    """The caller is watched by nobody."""


class InputQueue:
    """Many workers put, the reducer gets."""

    def __init__(self, shutdown: ShutdownToken, capacity: int = CAPACITY, threads: Threads = SYSTEM_THREADS) -> None:
        self._shutdown = shutdown
        self._queue: Queue[ReducerInput | type[_Periodic] | None] = threads.queue(capacity)
        self._lock = threading.Lock()
        self._latest: dict[type[_Periodic], _Periodic] = {}

    def put(self, item: ReducerInput, alive: Callable[[], None] = _nobody_asks) -> bool:
        """Queue ``item``, waiting for room; False only when shutdown began first.

        ``alive`` is called while it waits: on a disk that refuses every event for hours that is no hang.
        """
        while not self._shutdown.is_set:
            alive()
            try:
                self._queue.put(item, timeout=SLICE)
                return True
            except queue.Full:
                continue
        return False

    def put_latest(self, item: _Periodic) -> bool:
        """Queue an input of which only the latest counts, or replace the one of its kind that still waits.

        False when there is no room. Never blocks: a tick that comes late says nothing that the next one does not, and
        the main thread, which asks for a reload, has signals to answer.
        """
        kind = type(item)
        with self._lock:
            waits = kind in self._latest
            self._latest[kind] = item
            if waits:
                return True
            try:
                self._queue.put_nowait(kind)
                return True
            except queue.Full:
                del self._latest[kind]
                return False

    def get(self, timeout: float | None) -> ReducerInput | None:
        """The next input; None when ``timeout`` seconds are over or the queue was closed."""
        try:
            item = self._queue.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(item, type):
            with self._lock:
                return self._latest.pop(item)
        return item

    def close(self) -> None:
        """Wake a reducer that waits; it looks at shutdown after every input, so a full queue needs no wake-up."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return

    def depth(self) -> int:
        """Inputs that wait, for metrics."""
        return self._queue.qsize()
