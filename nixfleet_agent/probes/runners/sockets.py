"""TCP connections that end when their time is up or when they are told to stop, whatever they are blocked in."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nixfleet_agent.net.resolver import Resolver
from nixfleet_agent.threads.cancel import CancelToken
from nixfleet_agent.threads.deadline import Deadline

_Address = tuple[int, int, int, str, Any]


class PlainSocket(socket.socket):
    """A socket whose every read gets only the time that the whole run has left: a slow drip can't extend it."""

    deadline: Deadline | None = None

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        if self.deadline is not None:
            self.settimeout(self.deadline.left())
        return super().recv_into(*args, **kwargs)


def connect(host: str, port: int, deadline: Deadline, cancel: CancelToken, resolver: Resolver) -> PlainSocket:
    """An open connection to the first address of ``host`` that takes it; the time left is shared among addresses.

    Raises:
        OSError: none took it (the reason of the last), time was up (TimeoutError), or the run was stopped.
    """
    addresses = resolver.addresses(host, port, deadline, cancel)
    failure = OSError(f"{host} has no address")
    for number, (family, kind, proto, _, address) in enumerate(addresses):
        try:
            return _connect_one(PlainSocket(family, kind, proto), address, len(addresses) - number, deadline, cancel)
        except OSError as error:
            failure = error
        if cancel.is_set:
            break
    raise failure


def _connect_one(
    sock: PlainSocket, address: Any, tries_left: int, deadline: Deadline, cancel: CancelToken
) -> PlainSocket:
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
def closing_down(sock: socket.socket, cancel: CancelToken) -> Iterator[None]:
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
