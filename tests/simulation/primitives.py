"""The clock, threads, locks and queues of one simulated process, over the scheduler."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import Generic, TypeVar

from nixfleet_agent.threads.threads import Lock, Queue, Thread
from tests.simulation.scheduler import Condition, Scheduler, Task

Item = TypeVar("Item")
#: When every simulation begins.
EPOCH = datetime(2030, 1, 1, tzinfo=timezone.utc)


class SimClock:
    """One machine's clocks. ``offset`` is how far its wall clock is off; ``boot`` begins the monotonic one anew."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.offset = timedelta(0)
        self._booted = -1000.0

    def boot(self) -> None:
        self._booted = self._scheduler.now - 10.0

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._scheduler.now) + self.offset

    def monotonic(self) -> float:
        return self._scheduler.now - self._booted

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        return self._scheduler.block(event, timeout)


class _Either:
    def __init__(self, one: Condition, other: Condition) -> None:
        self._one, self._other = one, other

    def is_set(self) -> bool:
        return self._one.is_set() or self._other.is_set()


class ServerClock(SimClock):
    """The control plane's: whoever waits by it also wakes when the client has hung up."""

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        hangup = self._scheduler.current.hangup
        condition = event if hangup is None else _Either(event, hangup)
        self._scheduler.block(condition, timeout, shared=True)
        return event.is_set()


class SimThread:
    """A started thread."""

    def __init__(self, scheduler: Scheduler, task: Task) -> None:
        self._scheduler = scheduler
        self._task = task

    @property
    def name(self) -> str:
        return self._task.name

    def is_alive(self) -> bool:
        return not self._task.ended

    def join(self, timeout: float | None = None) -> None:
        self._scheduler.block(self._task, timeout)


class SimThreads:
    """Threads of one process."""

    def __init__(self, scheduler: Scheduler, group: str) -> None:
        self._scheduler = scheduler
        self._group = group

    def start(self, name: str, target: Callable[[], object]) -> Thread:
        return SimThread(self._scheduler, self._scheduler.spawn(name, self._group, target))

    def lock(self) -> Lock:
        return SimLock(self._scheduler)

    def queue(self, capacity: int) -> Queue[Item]:
        return SimQueue(self._scheduler, capacity)


class SimLock:
    """As ``threading.Lock``; as a condition: it is free."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held = False

    def is_set(self) -> bool:
        return not self._held

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        until = None if timeout < 0 else self._scheduler.now + timeout
        while self._held:
            left = None if until is None else until - self._scheduler.now
            if not blocking or (left is not None and left <= 0):
                return False
            self._scheduler.block(self, left)
        self._held = True
        return True

    def release(self) -> None:
        self._held = False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class _Room:
    """As a condition: the queue has room."""

    def __init__(self, of: SimQueue[object]) -> None:
        self._of = of

    def is_set(self) -> bool:
        return self._of.qsize() < self._of.capacity


class SimQueue(Generic[Item]):
    """As ``queue.Queue``; as a condition: something is in it."""

    def __init__(self, scheduler: Scheduler, capacity: int) -> None:
        self.capacity = capacity
        self._scheduler = scheduler
        self._items: deque[Item] = deque()
        self._room = _Room(self)  # type: ignore[arg-type]

    def is_set(self) -> bool:
        return bool(self._items)

    def put(self, item: Item, block: bool = True, timeout: float | None = None) -> None:
        if not self._room.is_set() and block:
            self._scheduler.block(self._room, timeout)
        if not self._room.is_set():
            raise queue.Full
        self._items.append(item)

    def put_nowait(self, item: Item) -> None:
        self.put(item, block=False)

    def get(self, block: bool = True, timeout: float | None = None) -> Item:
        if not self._items and block:
            self._scheduler.block(self, timeout)
        if not self._items:
            raise queue.Empty
        return self._items.popleft()

    def qsize(self) -> int:
        return len(self._items)


class SimInbox:
    """What the main thread of one agent waits on."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._queue: SimQueue[object] = SimQueue(scheduler, 1 << 30)
        self._scheduler = scheduler

    def put(self, item: object) -> None:
        self._queue.put(item, block=False)

    def wait(self, seconds: float) -> object:
        # Signals come from outside of the process.
        if not self._queue.is_set():
            self._scheduler.block(self._queue, seconds, shared=True)
        return self._queue.get(block=False) if self._queue.is_set() else None
