"""The HTTPS server: TLS 1.3, client certificates, keep-alive, one thread per connection. It knows no endpoint.

A client that is slow at the handshake or hangs in the middle of a request holds its own thread and nobody else's.
"""

from __future__ import annotations

import json
import logging
import select
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID

from nixfleet_agent.local_cp.ca import public_bytes
from nixfleet_agent.local_cp.faults import Faults
from nixfleet_agent.text import printable

LOG = logging.getLogger("nixfleet_agent.local_cp")

BODY_LIMIT = 1024 * 1024
#: Of a body that is refused so much is still read: closing on unread bytes would take the answer back on its way.
DRAIN_LIMIT = 16 * BODY_LIMIT
DRAIN_SECS = 10.0
#: A number of more digits is no length of anything; Python refuses to read one of thousands.
LENGTH_DIGITS = 20
HANDSHAKE_SECS = 10.0
#: An agent beats every 60 s on the same connection: closing earlier would cost it a handshake each time.
IDLE_SECS = 90.0
#: A thousand agents that start together must not have their connections refused.
BACKLOG = 1024
#: How late the accepting thread notices that it should stop.
ACCEPT_POLL_SECS = 0.1


@dataclass(frozen=True, slots=True)
class Peer:
    """Who the client certificate says is calling."""

    hostname: str
    public_raw: bytes
    not_before: datetime


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body read; header names are in lower case. ``gone`` says whether the client has hung up."""

    method: str
    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    peer: Peer | None
    gone: Callable[[], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer. ``undelivered`` is called when it could not be written to the end."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    undelivered: Callable[[], None] | None = None


class HttpsServer(ThreadingHTTPServer):
    """Serves ``answer`` on ``address`` from ``start`` to ``stop``."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = BACKLOG

    def __init__(
        self,
        address: tuple[str, int],
        context: ssl.SSLContext,
        answer: Callable[[Request], Response],
        faults: Faults,
    ) -> None:
        self.answer = answer
        self.faults = faults
        self.stopping = threading.Event()
        self._context = context
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, ssl.SSLSocket] = {}
        super().__init__(address, _Handler)
        self._acceptor = threading.Thread(target=self.serve_forever, args=(ACCEPT_POLL_SECS,), name="local-cp-accept")

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def connections(self) -> int:
        """How many are open."""
        with self._lock:
            return len(self._open)

    def start(self) -> None:
        self._acceptor.start()

    def stop(self, patience: float = 5.0) -> None:
        """Stop accepting, cut what is open and wait for its threads; call it once the long polls have been ended."""
        self.stopping.set()
        self.shutdown()
        self._acceptor.join()
        self.server_close()
        for thread in self.cut():
            thread.join(patience)

    def cut(self) -> list[threading.Thread]:
        """Break every open connection; the threads that served them."""
        with self._lock:
            victims = dict(self._open)
        for victim in victims.values():
            _hang_up(victim)
        return list(victims)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection from handshake to end, in its own thread."""
        request.settimeout(HANDSHAKE_SECS)
        secured = self._context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        thread = threading.current_thread()
        with self._lock:
            self._open[thread] = secured
        try:
            if self._shake_hands(secured):
                super().process_request_thread(secured, client_address)
        finally:
            secured.close()
            with self._lock:
                del self._open[thread]

    def _shake_hands(self, secured: ssl.SSLSocket) -> bool:
        if self.faults.partition or self.stopping.is_set():
            return False
        try:
            secured.do_handshake()
        except OSError as error:
            LOG.debug("a client gave up or failed at the TLS handshake: %s", error)
            return False
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called by the base for what escaped a handler: an error of ours is shown, a broken connection is not."""
        if not self.stopping.is_set():
            LOG.exception("a request failed inside the local control plane")


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads requests and writes what the server's ``answer`` says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE_SECS
    server: HttpsServer

    def setup(self) -> None:
        super().setup()
        self._peer = _peer(self.connection)

    def handle(self) -> None:
        """A connection that breaks is the client's affair: it will try again."""
        try:
            super().handle()
        except OSError as error:
            LOG.debug("a connection broke: %s", error)

    def do_GET(self) -> None:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            # A body that is not read would be taken for the next request.
            self.close_connection = True
        self._serve(b"")

    def do_POST(self) -> None:
        length = self._declared_length()
        if length is None or length > BODY_LIMIT:
            status = HTTPStatus.LENGTH_REQUIRED if length is None else HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            self.send_error(status, "a body of at most 1 MiB with its length is needed")
            self._drain(DRAIN_LIMIT if length is None else length)
            return
        body = self.rfile.read(length)
        if len(body) == length:
            self._serve(body)
        else:
            self.close_connection = True

    def _declared_length(self) -> int | None:
        """Bytes of the body, at most ``DRAIN_LIMIT``; None where the head does not say."""
        text = self.headers.get("Content-Length", "")
        if not text.isdecimal() or "Transfer-Encoding" in self.headers:
            return None
        return min(int(text), DRAIN_LIMIT) if len(text) < LENGTH_DIGITS else DRAIN_LIMIT

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """As the endpoints say no; called by the base too, for what is no HTTP. The connection ends with it."""
        self.close_connection = True
        reason = message or HTTPStatus(code).phrase
        self._write(Response(status=code, body=json.dumps({"error": printable(reason, 200)}).encode()))

    def _drain(self, length: int) -> None:
        """Read on, so that the client gets to see its refusal."""
        self.connection.settimeout(DRAIN_SECS)
        while length > 0 and (piece := self.rfile.read1(min(length, 65536))):
            length -= len(piece)

    def _serve(self, body: bytes) -> None:
        try:
            url = urlsplit(self.path)
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST, "the address can't be read")
            return
        request = Request(
            method=self.command,
            path=url.path,
            params=dict(parse_qsl(url.query)),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=body,
            peer=self._peer,
            gone=self._gone,
        )
        response = self.server.answer(request)
        delay = self.server.faults.delay
        if delay:
            self.server.stopping.wait(delay)
        self._write(response)

    def _write(self, response: Response) -> None:
        """In one piece: a head and a body in two packets would cost the client a delayed acknowledgement."""
        if self.server.stopping.is_set():
            self.close_connection = True
        status = HTTPStatus(response.status)
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", f"Date: {self.date_time_string()}"]
        if status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            lines.append(f"Content-Length: {len(response.body)}")
        if response.body:
            lines.append(f"Content-Type: {response.content_type}")
        lines.extend(f"{name}: {value}" for name, value in response.headers.items())
        if self.close_connection:
            lines.append("Connection: close")
        try:
            self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + response.body)
        except OSError:
            if response.undelivered is not None:
                response.undelivered()
            raise

    def _gone(self) -> bool:
        """Whether the client closed: in the middle of our answer a readable connection means its end."""
        poll = select.poll()  # not select(), which fails for descriptors above 1023
        poll.register(self.connection, select.POLLIN)
        return bool(poll.poll(0)) or self.server.faults.partition

    def log_message(self, format: str, *args: Any) -> None:
        LOG.debug(format, *args)


def tls_context(certificate: Path, key: Path, fleet_ca: Path) -> ssl.SSLContext:
    """TLS 1.3 only; client certificates of the fleet CA are asked for and checked, and may be absent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(cafile=fleet_ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _peer(connection: Any) -> Peer | None:
    der = connection.getpeercert(binary_form=True)
    if der is None:
        return None
    certificate = x509.load_der_x509_certificate(der)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        return None
    return Peer(str(names[0].value), public_bytes(certificate.public_key()), certificate.not_valid_before_utc)


def _hang_up(victim: ssl.SSLSocket) -> None:
    """Break the connection below TLS: the TLS object is in use by the thread that serves it."""
    try:
        socket.socket.shutdown(victim, socket.SHUT_RDWR)
    except OSError as error:
        LOG.debug("a connection was closed already: %s", error)
