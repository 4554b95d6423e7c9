"""A binary cache over HTTP that sends no more than so many bytes a second, to all its clients together."""

from __future__ import annotations

import functools
import http.server
import multiprocessing
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

_PIECE = 64 * 1024


class Rate:
    """Lets bytes pass at ``per_second``; thread-safe. What was not used in time is not saved up."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._never = threading.Event()

    def take(self, count: int) -> None:
        """Wait until ``count`` more bytes may have been sent."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / self._per_second
            due = self._free_at
        self._never.wait(max(0.0, due - time.monotonic()))


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, rate: Rate, *arguments: Any, directory: str) -> None:
        self._rate = rate
        super().__init__(*arguments, directory=directory)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        while piece := source.read(_PIECE):
            self._rate.take(len(piece))
            try:
                outputfile.write(piece)
            except OSError:  # the client is gone: that is its own affair
                return

    def log_message(self, format: str, *arguments: object) -> None:
        """Nobody reads it."""


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


def _serve(folder: str, per_second: float, pipe: Connection) -> None:
    server = _Server(("127.0.0.1", 0), functools.partial(_Handler, Rate(per_second), directory=folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    pipe.send(f"http://127.0.0.1:{server.server_address[1]}")
    pipe.recv()
    server.shutdown()
    server.server_close()


class LimitedCache:
    """Serves ``folder`` from a process of its own, so that it takes no turns with whoever measures."""

    def __init__(self, folder: Path, per_second: float) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        self._child = spawn.Process(target=_serve, args=(str(folder), per_second, theirs), daemon=True)
        self._child.start()
        self.url: str = self._pipe.recv()

    def __enter__(self) -> LimitedCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.send(None)
        self._child.join()
