"""The http runner: one GET over a door of its own, bounded in time, redirects and bytes.

There is no ``requests.Session``: it would read proxies and .netrc from the environment and the whole body of a redirect
without a limit, and it is a quarter of what a run costs.
"""

from __future__ import annotations

import functools
import sys
from contextlib import ExitStack, closing
from http.client import HTTPException
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar, extract_cookies_to_jar
from urllib3.connection import HTTPConnection
from urllib3.util import parse_url

from nixfleet_agent import __version__
from nixfleet_agent.errors import TransportError
from nixfleet_agent.net.body import read_start
from nixfleet_agent.net.pool import HTTPS_PORT, BoundedResponse, TlsConnection, TlsPool
from nixfleet_agent.probes.declarations import HttpDecl
from nixfleet_agent.probes.runners.context import RunnerContext
from nixfleet_agent.probes.runners.outcome import RunnerOutcome, failed, passed
from nixfleet_agent.probes.runners.sockets import PlainSocket, closing_down, connect
from nixfleet_agent.threads.deadline import Deadline

HTTP_PORT = 80
REDIRECT_LIMIT = 10
BODY_LIMIT = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {
    "User-Agent": f"nixfleet-agent/{__version__}",
    "Accept": "*/*",
    # Unpacking what a server packed costs memory and time, and a probe reads 64 KiB.
    "Accept-Encoding": "identity",
    "Connection": "close",
}


class _ProbeError(Exception):
    """The exchange worked, and its result is a fail."""


