"""The status page over plain HTTP on the loopback address: a browser warns of a CA that it does not know.

It shows what the HTTPS server shows to anyone, and changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from nixfleet_agent.local_cp.server import Request, Response

LOG = logging.getLogger("nixfleet_agent.local_cp")

IDLE_SECS = 30.0
ACCEPT_POLL_SECS = 0.1
#: Names that a browser on this machine asks for. Any other means that a page elsewhere was made to point here.
OWN_NAMES = ("127.0.0.1", "localhost")


class PageServer(ThreadingHTTPServer):
    """Serves ``pages`` by path on ``address`` from ``start`` to ``stop``."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], pages: Mapping[str, Callable[[Request], Response]]) -> None:
        self.pages = pages
        super().__init__(address, _Handler)
        self._acceptor = threading.Thread(target=self.serve_forever, args=(ACCEPT_POLL_SECS,), name="local-cp-pages")

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/"

    def start(self) -> None:
        self._acceptor.start()

    def stop(self) -> None:
        """Stop accepting; a page that is being written is written to its end."""
        self.shutdown()
        self._acceptor.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE_SECS
    server: PageServer

    def handle(self) -> None:
        """A browser that goes away in the middle is nobody's loss."""
        try:
            super().handle()
        except OSError as error:
            LOG.debug("a browser's connection broke: %s", error)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        page = self.server.pages.get(url.path)
        if self.headers.get("Host", "").rpartition(":")[0] not in OWN_NAMES:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        elif page is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            params = dict(parse_qsl(url.query))
            self._write(page(Request("GET", url.path, params, {}, b"", None, lambda: False)))

    def _write(self, response: Response) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(response.body)

    def log_message(self, format: str, *args: Any) -> None:
        LOG.debug(format, *args)
