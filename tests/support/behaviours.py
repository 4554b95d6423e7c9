"""How a server of the tests answers: properly, or as a control plane or a middlebox may misbehave."""

from __future__ import annotations

import gzip
import json as json_module
import socket
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tests.support.https_server import _Handler


@dataclass(frozen=True)
class Request:
    """What arrived. ``client_serial`` is the serial number of the client certificate, None without one."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Message
    body: bytes
    client_serial: int | None
    client_name: str | None
    connection: int

    def json(self) -> Any:
        return json_module.loads(self.body)


class Behaviour(Protocol):
    """How one request is answered."""

    def play(self, handler: _Handler) -> None: ...


@dataclass(frozen=True)
class Reply:
    """A proper answer; ``compressed`` gzips it; ``delay`` holds it back, as a long poll does."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    compressed: bool = False
    delay: float = 0.0
    close: bool = False

    def play(self, handler: _Handler) -> None:
        handler.pause(self.delay)
        body = gzip.compress(self.body) if self.compressed else self.body
        handler.send_response(self.status)
        if self.status not in (204, 304) and "Content-Length" not in self.headers:
            handler.send_header("Content-Length", str(len(body)))
        if self.compressed:
            handler.send_header("Content-Encoding", "gzip")
        if self.close:
            handler.send_header("Connection", "close")
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if self.status not in (204, 304):
            handler.wfile.write(body)
        if self.close:
            handler.close_connection = True


def refusal(status: int, words: str = "no", headers: Mapping[str, str] | None = None) -> Reply:
    """An error in the control plane's own form."""
    body = json_module.dumps({"error": words}).encode()
    return Reply(status, body, {"Content-Type": "application/json", **(headers or {})})


def page(status: int, title: str = "Service unavailable") -> Reply:
    """What a proxy in front of the control plane answers by itself."""
    body = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
    return Reply(status, body.encode(), {"Content-Type": "text/html", "Server": "nginx/1.24.0"})


@dataclass(frozen=True)
class Drip:
    """One byte every ``every`` seconds, without end: of the header block or of the body."""

    every: float = 0.05
    where: str = "body"  # body | headers | status

    def play(self, handler: _Handler) -> None:
        if self.where == "body":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
        elif self.where == "headers":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not handler.pause(self.every):
            handler.wfile.write(b"x")
            handler.wfile.flush()


@dataclass(frozen=True)
class Endless:
    """A chunked body that never ends, as fast as the client reads."""

    def play(self, handler: _Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        while not handler.pause(0):
            handler.wfile.write(piece)


@dataclass(frozen=True)
class Flood:
    """``start``, and then ``piece`` without end, as fast as the client reads."""

    start: bytes
    piece: bytes

    def play(self, handler: _Handler) -> None:
        handler.wfile.write(self.start)
        while not handler.pause(0):
            handler.wfile.write(self.piece)


@dataclass(frozen=True)
class GzipBomb:
    """``size`` bytes of zeros in a thousandth of that."""

    size: int = 100 * 1024 * 1024

    def play(self, handler: _Handler) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        block = bytes(1024 * 1024)
        body = b"".join(packer.compress(block) for _ in range(self.size // len(block))) + packer.flush()
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@dataclass(frozen=True)
class HalfBody:
    """Announces 1000 bytes, sends ten, and closes."""

    def play(self, handler: _Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"0123456789")
        handler.close_connection = True


@dataclass(frozen=True)
class Raw:
    """These bytes inside TLS, then close: garbage status lines, huge headers."""

    data: bytes

    def play(self, handler: _Handler) -> None:
        handler.wfile.write(self.data)
        handler.close_connection = True


@dataclass(frozen=True)
class KeptRaw:
    """These bytes inside TLS, ``later`` ones a moment after them, and the connection goes on."""

    data: bytes
    later: bytes = b""

    def play(self, handler: _Handler) -> None:
        handler.wfile.write(self.data)
        if self.later:
            handler.wfile.flush()
            handler.pause(0.05)
            handler.wfile.write(self.later)


@dataclass(frozen=True)
class Ended:
    """These bytes, and then the end of TLS as it should be: a body that ends with its connection."""

    data: bytes

    def play(self, handler: _Handler) -> None:
        handler.wfile.write(self.data)
        SayGoodbye().play(handler)


@dataclass(frozen=True)
class Reset:
    """A TCP reset instead of an answer."""

    def play(self, handler: _Handler) -> None:
        # Linger of zero seconds makes close() send RST.
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.server.forget(handler)
        handler.connection.close()
        handler.close_connection = True


@dataclass(frozen=True)
class Hang:
    """No answer until the server stops."""

    def play(self, handler: _Handler) -> None:
        handler.pause(None)
        handler.close_connection = True


@dataclass(frozen=True)
class CloseSilently:
    """Closes the connection without a byte, as a server that has just timed out a keep-alive connection."""

    def play(self, handler: _Handler) -> None:
        handler.close_connection = True


@dataclass(frozen=True)
class SayGoodbye:
    """Ends TLS properly without a byte of an answer, as a server that shuts down in order."""

    def play(self, handler: _Handler) -> None:
        handler.close_connection = True
        handler.connection.settimeout(0.2)
        try:
            handler.connection.unwrap()
        except OSError:
            # The client need not say goodbye in its turn.
            return


HandlerFunction = Callable[[Request], Behaviour]
