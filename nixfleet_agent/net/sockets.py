"""TCP connections within a call's budget: every address of the name is tried, each with its share of the time."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from nixfleet_agent.errors import TransportError
from nixfleet_agent.net.budget import CallBudget, aborted
from nixfleet_agent.net.resolver import Address, Resolver
from nixfleet_agent.net.tls import TlsContext

#: Seconds that name lookup aside, TCP and TLS together may take before the call gives up on the server.
CONNECT_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the control plane listens, and how to get a name looked up and the TLS context for a new connection."""

    host: str
    port: int
    context: Callable[[], TlsContext]
    connect_timeout: float
    resolver: Resolver


def connect(where: Endpoint, budget: CallBudget) -> socket.socket:
    """A connected non-blocking socket to ``where``; environment proxies are not looked at.

    Raises:
        TransportError: ``dns``, ``refused``, ``timeout`` or ``aborted``.
    """
    budget.remaining()
    addresses = _resolve(where, budget)
    left = where.connect_timeout
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
    raise failure or TransportError(f"{where.host} has no address: check control_plane_url and DNS", "dns")


def _resolve(where: Endpoint, budget: CallBudget) -> list[Address]:
    try:
        return where.resolver.addresses(where.host, where.port, budget.deadline(), budget.cancel)
    except TimeoutError as error:
        raise TransportError(str(error), "timeout") from error
    except OSError as error:
        if budget.cancel.is_set:
            raise aborted() from error
        raise TransportError(str(error), "dns") from error


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
