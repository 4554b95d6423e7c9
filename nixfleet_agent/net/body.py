"""Response bodies: read in pieces, decompressed in pieces, and cut off at the limit while they arrive."""

from __future__ import annotations

import io
import zlib

import urllib3

from nixfleet_agent.errors import TransportError
from nixfleet_agent.net.failures import AnswerTooLargeError
from nixfleet_agent.text import printable

#: Bytes read from the connection, and at most decompressed, at a time.
_PIECE = 64 * 1024


def read_body(response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    """The whole body, decompressed, of at most ``limit`` bytes.

    The limit counts decompressed bytes, because 100 KB of gzip can hold 100 MB.

    Raises:
        TransportError: ``too_large``, ``protocol`` (an encoding that was not asked for, or damaged), or what the
            connection raises.
    """
    announced = response.headers.get("content-length", "")
    if announced.isdecimal() and len(announced) < 20 and int(announced) > limit:
        raise _too_large(limit)
    return _read_plain(response, limit) if _encoding(response) == "identity" else _read_gzip(response, limit)


def read_start(response: urllib3.BaseHTTPResponse, most: int) -> bytes:
    """The first ``most`` bytes of a body, decompressed; what comes after them is not read.

    The libraries' own decompression has a limit since urllib3 2.6 only.

    Raises:
        TransportError: ``protocol``, as ``read_body``, or what the connection raises.
    """
    decoder = None if _encoding(response) == "identity" else zlib.decompressobj(16 + zlib.MAX_WBITS)
    start = bytearray()
    try:
        while len(start) < most and (piece := response.read(most - len(start), decode_content=False)):
            start += piece if decoder is None else decoder.decompress(piece, most - len(start))
            while decoder is not None and decoder.unconsumed_tail and len(start) < most:
                start += decoder.decompress(decoder.unconsumed_tail, most - len(start))
    except zlib.error as error:
        raise TransportError(f"the gzip body is damaged ({error})", "protocol") from error
    if decoder is not None and start and len(start) < most and not decoder.eof:
        raise TransportError("the gzip body is cut short", "protocol")
    return bytes(start)


def _encoding(response: urllib3.BaseHTTPResponse) -> str:
    encoding = response.headers.get("content-encoding", "identity").strip().lower() or "identity"
    if encoding in ("gzip", "x-gzip"):
        return "gzip"
    if encoding != "identity":
        shown = printable(encoding, 60)
        raise TransportError(f"the body has the encoding {shown!r}, which was not asked for", "protocol")
    return encoding


def _read_plain(response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    # Grows in place, and gives its content without a copy: a list of pieces that is joined is twice as large.
    body = io.BytesIO()
    while piece := response.read(min(_PIECE, limit + 1 - body.tell()), decode_content=False):
        body.write(piece)
        if body.tell() > limit:
            raise _too_large(limit)
    return body.getvalue()


def _read_gzip(response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    inflated = _Inflated(limit)
    received = 0
    try:
        while piece := response.read(_PIECE, decode_content=False):
            received += len(piece)
            if received > limit:
                raise _too_large(limit)
            inflated.add(piece)
    except zlib.error as error:
        raise TransportError(f"the gzip body is damaged ({error})", "protocol") from error
    if received and not inflated.complete:
        raise TransportError("the gzip body is cut short", "protocol")
    return inflated.body.getvalue()


class _Inflated:
    """One gzip member, decompressed by at most ``_PIECE`` bytes at a time."""

    def __init__(self, limit: int) -> None:
        self._decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._limit = limit
        self.body = io.BytesIO()

    @property
    def complete(self) -> bool:
        return self._decoder.eof

    def add(self, data: bytes) -> None:
        """Decompress ``data`` (raises zlib.error, TransportError)."""
        if self._decoder.eof:
            raise TransportError("the gzip body goes on after its end", "protocol")
        while data:
            part = self._decoder.decompress(data, _PIECE)
            if part:
                self.body.write(part)
                if self.body.tell() > self._limit:
                    raise _too_large(self._limit)
            data = self._decoder.unconsumed_tail
        if self._decoder.unused_data:
            raise TransportError("the gzip body goes on after its end", "protocol")


def _too_large(limit: int) -> AnswerTooLargeError:
    return AnswerTooLargeError(f"the body is larger than {limit} bytes, the limit for this endpoint", "too_large")
