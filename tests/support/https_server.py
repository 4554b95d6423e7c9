"""A real TLS server in this process, with the misbehaviour that a control plane or a middlebox may show.

    with HttpsServer(server_cert, server_key, client_ca=ca_path) as server:
        server.route("GET", "/v1/x", json={"a": 1})                    # a fixed answer
        server.route("POST", "/v1/y", handler=lambda request: Reply(204))
        server.route("GET", "/v1/z", Drip(), Reply(200, b"fine"))      # one after the other, the last one for good
        ...  server.url, server.requests (each with .path, .headers, .body, .client_serial, .client_name)

``client_ca`` asks for a client certificate: required unless ``client_optional``. ``maximum`` caps the TLS version.
A handler may return a ``Reply`` or any other of ``behaviours``. Every behaviour ends when the server stops.
"""

from __future__ import annotations

import json as json_module
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from nixfleet_agent.proto.contract import request_faults
from tests.support.behaviours import Behaviour, HandlerFunction, Reply, Request


class HttpsServer:
    """Threads serve connections until ``close`` (or the end of the ``with`` block)."""

    def __init__(
        self,
        certificate: Path,
        key: Path,
        *,
        client_ca: Path | None = None,
        client_optional: bool = False,
        minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
        maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        host: str = "127.0.0.1",
    ) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = minimum
        self.context.maximum_version = maximum
        self.context.load_cert_chain(certificate, key)
        if client_ca is not None:
            self.context.load_verify_locations(client_ca)
            self.context.verify_mode = ssl.CERT_OPTIONAL if client_optional else ssl.CERT_REQUIRED
        self.requests: list[Request] = []
        #: What requests of the protocol broke of its contract; a test that sends such on purpose clears it.
        self.breaches: list[str] = []
        self.handshake_failures: list[str] = []
        self.stopping = threading.Event()
        self._routes: dict[tuple[str, str], list[Behaviour | HandlerFunction]] = {}
        self._lock = threading.Lock()
        self._server = _Server((host, 0), self)
        self.host = host
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="https-server")
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """TCP connections accepted so far."""
        return self._server.accepted

    def route(
        self,
        method: str,
        path: str,
        *behaviours: Behaviour | HandlerFunction,
        json: object = None,
        handler: HandlerFunction | None = None,
    ) -> None:
        """Answer ``method path`` with the behaviours in turn, the last one for good; JSON; or what ``handler`` says."""
        chosen: list[Behaviour | HandlerFunction] = list(behaviours)
        if json is not None:
            headers = {"Content-Type": "application/json"}
            chosen.append(Reply(200, json_module.dumps(json).encode(), headers))
        if handler is not None:
            chosen.append(handler)
        with self._lock:
            self._routes[method, path] = chosen or [Reply(204)]

    @property
    def open_connections(self) -> int:
        """Connections that are being served now."""
        return self._server.open_count()

    def drop_connections(self) -> None:
        """Close every open connection, as a server does with idle ones."""
        self._server.drop()

    def close(self) -> None:
        """End it; fails where a request of the protocol broke the contract of the wire, whatever the test looked at."""
        self.stopping.set()
        self._server.shutdown()
        self._server.drop()
        self._server.server_close()
        self._thread.join()
        if self.breaches:
            raise AssertionError(f"the contract of the wire (conf/schemas/wire) is broken: {self.breaches[:5]}")

    def __enter__(self) -> HttpsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def behaviour_for(self, request: Request) -> Behaviour:
        breaches = list(request_faults(request.method, request.path, dict(request.headers.items()), request.body))
        with self._lock:
            self.breaches += breaches
            self.requests.append(request)
            chosen = self._routes.get((request.method, request.path))
            if chosen is None:
                return Reply(404, b"no such route")
            behaviour = chosen.pop(0) if len(chosen) > 1 else chosen[0]
        return behaviour(request) if callable(behaviour) else behaviour


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], owner: HttpsServer) -> None:
        self.owner = owner
        self.accepted = 0
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._guard:
            self.accepted += 1
        return connection, address

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            request.settimeout(10)
            # The handshake belongs in the connection's thread: one that never ends must not stop the others.
            secured = self.owner.context.wrap_socket(request, server_side=True, suppress_ragged_eofs=True)
        except OSError as error:
            self.owner.handshake_failures.append(str(error))
            request.close()
            return
        with self._guard:
            self._open.add(secured)
        super().process_request_thread(secured, client_address)

    def forget(self, handler: _Handler) -> None:
        with self._guard:
            self._open.discard(handler.connection)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        try:
            super().shutdown_request(request)
        except OSError:
            request.close()

    def open_count(self) -> int:
        with self._guard:
            return len(self._open)

    def drop(self) -> None:
        with self._guard:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up on purpose in these tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    connection: ssl.SSLSocket

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def pause(self, seconds: float | None) -> bool:
        """Wait; True when the server is stopping."""
        return self.server.owner.stopping.wait(seconds)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        certificate: Any = self.connection.getpeercert() or {}
        subject = {key: value for part in certificate.get("subject", ()) for key, value in part}
        serial = certificate.get("serialNumber")
        parts = urlsplit(self.path)
        request = Request(
            self.command,
            parts.path,
            parse_qs(parts.query),
            self.headers,
            body,
            int(serial, 16) if serial else None,
            subject.get("commonName"),
            id(self.connection),
        )
        self.server.owner.behaviour_for(request).play(self)
        if not self.close_connection:
            self.wfile.flush()
