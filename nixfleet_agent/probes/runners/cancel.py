"""The order to stop at once: an event that also calls back, so that a blocked call is cut short from outside."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Cancel:
    """Set once. Callbacks run under its lock: they must be quick, must not raise, and must not use this object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = threading.Event()
        self._numbers = itertools.count()
        self._callbacks: dict[int, Callable[[], None]] = {}

    @property
    def is_set(self) -> bool:
        return self._set.is_set()

    @property
    def event(self) -> threading.Event:
        """For waits; set it through ``set`` only."""
        return self._set

    def set(self) -> None:
        """Stop: wake every wait and call every callback, once."""
        with self._lock:
            self._set.set()
            callbacks, self._callbacks = self._callbacks, {}
            for callback in callbacks.values():
                callback()

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Within the block ``callback`` is called when this is set, at once if it is already.

        After the block it is certain not to run (any more): what it acts on, a descriptor or a process id, may then
        be given back to the system and belong to something else.
        """
        with self._lock:
            number = next(self._numbers)
            if self._set.is_set():
                callback()
            else:
                self._callbacks[number] = callback
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.pop(number, None)
