"""A worker that owns one listening socket: it sleeps in the kernel until somebody calls or shutdown begins.

Callers are served one after the other, each within a deadline, so that a slow or silent one costs seconds and nothing
else; no thread is ever left behind with it.
"""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import closing

from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.threads.worker import Worker

#: Seconds that one caller may take in all.
CALL_DEADLINE = 3.0
#: Seconds between two tries to open a socket that can't be had.
OPEN_AGAIN = 15.0
#: Seconds between two signs of life while nobody calls.
_NAP = 60.0


class _WakeupSocket(threading.Event):
    """An event that also wakes a thread that waits in ``select``."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)

    def set(self) -> None:
        super().set()
        try:
            self._writer.send(b"!")
        except OSError:
            return  # closed, or full: then it rings already

    def close(self) -> None:
        self.reader.close()
        self._writer.close()


class Listener(Worker):
    """Subclasses open the socket and answer one caller; ``run`` is the loop of all of them."""

    def __init__(self, shutdown: ShutdownToken, clock: Clock) -> None:
        super().__init__(shutdown, clock)
        #: Set while the socket accepts callers.
        self.listening = threading.Event()

    #: Where the socket is and which key says so, for the line about one that can't be opened.
    where = "its socket"

    def open(self) -> socket.socket:
        """A bound, listening socket (raises OSError)."""
        raise RuntimeError(f"{self.name} opens no socket")

    def answer(self, caller: ClientConnection) -> None:
        """Serve one caller; OSError and TimeoutError end the call and nothing else."""
        raise RuntimeError(f"{self.name} answers nobody")

    def run(self) -> None:
        wakeup = _WakeupSocket()
        self.shutdown.wakeup(wakeup)
        try:
            opened = self._opened()
            if opened is None:
                return
            with closing(opened) as listening, selectors.DefaultSelector() as selector:
                selector.register(wakeup.reader, selectors.EVENT_READ)
                selector.register(listening, selectors.EVENT_READ)
                listening.setblocking(False)
                self.listening.set()
                while not self.shutdown.is_set:
                    self.alive()
                    if any(key.fileobj is listening for key, _ in selector.select(_NAP)) and not self.shutdown.is_set:
                        self._serve_one(listening)
        finally:
            self.listening.clear()
            self.shutdown.forget(wakeup)
            wakeup.close()

    def _opened(self) -> socket.socket | None:
        """The socket, when it can be had; None when shutdown came first.

        A port that another program has is a mistake, or its restart: no reason to die, and none to give up.
        """
        said = ""
        while not self.shutdown.is_set:
            self.alive()
            try:
                return self.open()
            except OSError as error:
                # Python adds which of its own calls failed, in brackets.
                reason = str(error.strerror or error).partition(" (while")[0]
                if reason != said:
                    self.log.error("can't listen on %s: %s; trying again every %.0f s", self.where, reason, OPEN_AGAIN)
                said = reason
                self.shutdown.wait(OPEN_AGAIN)
        return None

    def _serve_one(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except OSError as error:
            # Out of descriptors, say: the caller stays in the backlog, and select would return at once for ever.
            self.log.warning("can't take a call: %s", error.strerror or error)
            self.shutdown.wait(1.0)
            return
        with connection:
            try:
                self.answer(ClientConnection(connection, self.clock))
            except OSError as error:
                self.log.debug("a call ended early: %s", error)


class ClientConnection:
    """One connection, with one deadline for all that is read from it and written to it."""

    def __init__(self, connection: socket.socket, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._until = clock.monotonic() + CALL_DEADLINE

    def read_until(self, mark: bytes, limit: int) -> bytes:
        """What comes before ``mark``; all that came when the caller stops, or past ``limit`` bytes.

        Raises:
            TimeoutError: the deadline is over.
            OSError: the connection broke.
        """
        got = b""
        while mark not in got and len(got) <= limit:
            self._limit()
            part = self._connection.recv(4096)
            if not part:
                break
            got += part
        return got.partition(mark)[0]

    def send(self, data: bytes) -> None:
        """All of ``data`` (raises TimeoutError and OSError)."""
        view = memoryview(data)
        while view:
            self._limit()
            view = view[self._connection.send(view) :]

    def _limit(self) -> None:
        left = self._until - self._clock.monotonic()
        if left <= 0:
            raise TimeoutError("the caller took too long")
        self._connection.settimeout(left)
