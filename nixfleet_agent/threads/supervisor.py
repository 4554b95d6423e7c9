"""Owns every thread: starts them, restarts the ones that die, feeds the watchdog while all live, and joins them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.threads.threads import SYSTEM_THREADS, Thread, Threads
from nixfleet_agent.threads.worker import Worker

log = logging.getLogger("nixfleet_agent.supervisor")

RESTART_INITIAL = 1.0
RESTART_MAX = 60.0
#: A worker that ran this long before it died starts again at the short wait, in seconds.
RESTART_FORGIVEN = 600.0


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """Sent to the main thread: ``error`` is what ended it, None for a return before shutdown."""

    worker: Worker
    error: BaseException | None


@dataclass(slots=True)
class _Post:
    """One worker's thread and its restarts."""

    worker: Worker
    thread: Thread | None = None
    started_at: float = 0.0
    wait: float = RESTART_INITIAL
    restart_at: float | None = None
    restarts: int = field(default=0)


class Events(Protocol):
    """Where the main thread hears of what happens; ``put`` never blocks."""

    def put(self, item: object) -> None: ...


class Supervisor:
    """``vital`` workers are not restarted: when one dies the process must go down with it (``run`` decides how)."""

    def __init__(
        self,
        workers: Sequence[Worker],
        vital: Worker,
        shutdown: ShutdownToken,
        clock: Clock,
        events: Events,
        on_restart: Callable[[str], None],
        threads: Threads = SYSTEM_THREADS,
    ) -> None:
        self._posts = {worker.name: _Post(worker) for worker in (vital, *workers)}
        self._vital = vital
        self._shutdown = shutdown
        self._clock = clock
        self._events = events
        self._on_restart = on_restart
        self._threads = threads

    def start(self) -> None:
        """Start every worker's thread."""
        for post in self._posts.values():
            self._start(post)

    def died(self, death: WorkerDied) -> bool:
        """Log the death and plan the restart; False when the dead one was vital."""
        post = self._posts[death.worker.name]
        post.thread = None
        if self._shutdown.is_set:
            return True
        if death.error is None:
            log.error("worker %s ended without being told to", post.worker.name)
        else:
            log.error("worker %s died: %s", post.worker.name, death.error, exc_info=death.error)
        if death.worker is self._vital:
            return False
        now = self._clock.monotonic()
        if now - post.started_at >= RESTART_FORGIVEN:
            post.wait = RESTART_INITIAL
        post.restart_at = now + post.wait
        post.wait = min(RESTART_MAX, post.wait * 2)
        return True

    def restart_due(self) -> float | None:
        """Start again whose wait is over; monotonic time of the next one, None when there is none."""
        now = self._clock.monotonic()
        for post in self._posts.values():
            if post.restart_at is not None and now >= post.restart_at:
                post.restart_at = None
                post.restarts += 1
                self._on_restart(post.worker.name)
                log.warning("worker %s is started again (%d times so far)", post.worker.name, post.restarts)
                self._start(post)
        return min((post.restart_at for post in self._posts.values() if post.restart_at is not None), default=None)

    def silent(self) -> list[str]:
        """Workers that gave no sign of life within their own limits."""
        return [worker.name for worker in self._silent()]

    def endangered(self) -> bool:
        """Whether a silent worker is one that the host needs; the watchdog is fed only while there is none.

        A folder for metrics that hangs is no reason to end an agent which may be in the middle of a rollback.
        """
        return any(not worker.telemetry for worker in self._silent())

    def _silent(self) -> list[Worker]:
        return [
            post.worker
            for post in self._posts.values()
            if post.restart_at is None and post.worker.silent_for() > post.worker.limit
        ]

    def join(self, seconds: float) -> list[str]:
        """Wait for the threads to end, ``seconds`` in all; names of those that did not."""
        until = self._clock.monotonic() + seconds
        for post in self._posts.values():
            if post.thread is not None:
                post.thread.join(max(0.0, until - self._clock.monotonic()))
        return [post.worker.name for post in self._posts.values() if post.thread is not None and post.thread.is_alive()]

    def _start(self, post: _Post) -> None:
        post.started_at = self._clock.monotonic()
        post.worker.alive()
        try:
            post.thread = self._threads.start(post.worker.name, partial(self._guarded, post.worker))
        except RuntimeError as error:  # the system has no room for a thread; it may have some later
            self._events.put(WorkerDied(post.worker, error))

    def _guarded(self, worker: Worker) -> None:
        died_of: BaseException | None = None
        try:
            worker.run()
        except Exception as error:  # noqa: BLE001 - the one place: logged with its stack, counted, restarted
            died_of = error
        finally:
            # Also when a library called sys.exit in this thread: no worker ends silently.
            self._events.put(WorkerDied(worker, died_of))
