"""Where threads come from, and what they block on besides the clock: locks across I/O and bounded queues.

A lock that is only held for a few statements needs none of this, and an event is waited for through ``Clock.wait``.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Thread(Protocol):
    """A started thread; somebody owns its end."""

    @property
    def name(self) -> str: ...
    def is_alive(self) -> bool: ...
    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, ``timeout`` seconds at most."""


class Lock(Protocol):
    """As ``threading.Lock``."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Queue(Protocol[Item]):
    """As ``queue.Queue``: raises ``queue.Full`` and ``queue.Empty``."""

    def put(self, item: Item, block: bool = True, timeout: float | None = None) -> None: ...
    def put_nowait(self, item: Item) -> None: ...
    def get(self, block: bool = True, timeout: float | None = None) -> Item: ...
    def qsize(self) -> int: ...


class Threads(Protocol):
    """What makes them."""

    def start(self, name: str, target: Callable[[], object]) -> Thread:
        """A thread that runs ``target`` (raises RuntimeError where the system has no room for one)."""

    def lock(self) -> Lock:
        """For a lock that is held across a write or a request."""

    def queue(self, capacity: int) -> Queue[Item]:
        """A queue of at most ``capacity`` items."""


class SystemThreads:
    """Threads of this process. None is a daemon: it is joined by its owner."""

    def start(self, name: str, target: Callable[[], object]) -> Thread:
        thread = threading.Thread(target=target, name=name)
        thread.start()
        return thread

    def lock(self) -> Lock:
        return threading.Lock()

    def queue(self, capacity: int) -> Queue[Item]:
        return queue.Queue(capacity)


SYSTEM_THREADS = SystemThreads()
