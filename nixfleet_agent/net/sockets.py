"""TCP connections within a call's budget: every address of the name is tried, each with its share of the time."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from nixfleet_agent.config.model import Config
from nixfleet_agent.config.proxy import Proxy, parse_proxy
from nixfleet_agent.errors import TransportError
from nixfleet_agent.net.budget import CallBudget, aborted
from nixfleet_agent.net.resolver import Address, Resolver
from nixfleet_agent.net.tls import TlsContext

#: Seconds that name lookup aside, TCP and TLS together may take before the call gives up on the server.
CONNECT_TIMEOUT = 10.0
#: A connection that says nothing for so long is probed, so often and with so many pauses of that length: a peer that is
#: gone is known after 25 s, and a NAT that forgets quiet connections after 15 s or more does not forget this one.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
#: Milliseconds that what was sent may stay unacknowledged (RFC 5482): within the deadline of an event's POST there is
#: time for another connection.
_USER_TIMEOUT_MS = 7_000


@dataclass(frozen=True, slots=True)
class Route:
    """The way to the control plane: through a proxy or none; how long to connect may take (seconds)."""

    proxy: Proxy | None = None
    connect_timeout: float = CONNECT_TIMEOUT

    @classmethod
    def of(cls, config: Config) -> Route:
        """As configured; raises ConfigError."""
        return cls(None if config.proxy_url is None else parse_proxy(config.proxy_url))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the control plane listens, how it is reached, and what a new connection needs."""

    host: str
    port: int
    context: Callable[[], TlsContext]
    route: Route
    resolver: Resolver

    @property
    def first_hop(self) -> tuple[str, int, str]:
        """Host and port to connect to, and the key that names them."""
        proxy = self.route.proxy
        return (self.host, self.port, "control_plane_url") if proxy is None else (proxy.host, proxy.port, "proxy_url")


def connect(where: Endpoint, budget: CallBudget) -> socket.socket:
    """A connected non-blocking socket to ``where``, or to the proxy before it; environment proxies are not looked at.

    Raises:
        TransportError: ``dns``, ``refused``, ``timeout`` or ``aborted``.
    """
    budget.remaining()
    addresses = _resolve(where, budget)
    left = where.route.connect_timeout
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
    host, _, key = where.first_hop
    raise failure or TransportError(f"{host} has no address: check {key} and DNS", "dns")


def _resolve(where: Endpoint, budget: CallBudget) -> list[Address]:
    host, port, _ = where.first_hop
    try:
        return where.resolver.addresses(host, port, budget.deadline(), budget.cancel)
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
        _notice_death(raw)
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


def _notice_death(raw: socket.socket) -> None:
    """Have the kernel find out that the peer, or the way to it, is gone; where it knows how to."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {**_KEEPALIVE, "TCP_USER_TIMEOUT": _USER_TIMEOUT_MS}.items():
        if (option := getattr(socket, name, None)) is not None:
            raw.setsockopt(socket.IPPROTO_TCP, option, value)
