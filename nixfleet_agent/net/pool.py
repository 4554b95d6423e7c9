"""The base of connection pools over TLS of our own: urllib3's has one only where Python's `ssl` is loaded."""

from __future__ import annotations

import http.client
from typing import Any

from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

HTTPS_PORT = 443


_CONTINUE, _SWITCHING = 100, 101


class BoundedResponse(http.client.HTTPResponse):
    """Interim answers are passed over, and chunk sizes are not negative.

    ``http.client`` takes a 102 or 103 for the answer itself, and the answer for that of the next request (RFC 9110,
    section 15.2). A size of -1 would mean "all there is" to whoever reads, past every limit.
    """

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status == _SWITCHING:
                raise http.client.BadStatusLine("101: nobody asked for another protocol")
            if not _CONTINUE < status < 200:
                return version, status, reason
            http.client.parse_headers(self.fp)  # of the interim answer

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            raise ValueError("negative chunk size")  # which ``http.client`` turns into IncompleteRead
        return size


class TlsConnection(HTTPConnection):
    """An HTTP connection whose ``connect`` (a subclass's) leaves a TLS stream in ``sock``."""

    default_port = HTTPS_PORT  # type: ignore[misc]
    response_class = BoundedResponse


class TlsPool(HTTPConnectionPool):
    """Connects before the request is written, as urllib3's HTTPSConnectionPool does.

    A reset while a request is being written is passed over, for the answer may be there already; one during the TLS
    handshake must not be.
    """

    scheme = "https"
    ConnectionCls = TlsConnection

    def _validate_conn(self, conn: Any) -> None:
        super()._validate_conn(conn)
        if conn.is_closed:
            conn.connect()
