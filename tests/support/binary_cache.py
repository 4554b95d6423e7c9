"""A binary cache in this process, which may be slow, break off, refuse, or never end."""

from __future__ import annotations

import functools
import http.server
import socketserver
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


class CacheServer:
    """Serves a folder on 127.0.0.1; ``drip`` (bytes, seconds) slows every .nar.

    After ``stall_after`` bytes of one it stops, after ``cut_after`` the connection is closed. ``status`` may answer a
    path with an HTTP error. With ``endless`` every .nar is a file of 2^50 bytes, of
    which 64 MiB come.
    """

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self.drip: tuple[int, float] | None = None
        self.stall_after: int | None = None
        self.cut_after: int | None = None
        self.endless = False
        self.status: Callable[[str], int | None] = lambda path: None
        self.closing = threading.Event()
        handler = functools.partial(_Handler, self, directory=str(folder))
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="test-cache")
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop answering, end every answer in progress."""
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = False
    block_on_close = True


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, cache: CacheServer, *arguments: Any, directory: str) -> None:
        self._cache = cache
        super().__init__(*arguments, directory=directory)

    def do_GET(self) -> None:
        if (code := self._cache.status(self.path)) is not None:
            self.send_error(code)
        elif self._cache.endless and self.path.startswith("/nar/"):
            self._send_endless()
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        if (code := self._cache.status(self.path)) is not None:
            self.send_error(code)
        else:
            super().do_HEAD()

    def _send_endless(self) -> None:
        """An archive of one file that is said to have 2^50 bytes."""
        self.send_response(200)
        self.end_headers()
        words = (b"nix-archive-1", b"(", b"type", b"regular", b"contents")
        head = b"".join(struct.pack("<Q", len(word)) + word.ljust(-(-len(word) // 8) * 8, b"\0") for word in words)
        try:
            self.wfile.write(head + struct.pack("<Q", 1 << 50))
            for _ in range(1024):
                self.wfile.write(bytes(65536))
            self._cache.closing.wait(60)
        except OSError:  # the client has seen enough
            return

    def log_message(self, format: str, *arguments: object) -> None:
        self._cache.requests.append(self.path)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        drip, stall, cut = self._cache.drip, self._cache.stall_after, self._cache.cut_after
        if not self.path.startswith("/nar/") or (drip is None and stall is None and cut is None):
            super().copyfile(source, outputfile)
            return
        sent = 0
        size, pause = drip or (4096, 0.0)
        while chunk := source.read(size):
            try:
                outputfile.write(chunk)
                outputfile.flush()
            except OSError:  # the client was ended in the middle: that is what the test wants
                return
            sent += len(chunk)
            if cut is not None and sent >= cut:
                return
            stalled = stall is not None and sent >= stall
            if self._cache.closing.wait(60 if stalled else pause):
                return
