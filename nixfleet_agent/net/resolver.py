"""Name lookups that end with a deadline and with an order to stop, which `getaddrinfo` itself does not."""

from __future__ import annotations

import socket
import threading
from typing import Any, cast

from nixfleet_agent.threads.cancel import CancelToken
from nixfleet_agent.threads.deadline import Deadline

Address = tuple[int, int, int, str, Any]


class _Lookup:
    """One name being looked up, and the threads that wait for it."""

    def __init__(self) -> None:
        self.answer: list[Address] | OSError | None = None
        self.waiters: list[threading.Event] = []


class Resolver:
    """Name lookups that can be left behind.

    Nothing can interrupt ``getaddrinfo``: with a dead name server it blocks for half a minute. So it runs in a thread
    of its own that nobody joins; there is at most one such thread for each name, however often it is asked for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, _Lookup] = {}

    def addresses(self, host: str, port: int, deadline: Deadline, cancel: CancelToken) -> list[Address]:
        """Addresses of ``host``.

        Raises:
            OSError: it has none, or time was up (TimeoutError), or the run was stopped.
        """
        try:
            return _lookup(host, port, socket.AI_NUMERICHOST)
        except socket.gaierror:
            pass  # a name, not an address
        found = self._look_up(host, deadline, cancel)
        return [(family, kind, proto, name, (at[0], port, *at[2:])) for family, kind, proto, name, at in found]

    def _look_up(self, host: str, deadline: Deadline, cancel: CancelToken) -> list[Address]:
        wakeup = threading.Event()
        with self._lock:
            lookup = self._running.get(host) or self._start(host)
            lookup.waiters.append(wakeup)
        with cancel.calling(wakeup.set):
            deadline.wait(wakeup)
        with self._lock:
            answer = lookup.answer
            lookup.waiters.remove(wakeup)
        if isinstance(answer, OSError):
            raise OSError(f"can't look up {host}: {answer.strerror or answer}") from answer
        if answer is None:
            raise OSError("stopped") if cancel.is_set else TimeoutError(f"can't look up {host}: time is up")
        return answer

    def _start(self, host: str) -> _Lookup:
        """Under the lock; the lookup is known only once it runs, or everybody would wait for one that never began."""
        lookup = _Lookup()
        # A daemon, because the process must be able to end while a lookup hangs.
        thread = threading.Thread(target=self._run, args=(host, lookup), name="name-lookup", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no room for a thread; it may have some later
            raise OSError(f"can't look up {host}: {error}") from error
        self._running[host] = lookup
        return lookup

    def _run(self, host: str, lookup: _Lookup) -> None:
        answer: list[Address] | OSError = OSError("the lookup ended without an answer")
        try:
            answer = _lookup(host, 0, 0)
        except OSError as error:
            answer = error
        finally:
            with self._lock:
                self._running.pop(host, None)
                lookup.answer = answer
                for waiter in lookup.waiters:
                    waiter.set()


def _lookup(host: str, port: int, flags: int) -> list[Address]:
    try:
        return cast(list[Address], socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))
    except UnicodeError as error:  # a label that is empty or too long for the name system
        raise OSError(f"not a valid host name: {error}") from error
