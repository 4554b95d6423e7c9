"""Owns time and the order of everything: of all threads one runs, until it waits; then the seed chooses the next.

Threads are real ones that pass a baton. When all of them wait, time jumps to the first moment that one waits for.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

#: A wait that nothing ends in this much real time is a deadlock of the simulated threads, in seconds.
STUCK_SECS = 120.0
#: Each step of a thread takes up to so many seconds: no two things happen at the very same moment for ever.
STEP_SECS = 0.0005


class Condition(Protocol):
    """What a thread waits for."""

    def is_set(self) -> bool: ...


class Stopped(BaseException):
    """Raised in a thread whose process was killed, or whose machine lost its power, at whatever it waits in."""


class Never:
    """Is not set, ever."""

    def is_set(self) -> bool:
        return False


NEVER = Never()


class Task:
    """One thread. ``group`` is what it lives and dies with (a process); only its own group sets what it waits for,
    unless it is ``shared`` for the time of the wait."""

    def __init__(self, number: int, name: str, group: str) -> None:
        self.number = number
        self.name = name
        self.group = group
        self.baton = threading.Lock()
        self.baton.acquire()
        self.condition: Condition | None = None
        self.waits = 0
        self.timed_out = False
        self.shared = False
        self.doomed = False
        self.ended = False
        self.error: BaseException | None = None
        #: While it is inside of another machine's program: whether the caller has gone.
        self.hangup: Condition | None = None

    def is_set(self) -> bool:
        """As a condition: it has ended."""
        return self.ended


class Scheduler:
    """``run`` begins in the thread that calls it, which is a task like the others."""

    def __init__(self, rng: random.Random, preempt: float = 0.0) -> None:
        """``preempt`` is how often a thread that could go on is made to wait for others, from 0 to 1."""
        self.rng = rng
        self.now = 0.0
        self.switches = 0
        self.errors: list[tuple[Task, BaseException]] = []
        self._preempt = preempt
        self._numbers = 0
        self._timeouts: list[tuple[float, int, int, Task]] = []
        self._waiting: dict[str, dict[int, Task]] = {}
        self._shared: dict[int, Task] = {}
        self._ready: list[Task] = []
        self._digest = hashlib.blake2b(digest_size=12)
        self.current = self._driver = self._new("driver", "driver")
        self._fatal = ""
        self._seen = 0

    # -- threads ------------------------------------------------------------------------------

    def spawn(self, name: str, group: str, target: Callable[[], object]) -> Task:
        """A new thread; it runs when the seed says so."""
        task = self._new(name, group)
        self._ready.append(task)
        threading.Thread(target=self._body, args=(task, target), name=name, daemon=True).start()
        return task

    def kill(self, groups: Iterable[str]) -> None:
        """End every thread of these groups where it is, and wait until they have."""
        self.end([task for group in groups for task in self.alive(group)])

    def end(self, doomed: Sequence[Task]) -> None:
        """The same for some threads."""
        for task in doomed:
            task.doomed = True
            self._wake(task)
        for task in doomed:
            self.block(task)

    def alive(self, group: str) -> list[Task]:
        """The threads of a group that have not ended, oldest first."""
        found = {task.number: task for task in self._waiting.get(group, {}).values()}
        found |= {task.number: task for task in self._shared.values() if task.group == group}
        found |= {task.number: task for task in self._ready if task.group == group}
        if self.current.group == group:
            found[self.current.number] = self.current
        return [found[number] for number in sorted(found)]

    def _new(self, name: str, group: str) -> Task:
        self._numbers += 1
        return Task(self._numbers, name, group)

    def _body(self, task: Task, target: Callable[[], object]) -> None:
        task.baton.acquire()
        try:
            if not task.doomed:
                target()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - told by whoever looks after the run
            task.error = error
            self.errors.append((task, error))
        task.ended = True
        self._look(task)
        self._hand_over()

    # -- waiting ------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self.block(NEVER, seconds)

    def pause(self) -> None:
        """Let others go first, as often as the seed wants it."""
        task = self.current
        if task.doomed:
            raise Stopped
        if self._preempt and self.rng.random() < self._preempt:
            self._ready.append(task)
            self._give_up(task)

    def block(self, condition: Condition, timeout: float | None = None, *, shared: bool = False) -> bool:
        """Wait until ``condition`` is set or ``timeout`` seconds are over; whether it is set.

        ``shared``: threads of other groups may set it.
        """
        task = self.current
        if task.doomed:
            raise Stopped
        if condition.is_set():
            self.pause()
            return condition.is_set()
        if timeout is not None and timeout <= 0:
            self.pause()
            return condition.is_set()
        task.condition, task.timed_out = condition, False
        task.shared = shared or isinstance(condition, Task)
        task.waits += 1
        if timeout is not None:
            heapq.heappush(self._timeouts, (self.now + timeout, task.number, task.waits, task))
        (self._shared if task.shared else self._waiting.setdefault(task.group, {}))[task.number] = task
        self._give_up(task)
        return condition.is_set()

    def _give_up(self, task: Task) -> None:
        self._look(task)
        self._hand_over()
        while not task.baton.acquire(timeout=STUCK_SECS):
            if task is self._driver and self.switches == self._seen:
                raise RuntimeError(f"{self.current.group}/{self.current.name} hangs outside of the scheduler")
            self._seen = self.switches
        if self._fatal and task is self._driver:
            raise RuntimeError(self._fatal)
        if task.doomed:
            raise Stopped

    # -- choosing -----------------------------------------------------------------------------

    def _look(self, ran: Task) -> None:
        """Find who can go on after what ``ran`` has done."""
        for waiting in (self._waiting.get(ran.group), self._shared):
            if waiting:
                for task in [t for t in waiting.values() if t.condition is not None and t.condition.is_set()]:
                    self._wake(task)

    def _wake(self, task: Task) -> None:
        if task.condition is not None:
            task.condition = None
            (self._shared if task.shared else self._waiting[task.group]).pop(task.number, None)
            self._ready.append(task)

    def _hand_over(self) -> None:
        self.now += self.rng.random() * STEP_SECS
        self._expire()
        if not self._ready:
            if not self._timeouts:
                self._fatal = "every thread waits, and none for a time"
                self._ready.append(self._driver)
                self._driver.condition = None
            else:
                self.now = max(self.now, self._timeouts[0][0])
                self._expire()
        ready = self._ready
        chosen = ready.pop(self.rng.randrange(len(ready)) if len(ready) > 1 else 0)
        self.switches += 1
        self._digest.update(b"%d %.6f;" % (chosen.number, self.now))
        self.current = chosen
        chosen.baton.release()

    def _expire(self) -> None:
        """Wake those whose time has come."""
        heap = self._timeouts
        while heap:
            at, _, waits, task = heap[0]
            if task.condition is None or task.waits != waits:  # woken before
                heapq.heappop(heap)
            elif at <= self.now:
                heapq.heappop(heap)
                task.timed_out = True
                self._wake(task)
            else:
                return

    @property
    def trace(self) -> str:
        """A digest of every choice that was made, and when."""
        return self._digest.hexdigest()

    def note(self, text: str) -> None:
        """What happened belongs to the trace."""
        self._digest.update(text.encode("utf-8", "replace"))
