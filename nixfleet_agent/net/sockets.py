"""TCP connections within a call's budget: every address of the name is tried, each with its share of the time."""

from __future__ import annotations

import errno
import os
import socket

from nixfleet_agent.errors import TransportError
from nixfleet_agent.net.budget import CallBudget

#: Seconds that name lookup aside, TCP and TLS together may take before the call gives up on the server.
CONNECT_TIMEOUT = 10.0


def connect(host: str, port: int, budget: CallBudget, timeout: float = CONNECT_TIMEOUT) -> socket.socket:
    """A connected non-blocking socket to ``host``; environment proxies are not looked at.

    Raises:
        TransportError: ``dns``, ``refused``, ``timeout`` or ``aborted``.
    """
    budget.remaining()
    addresses = _resolve(host, port)
    left = timeout
    failure: TransportError | None = None
    for index, (family, kind, protocol, _name, address) in enumerate(addresses):
        # A dead first address (an IPv6 route that leads nowhere) must leave time for the next one.
        share = left / (len(addresses) - index)
        left -= share
        try:
            return _connect_one(socket.socket(family, kind, protocol), address, budget, share)
        except TransportError as error:
            if error.kind == "aborted":
                raise
            failure = error
    raise failure or TransportError(f"{host} has no address: check control_plane_url and DNS", "dns")


def _resolve(host: str, port: int) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    try:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (socket.gaierror, UnicodeError) as error:
        raise TransportError(f"can't look up {host}: {getattr(error, 'strerror', None) or error}", "dns") from error


def _connect_one(raw: socket.socket, address: object, budget: CallBudget, share: float) -> socket.socket:
    where = f"{address[0]} port {address[1]}" if isinstance(address, tuple) else str(address)
    try:
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        status = raw.connect_ex(address)  # type: ignore[arg-type]
        if status == errno.EINPROGRESS:
            if not budget.wait(raw.fileno(), write=True, at_most=share):
                raise TransportError(f"no connection to {where} within {share:g} s", "timeout")
            status = raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            raise TransportError(f"can't connect to {where}: {os.strerror(status)}", "refused")
    except OSError as error:
        raw.close()
        raise TransportError(f"can't connect to {where}: {error.strerror or error}", "refused") from error
    except BaseException:
        raw.close()
        raise
    return raw
