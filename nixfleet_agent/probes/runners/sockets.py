"""TCP connections that end when their time is up or when they are told to stop, whatever they are blocked in."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from nixfleet_agent.probes.runners.cancel import Cancel
from nixfleet_agent.threads.clock import Clock

_Address = tuple[int, int, int, str, Any]


class Deadline:
    """The end of one run on the monotonic clock, ``seconds`` from now."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self.ends = clock.monotonic() + seconds

    def left(self) -> float:
        """Seconds left.

        Raises:
            TimeoutError: none are.
        """
        left = self.ends - self._clock.monotonic()
        if left <= 0:
            raise TimeoutError("time is up")
        return left

    @property
    def over(self) -> bool:
        return self._clock.monotonic() >= self.ends


class PlainSocket(socket.socket):
    """A socket whose every read gets only the time that the whole run has left: a slow drip can't extend it."""

    deadline: Deadline | None = None

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        if self.deadline is not None:
            self.settimeout(self.deadline.left())
        return super().recv_into(*args, **kwargs)


class _Lookup:
    """One name being looked up, and the threads that wait for it."""

    def __init__(self) -> None:
        self.answer: list[_Address] | OSError | None = None
        self.waiters: list[threading.Event] = []


class Resolver:
    """Name lookups that can be left behind.

    Nothing can interrupt ``getaddrinfo``: with a dead name server it blocks for half a minute. So it runs in a thread
    of its own that nobody joins; there is at most one such thread for each name, however often it is asked for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, _Lookup] = {}

    def addresses(self, host: str, port: int, deadline: Deadline, clock: Clock, cancel: Cancel) -> list[_Address]:
        """Addresses of ``host``.

        Raises:
            OSError: it has none, or time was up (TimeoutError), or the run was stopped.
        """
        try:
            return _lookup(host, port, socket.AI_NUMERICHOST)
        except socket.gaierror:
            pass  # a name, not an address
        found = self._look_up(host, deadline, clock, cancel)
        return [(family, kind, proto, name, (at[0], port, *at[2:])) for family, kind, proto, name, at in found]

    def _look_up(self, host: str, deadline: Deadline, clock: Clock, cancel: Cancel) -> list[_Address]:
        wakeup = threading.Event()
        with self._lock:
            lookup = self._running.get(host) or self._start(host)
            lookup.waiters.append(wakeup)
        with cancel.calling(wakeup.set):
            clock.wait(wakeup, deadline.left())
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
        thread = threading.Thread(target=self._run, args=(host, lookup), name="probe-lookup", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no room for a thread; it may have some later
            raise OSError(f"can't look up {host}: {error}") from error
        self._running[host] = lookup
        return lookup

    def _run(self, host: str, lookup: _Lookup) -> None:
        answer: list[_Address] | OSError = OSError("the lookup ended without an answer")
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


def _lookup(host: str, port: int, flags: int) -> list[_Address]:
    try:
        return cast(list[_Address], socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))
    except UnicodeError as error:  # a label that is empty or too long for the name system
        raise OSError(f"not a valid host name: {error}") from error


def connect(host: str, port: int, deadline: Deadline, clock: Clock, cancel: Cancel, resolver: Resolver) -> PlainSocket:
    """An open connection to the first address of ``host`` that takes it; the time left is shared among addresses.

    Raises:
        OSError: none took it (the reason of the last), time was up (TimeoutError), or the run was stopped.
    """
    addresses = resolver.addresses(host, port, deadline, clock, cancel)
    failure = OSError(f"{host} has no address")
    for number, (family, kind, proto, _, address) in enumerate(addresses):
        try:
            return _connect_one(PlainSocket(family, kind, proto), address, len(addresses) - number, deadline, cancel)
        except OSError as error:
            failure = error
        if cancel.is_set:
            break
    raise failure


def _connect_one(sock: PlainSocket, address: Any, tries_left: int, deadline: Deadline, cancel: Cancel) -> PlainSocket:
    connected = False
    try:
        with closing_down(sock, cancel):
            sock.settimeout(deadline.left() / tries_left)
            sock.connect(address)
            if sock.getsockname() == sock.getpeername():
                # Nobody listens: the kernel gave this end the very port that was asked for, and TCP connected it to
                # itself. About one attempt in 28,000 at a port of its own range.
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            if cancel.is_set:
                raise OSError("stopped")
        sock.deadline = deadline
        connected = True
        return sock
    finally:
        if not connected:
            sock.close()


@contextmanager
def closing_down(sock: socket.socket, cancel: Cancel) -> Iterator[None]:
    """Within the block, ``cancel`` ends the connection under whatever call is blocked on it.

    A duplicate of the descriptor is what is shut down: TLS moves the original into another object, and a number that
    was closed meanwhile may already belong to somebody else's file.
    """
    guard = socket.socket(fileno=os.dup(sock.fileno()))

    def shut_down() -> None:
        try:
            guard.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # not connected yet or no longer: the caller looks at `cancel` itself

    try:
        with cancel.calling(shut_down):
            yield
    finally:
        guard.close()
