"""A NAT in this process: forwards TCP, and forgets a connection that was quiet for some seconds without a word.

    with Nat(server.port, forgets_after=2.0) as nat:
        ...  connect to nat.port; nat.forgotten counts the connections that it has forgotten

What is sent over a forgotten connection disappears, in both directions, and neither side is told.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from dataclasses import dataclass, field


@dataclass(eq=False)
class _Flow:
    """One connection: the client's socket and the server's."""

    sides: tuple[socket.socket, socket.socket]
    last: float = field(default_factory=time.monotonic)
    forgotten: bool = False

    def other(self, side: socket.socket) -> socket.socket:
        return self.sides[1] if side is self.sides[0] else self.sides[0]


class Nat:
    """Threads end with ``close`` or the ``with`` block."""

    def __init__(self, port: int, forgets_after: float, host: str = "127.0.0.1") -> None:
        self.forgets_after = forgets_after
        self.forgotten = 0
        self._target = (host, port)
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._flows: list[_Flow] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nat")
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        for flow in self._flows:
            for side in flow.sides:
                side.close()
        self._listener.close()
        self._selector.close()

    def __enter__(self) -> Nat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._ending.is_set():
            for key, _ in self._selector.select(0.02):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._forward(key.data, key.fileobj)  # type: ignore[arg-type]
            for flow in self._flows:
                if not flow.forgotten and time.monotonic() - flow.last > self.forgets_after:
                    flow.forgotten = True
                    self.forgotten += 1

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        flow = _Flow((client, socket.create_connection(self._target)))
        self._flows.append(flow)
        for side in flow.sides:
            self._selector.register(side, selectors.EVENT_READ, flow)

    def _forward(self, flow: _Flow, side: socket.socket) -> None:
        try:
            data = side.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(side)
        if flow.forgotten:
            return
        flow.last = time.monotonic()
        try:
            if data:
                flow.other(side).sendall(data)
            else:
                flow.other(side).shutdown(socket.SHUT_WR)
        except OSError:
            return
