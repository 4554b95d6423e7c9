"""Interval timers on `schedule`, moved from naive local time to the monotonic clock.

`schedule` compares ``datetime.now()`` with the next run: a stepped clock or a change to summer time would delay a
job by an hour or run it at once. Its jobs are kept; the time they are given is the monotonic clock's, written as a
datetime. A job here only notes that it is due, so it can't raise (a job that raises is never scheduled again).
"""

from __future__ import annotations

import threading
from datetime import datetime, timedelta

import schedule

from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.shutdown import ShutdownToken

_EPOCH = datetime(2000, 1, 1)


class _Job(schedule.Job):
    """A job that asks its scheduler what time it is."""

    scheduler: _Scheduler

    @property
    def should_run(self) -> bool:
        return self.next_run is not None and self.scheduler.reading() >= self.next_run

    def _schedule_next_run(self) -> None:
        """From the time it was due, not from now: the cadence does not drift; after a gap, one run and not many."""
        reading = self.scheduler.reading()
        step = timedelta(seconds=float(self.interval))
        due = (self.next_run or reading) + step
        self.next_run = due if due > reading else reading + step


class _Scheduler(schedule.Scheduler):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def reading(self) -> datetime:
        return _EPOCH + timedelta(seconds=self._clock.monotonic())

    def every(self, interval: int = 1) -> _Job:
        return _Job(interval, self)


class Timer:
    """One worker's cadence: due at once when new, then every ``interval`` seconds, and whenever it is kicked."""

    def __init__(self, interval: float, clock: Clock, shutdown: ShutdownToken) -> None:
        self._clock = clock
        self._shutdown = shutdown
        self._scheduler = _Scheduler(clock)
        self._due = True
        self._kick = shutdown.wakeup()
        self._interval = interval
        self._job = self._scheduler.every(interval).seconds.do(self._note)  # type: ignore[arg-type]

    def _note(self) -> None:
        self._due = True

    def kick(self) -> None:
        """Make it due now, from any thread."""
        self._kick.set()

    @property
    def kicked(self) -> threading.Event:
        """The event behind ``kick``, for owners that hand it to others."""
        return self._kick

    def reset(self) -> None:
        """Count the interval from now (after a kick that did the work of a tick)."""
        self._scheduler.clear()
        self._job = self._scheduler.every(self._interval).seconds.do(self._note)  # type: ignore[arg-type]

    def wait(self, until: float | None = None) -> bool:
        """Block until due, kicked, or the monotonic second ``until``: True; False as soon as shutdown begins."""
        while not self._shutdown.is_set:
            self._scheduler.run_pending()
            if self._due or self._kick.is_set():
                self._due = False
                self._kick.clear()
                return not self._shutdown.is_set
            next_run = self._scheduler.next_run
            reading = self._scheduler.reading()
            left = (next_run - reading).total_seconds() if next_run else self._interval
            if until is not None:
                left = min(left, until - self._clock.monotonic())
                if left <= 0:
                    return True
            self._clock.wait(self._kick, max(0.0, left))
        return False
