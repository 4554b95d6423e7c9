"""What probe tests share: a context with the machine's clock, a server that answers raw bytes, and leak counters."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nixfleet_agent.probes.runners import RunnerContext
from nixfleet_agent.probes.runners.context import TlsDefaults
from nixfleet_agent.probes.runners.evidence_file import EvidenceReader
from nixfleet_agent.threads.cancel import CancelToken
from nixfleet_agent.threads.clock import SystemClock

MACHINE = "web-01"


def context(
    host_key: Path = Path("/nonexistent/ssh_host_ed25519_key"), tls: Callable[[], ssl.SSLContext] | None = None
) -> RunnerContext:
    return RunnerContext(SystemClock(), CancelToken(), EvidenceReader(MACHINE, host_key), tls=TlsDefaults(tls))


class RawServer:
    """Calls ``handler(connection, request)`` in a thread for each connection; ``request`` is the head as text."""

    def __init__(
        self, handler: Callable[[Any, str], None], family: socket.AddressFamily = socket.AF_INET, tls: Any = None
    ) -> None:
        self._handler = handler
        self._tls = tls
        self._listener = socket.socket(family)
        self._listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self._listener.listen(64)
        self.port: int = self._listener.getsockname()[1]
        self.closing = threading.Event()
        self.requests: list[str] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def url(self, path: str = "/") -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}{path}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self.closing.is_set():
                connection.close()
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(10)
            try:
                if self._tls is not None:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                with connection:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        piece = connection.recv(4096)
                        if not piece:
                            return
                        head += piece
                    self.requests.append(head.decode("latin-1"))
                    self._handler(connection, self.requests[-1])
            except OSError:
                return  # the probe hung up, as many tests make it

    def close(self) -> None:
        self.closing.set()
        family = self._listener.family
        with socket.socket(family) as knock:
            knock.connect_ex(self._listener.getsockname())
        for thread in self._threads:
            thread.join(15)
        self._listener.close()


def answer(status: str = "200 OK", body: bytes = b"ok", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def say(raw: bytes) -> Callable[[Any, str], None]:
    """A handler that sends ``raw`` and hangs up."""
    return lambda connection, request: connection.sendall(raw)


class ProbeCase(unittest.TestCase):
    """Measures, and can stop a run from outside."""

    def serve(self, handler: Callable[[Any, str], None], **options: Any) -> RawServer:
        server = RawServer(handler, **options)
        self.addCleanup(server.close)
        return server

    def assert_quick(self, began: float, limit: float) -> None:
        """Within ``limit`` seconds, and what a busy machine needs."""
        self.assertLess(time.monotonic() - began, limit + 4.0)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> set[int]:
    """Process ids of this process's children, zombies included."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        try:
            found |= {int(pid) for pid in Path(f"/proc/self/task/{task}/children").read_text().split()}
        except FileNotFoundError:
            continue  # the thread ended meanwhile
    return found


def stop_when(condition: Callable[[], bool], cancel: CancelToken) -> threading.Thread:
    """Set ``cancel`` as soon as ``condition`` holds."""

    def watch() -> None:
        gap = threading.Event()
        while not condition() and not cancel.is_set:
            gap.wait(0.005)
        cancel.set()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread
