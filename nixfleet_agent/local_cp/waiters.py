"""The long polls that are open: one per host, each asleep until its host's turn comes.

A host has one long poll at a time. A newer one ends the older, which belongs to a connection that the host has
given up: were it left waiting, it could take the next turn and lose it with the dead connection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from nixfleet_agent.threads.clock import Clock

T = TypeVar("T")


class _Ticket:
    """One open long poll."""

    __slots__ = ("ended", "wakeup")

    def __init__(self) -> None:
        self.wakeup = threading.Event()
        self.ended = False


class Waiters:
    """Thread-safe; a waiting poll costs a sleeping thread and nothing else."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tickets: dict[str, _Ticket] = {}
        self._stopped = False

    def wait(self, hostname: str, seconds: float, fetch: Callable[[], T | None], gone: Callable[[], bool]) -> T | None:
        """What ``fetch`` gives, tried at once and after each ``wake``; None when the time is over.

        ``gone`` says that the client has hung up; then nothing is fetched, because nobody would get it.
        """
        deadline = self._clock.monotonic() + seconds
        ticket = self._enter(hostname)
        try:
            while not (ticket.ended or gone()):
                found = fetch()
                left = deadline - self._clock.monotonic()
                if found is not None or left <= 0:
                    return found
                self._clock.wait(ticket.wakeup, left)
                ticket.wakeup.clear()
            return None
        finally:
            self._leave(hostname, ticket)

    def wake(self, hostname: str) -> None:
        """There is something new for this host."""
        with self._lock:
            ticket = self._tickets.get(hostname)
        if ticket is not None:
            ticket.wakeup.set()

    def stop(self) -> None:
        """End every poll, and each later one at once."""
        with self._lock:
            self._stopped = True
            tickets = list(self._tickets.values())
        for ticket in tickets:
            _end(ticket)

    def __len__(self) -> int:
        with self._lock:
            return len(self._tickets)

    def _enter(self, hostname: str) -> _Ticket:
        ticket = _Ticket()
        with self._lock:
            older = self._tickets.get(hostname)
            self._tickets[hostname] = ticket
            ticket.ended = self._stopped
        if older is not None:
            _end(older)
        return ticket

    def _leave(self, hostname: str, ticket: _Ticket) -> None:
        with self._lock:
            if self._tickets.get(hostname) is ticket:
                del self._tickets[hostname]


def _end(ticket: _Ticket) -> None:
    ticket.ended = True
    ticket.wakeup.set()
