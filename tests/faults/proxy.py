"""A TCP proxy between agent and control plane that can do to a connection what networks do."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable

CHUNK = 4096
#: Resets a connection at close instead of ending it.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Passes bytes on, unless ``mode`` is ``reset``, ``hole``, ``drip``, ``half``, ``refuse`` or ``idle``."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.mode = "pass"
        self.target = target
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closing = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._server.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, name="proxy")]
        self._threads[0].start()

    def turn(self, mode: str) -> None:
        """Change what happens; connections in the way of the new mode are cut."""
        self.mode = mode
        self.cut()

    def aim(self, target: tuple[str, int]) -> None:
        """Connections lead there from now on, and only there."""
        self.target = target
        self.cut()

    def cut(self) -> None:
        with self._lock:
            victims = list(self._open)
        for victim in victims:
            _hang_up(victim)

    def close(self) -> None:
        self._closing.set()
        with socket.create_connection(("127.0.0.1", self.port)):
            pass
        self._threads[0].join()
        self._server.close()
        self.cut()
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        while not self._closing.is_set():
            client, _ = self._server.accept()
            if self.mode in ("reset", "refuse") or self._closing.is_set():
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                continue
            try:
                server = socket.create_connection(self.target, timeout=5)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            for source, sink, answer in ((client, server, False), (server, client, True)):
                thread = threading.Thread(target=self._guarded, args=(source, sink, answer), name="proxy")
                self._threads.append(thread)
                thread.start()

    def _guarded(self, source: socket.socket, sink: socket.socket, answer: bool) -> None:
        try:
            self._pass_on(source, sink, answer)
        except OSError:
            pass
        _hang_up(source)
        _hang_up(sink)
        with self._lock:
            self._open -= {source}
        source.close()

    def _pass_on(self, source: socket.socket, sink: socket.socket, answer: bool) -> None:
        source.settimeout(0.15 if self.mode == "idle" else None)
        while data := source.recv(CHUNK):
            if self.mode == "hole":
                continue
            if self.mode == "half" and answer and len(data) > 40:
                sink.sendall(data[: len(data) // 2])
                return
            if self.mode == "drip" and answer:
                self._drip(data, sink.sendall)
            else:
                sink.sendall(data)

    def _drip(self, data: bytes, send: Callable[[bytes], None]) -> None:
        for start in range(0, len(data), 16):
            send(data[start : start + 16])
            if self.mode == "drip":
                self._closing.wait(0.01)


def _hang_up(victim: socket.socket) -> None:
    try:
        victim.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
