"""Between the prefetch worker, which downloads, and the activation worker, which has the right of way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nixfleet_agent.activation.realise_progress import Progress
from nixfleet_agent.threads.shutdown import ShutdownToken

URGENT, GIVEN_UP = "urgent", "given up"


class Download:
    """A download that runs: written by the prefetch worker, read by whoever waits for its ``ended``."""

    def __init__(self, closure: str, limited: bool) -> None:
        self.closure = closure
        self.limited = limited
        self.progress = Progress()
        self.ended = threading.Event()
        self.taken_over = False
        self.abandoned = False

    def abandon(self) -> None:
        """Who has taken it over does not wait any longer: it ends, so that another try may begin."""
        self.abandoned = True


class Handover:
    """One for the agent; every method may be called from any thread.

    ``changed`` wakes the prefetch worker: another release was announced, or the activation worker began or ended.
    """

    def __init__(self, shutdown: ShutdownToken) -> None:
        self.changed = shutdown.wakeup()
        self.announced = False
        self._lock = threading.Lock()
        self._urgent = False
        self._target: str | None = None
        self._download: Download | None = None

    def announce(self) -> None:
        """What CI signed for this host is known now, and another than before."""
        self.announced = True
        self.changed.set()

    @property
    def urgent(self) -> bool:
        """Whether an activation or a rollback is at work."""
        return self._urgent

    @contextmanager
    def at_work(self, target: str | None) -> Iterator[None]:
        """Within the block nothing is prefetched, but that a download of ``target`` which runs may go on."""
        with self._lock:
            self._urgent, self._target = True, target
        self.changed.set()
        try:
            yield
        finally:
            with self._lock:
                self._urgent, self._target = False, None
            self.changed.set()

    def begin(self, closure: str, *, limited: bool) -> Download | None:
        """A download that may start now; None while the activation worker is at work."""
        with self._lock:
            if self._urgent:
                return None
            self._download = Download(closure, limited)
            return self._download

    def end(self, download: Download) -> None:
        """It has ended, and its process with it."""
        with self._lock:
            self._download = None
        download.ended.set()

    def stop_reason(self) -> str | None:
        """Why the prefetch worker must leave what it does at once; None: it may go on.

        One that is limited to a rate is not taken over: whoever has its turn wants all that the cache can give.
        """
        with self._lock:
            download = self._download
            if download is not None and download.abandoned:
                return GIVEN_UP
            theirs = download is not None and download.closure == self._target and not download.limited
            return URGENT if self._urgent and not theirs else None

    def take_over(self, closure: str) -> Download | None:
        """The running download of ``closure``, from now on at full speed; None where none runs."""
        with self._lock:
            download = self._download
            if download is None or download.closure != closure:
                return None
            download.taken_over = True
            return download
