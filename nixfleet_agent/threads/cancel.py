"""The order to stop at once, in every form that a blocked call can be waiting in: event, callback and descriptor."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager


class CancelToken:
    """Set once, and stays set. Callbacks run under its lock: they are quick, don't raise, and don't use this object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = threading.Event()
        self._keys = itertools.count()
        self._callbacks: dict[Hashable, Callable[[], None]] = {}
        self._watched: int | None = None

    @property
    def is_set(self) -> bool:
        return self._set.is_set()

    @property
    def event(self) -> threading.Event:
        """For waits; set it through ``set`` only."""
        return self._set

    def set(self) -> None:
        """Stop: wake every wait and call every callback, once; again is harmless."""
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
        key = next(self._keys)
        self._call(key, callback)
        try:
            yield
        finally:
            self._forget(key)

    def fileno(self) -> int:
        """A descriptor that becomes readable (end of file) when this is set; ``close`` gives it back."""
        with self._lock:
            if self._watched is None:
                self._watched, held_open = os.pipe()
                if self._set.is_set():
                    os.close(held_open)
                else:
                    self._callbacks["pipe"] = lambda: os.close(held_open)
            return self._watched

    def close(self) -> None:
        """Set it, and give the descriptor back; only when no thread waits any more."""
        self.set()
        with self._lock:
            watched, self._watched = self._watched, None
        if watched is not None:
            os.close(watched)

    def _call(self, key: Hashable, callback: Callable[[], None]) -> None:
        with self._lock:
            if self._set.is_set():
                callback()
            else:
                self._callbacks[key] = callback

    def _forget(self, key: Hashable) -> None:
        with self._lock:
            self._callbacks.pop(key, None)
