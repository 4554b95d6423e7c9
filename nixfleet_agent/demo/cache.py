"""The binary cache: a folder, served over HTTP from a thread of this process."""

from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from nixfleet_agent.demo.errors import DemoError

HOST = "127.0.0.1"


class _Server(ThreadingHTTPServer):
    #: A hundred agents fetch a release at the same moment.
    request_queue_size = 256


class _Files(SimpleHTTPRequestHandler):
    """Static files, and silence."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """The terminal belongs to the story."""


class Cache:
    """Serves ``folder`` from construction to ``close``."""

    def __init__(self, folder: Path) -> None:
        try:
            self._server = _Server((HOST, 0), functools.partial(_Files, directory=str(folder)))
        except OSError as error:
            raise DemoError(f"can't listen on {HOST}: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="demo-cache")
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
