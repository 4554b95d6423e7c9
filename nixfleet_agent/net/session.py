"""One thread's connection to the control plane: ``requests`` over our own TLS, one call at a time.

There is no ``requests.Session``: it would read proxies and .netrc from the environment, keep cookies, and read the
whole body of a redirect without a limit. A prepared request goes straight to a transport adapter.
"""

from __future__ import annotations

from collections.abc import Mapping

import requests
import urllib3
from requests.adapters import HTTPAdapter

from nixfleet_agent.errors import TransportError
from nixfleet_agent.identity.credentials import Identity
from nixfleet_agent.net import sockets
from nixfleet_agent.net.answers import Answer
from nixfleet_agent.net.body import read_body
from nixfleet_agent.net.budget import CallBudget
from nixfleet_agent.net.failures import describe
from nixfleet_agent.net.pool import TlsConnection, TlsPool
from nixfleet_agent.net.proxy import open_tunnel
from nixfleet_agent.net.sockets import Endpoint
from nixfleet_agent.net.tls import TlsStream

#: Bytes that may come around a body, beside as many as the body has for the sizes of its chunks.
_FRAMING_ALLOWANCE = 1024 * 1024


class Session:
    """A keep-alive connection of one thread, and the calls over it."""

    def __init__(self, endpoint: Endpoint, budget: CallBudget, identity: Identity | None) -> None:
        self.generation = 0 if identity is None else identity.generation
        self._budget = budget
        self._pool = _Pool(endpoint, budget)
        self._adapter = _Adapter(self._pool)

    def exchange(self, request: requests.PreparedRequest, deadline: float, limit: int) -> Answer:
        """Send, and read the whole answer, within ``deadline`` seconds and ``limit`` bytes of body.

        A keep-alive connection that the server closed meanwhile is replaced once, when not one byte of an answer
        came over it. The control plane ignores an event that it has, so sending twice is safe.

        Raises:
            TransportError: no usable answer.
        """
        self._budget.start(deadline, 2 * limit + _FRAMING_ALLOWANCE)
        reused = self._pool.begin()
        try:
            return self._attempt(request, limit)
        except TransportError as error:
            if error.kind != "reset" or not reused or self._pool.answer_began():
                raise
        self._pool.begin()
        return self._attempt(request, limit)

    def close(self) -> None:
        self._adapter.close()

    def _attempt(self, request: requests.PreparedRequest, limit: int) -> Answer:
        try:
            response = self._adapter.send(request, stream=True)
            raw: urllib3.BaseHTTPResponse = response.raw
            try:
                body = read_body(raw, limit)
            except BaseException:
                raw.close()
                raise
            raw.release_conn()
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise describe(error) from error
        return Answer(response.status_code, response.headers, body)


class _Connection(TlsConnection):
    """urllib3's connection, connected within the budget and over our TLS."""

    def __init__(self, host: str, port: int | None = None, **options: object) -> None:
        self._endpoint: Endpoint = options.pop("endpoint")  # type: ignore[assignment]
        self._budget: CallBudget = options.pop("budget")  # type: ignore[assignment]
        super().__init__(host, port, **options)  # type: ignore[arg-type]
        self.stream: TlsStream | None = None

    def connect(self) -> None:
        where, route = self._endpoint, self._endpoint.route
        raw = sockets.connect(where, self._budget)
        try:
            if route.proxy is not None:
                open_tunnel(raw, route.proxy, where.host, where.port, self._budget)
            self.stream = where.context().handshake(raw, where.host, self._budget, route.connect_timeout)
        except BaseException:
            raw.close()
            raise
        self.sock = self.stream
        self.is_verified = True

    def close(self) -> None:
        super().close()
        self.stream = None


class _Pool(TlsPool):
    """The pool of one connection that the adapter asks for it."""

    ConnectionCls = _Connection

    def __init__(self, endpoint: Endpoint, budget: CallBudget) -> None:
        super().__init__(endpoint.host, endpoint.port, maxsize=1, endpoint=endpoint, budget=budget)
        self._stream: TlsStream | None = None
        self._received_before = 0

    def begin(self) -> bool:
        """Note what the coming request starts from; True when it goes over a connection that has served before.

        A second answer to the request before would be taken for the answer to this one: such a connection is given up.
        """
        connection = self._get_conn()
        stream = connection.stream if isinstance(connection, _Connection) else None
        if stream is not None and stream.spoke_unasked():
            connection.close()
            stream = None
        self._stream = stream
        self._received_before = stream.received if stream is not None else 0
        self._put_conn(connection)
        return stream is not None

    def answer_began(self) -> bool:
        """Whether any byte of the answer came over the connection noted by ``begin``."""
        return self._stream is not None and self._stream.received > self._received_before


class _Adapter(HTTPAdapter):
    """The transport adapter that knows one pool, and no other way to verify a server than its TLS."""

    def __init__(self, pool: _Pool) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)
        self._pool = pool

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,
        verify: object,
        proxies: Mapping[str, str] | None = None,
        cert: object = None,
    ) -> TlsPool:
        return self._pool

    def cert_verify(self, conn: object, url: object, verify: object, cert: object) -> None:
        """``requests`` would add its own CA bundle here; the TLS context is complete as it is."""

    def close(self) -> None:
        super().close()
        self._pool.close()