def run(decl: HttpDecl, ctx: RunnerContext) -> RunnerOutcome:
    """GET the URL, follow at most 10 redirects, compare status and, where asked for, body."""
    deadline = Deadline(ctx.clock, decl.timeout)
    try:
        with ExitStack() as stack:
            _judge(decl, _follow(decl, _ProbeAdapter(ctx, deadline, stack), deadline, stack))
    except _ProbeError as error:
        return failed(str(error))
    except (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
        if ctx.cancel.is_set:
            return failed("stopped")
        if deadline.over:
            return failed(f"no full answer within {decl.timeout:g} s")
        return failed(_cause(error))
    return passed()


def _follow(decl: HttpDecl, door: _ProbeAdapter, deadline: Deadline, stack: ExitStack) -> requests.Response:
    """The first answer with the expected status, or the first that is no redirect."""
    cookies = RequestsCookieJar()
    request = _first(decl.url)
    for _ in range(REDIRECT_LIMIT + 1):
        response = door.send(request, stream=True, timeout=deadline.left())
        stack.enter_context(closing(response))
        if "Set-Cookie" in response.headers:
            extract_cookies_to_jar(cookies, request, response.raw)  # type: ignore[no-untyped-call]
        location = response.headers.get("Location")
        if response.status_code == decl.expect_status or response.status_code not in _REDIRECTS or not location:
            return response
        response.close()
        # http.client decodes headers as Latin-1; what servers mean is UTF-8.
        url = urljoin(response.url, location.encode("latin-1", "replace").decode("utf-8", "replace"))
        if urlsplit(url).scheme not in ("http", "https"):
            raise _ProbeError("redirected to a URL that is not http or https")
        request = _prepared(url, cookies)
    raise _ProbeError(f"more than {REDIRECT_LIMIT} redirects")


@functools.lru_cache(maxsize=128)
def _first(url: str) -> requests.PreparedRequest:
    """A probe asks the same each time, and preparing that is an eighth of a run. Nobody changes what was prepared."""
    return _prepared(url, None)


def _prepared(url: str, cookies: RequestsCookieJar | None) -> requests.PreparedRequest:
    request = requests.PreparedRequest()
    request.prepare("GET", url, headers=_HEADERS, cookies=cookies)
    return request


def _judge(decl: HttpDecl, response: requests.Response) -> None:
    if response.status_code != decl.expect_status:
        raise _ProbeError(f"status {response.status_code}, expected {decl.expect_status}")
    if decl.body_contains is None:
        return
    # All of it before a look: a server that hangs or dies behind the text that is looked for has not passed.
    try:
        body = read_start(response.raw, BODY_LIMIT)
    except TransportError as error:
        raise _ProbeError(str(error)) from error
    if decl.body_contains.encode() not in body:
        raise _ProbeError(f"{decl.body_contains!r} is not in the first {len(body)} bytes of the body")


class _ProbeAdapter(HTTPAdapter):
    """Connections that end with the run's deadline and with its cancellation."""

    def __init__(self, ctx: RunnerContext, deadline: Deadline, stack: ExitStack) -> None:
        super().__init__()
        self._ctx = ctx
        self._deadline = deadline
        self._stack = stack

    def open(self, host: str, port: int) -> PlainSocket:
        """A connection that stays under watch until the run ends."""
        try:
            sock = connect(host, port, self._deadline, self._ctx.cancel, self._ctx.resolver)
        except OSError as error:
            raise OSError(f"can't connect to {host} port {port}: {error.strerror or error}") from error
        self._stack.callback(sock.close)
        self._stack.enter_context(closing_down(sock, self._ctx.cancel))
        sock.settimeout(self._deadline.left())
        return sock

    def secure(self, plain: PlainSocket, host: str) -> Any:
        """TLS over ``plain``, with a server that is ``host``; its reads obey the deadline too."""
        secured: Any = self._ctx.tls.context().wrap_socket(plain, server_hostname=host)
        secured.deadline = self._deadline
        return secured

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> urllib3.HTTPConnectionPool:
        url = parse_url(request.url or "")
        pool: urllib3.HTTPConnectionPool
        if url.scheme == "https":
            pool = TlsPool(url.host or "", url.port or HTTPS_PORT)
            pool.ConnectionCls = functools.partial(_TlsConnection, self)  # type: ignore[assignment]
        else:
            # Without a port the last colon of an IPv6 address would be taken for the one before it.
            pool = urllib3.HTTPConnectionPool(url.host or "", url.port or HTTP_PORT)
            pool.ConnectionCls = functools.partial(_PlainConnection, self)  # type: ignore[assignment]
        self._stack.callback(pool.close)
        return pool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """The pool has its context; the stock method would add a list of authorities of its own."""


class _PlainConnection(HTTPConnection):
    response_class = BoundedResponse

    def __init__(self, door: _ProbeAdapter, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._door = door

    def _new_conn(self) -> PlainSocket:
        return self._door.open(self.host, self.port)


class _TlsConnection(TlsConnection):
    def __init__(self, door: _ProbeAdapter, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._door = door

    def connect(self) -> None:
        self.sock = self._door.secure(self._door.open(self.host, self.port), self.host)
        self.is_verified = True


def _cause(error: BaseException) -> str:
    """The system's or TLS's own words, dug out of the layers that wrapped them."""
    ssl = sys.modules.get("ssl")  # as long as no https probe ran it is not loaded, and nothing raises its errors
    waiting: list[object] = [error]
    seen: list[object] = []
    while waiting:
        found = waiting.pop(0)
        if not isinstance(found, BaseException) or found in seen:
            continue
        seen.append(found)
        if ssl is not None and isinstance(found, ssl.SSLCertVerificationError):
            return f"TLS: the server's certificate was refused: {found.verify_message}"
        if ssl is not None and isinstance(found, ssl.SSLError):
            return f"TLS: {found.reason or found}"
        if isinstance(found, OSError) and not isinstance(found, requests.RequestException):
            return found.strerror or str(found) or type(found).__name__
        if isinstance(found, HTTPException):
            return f"no proper HTTP answer: {found!r}"
        waiting += [getattr(found, "reason", None), *found.args, found.__cause__, found.__context__]
    return f"{type(error).__name__}: {error}"
