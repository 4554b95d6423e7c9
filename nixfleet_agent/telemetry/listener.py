"""A worker that owns one listening socket: it sleeps in the kernel until somebody calls or shutdown begins.

Callers are served side by side in its one thread, a bounded number of them and each within a deadline: one that is slow
or silent costs the others nothing, and no thread is ever left behind with it.
"""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import closing
from dataclasses import dataclass, field
from typing import ClassVar

from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.threads.worker import Worker

#: Seconds that one caller may take in all.
CALL_DEADLINE = 3.0
#: Callers at one time; one more ends the oldest call, for who means it is served within milliseconds.
MAX_CALLERS = 16
#: Seconds between two tries to open a socket that can't be had.
OPEN_AGAIN = 15.0
#: Seconds between two signs of life while nobody calls.
_NAP = 60.0
_PIECE = 65536


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


@dataclass(slots=True)
class _Call:
    """One connection: what it sent, then what is left to send it, and when (monotonic seconds) its time is over."""

    connection: socket.socket
    until: float
    request: bytearray = field(default_factory=bytearray)
    reply: memoryview | None = None


class Listener(Worker):
    """Subclasses open the socket and answer one request; ``run`` is the loop of all of them."""

    #: A request ends with this, and is taken as it stands once it is longer than ``limit_bytes``.
    end: ClassVar[bytes] = b"\n"
    limit_bytes: ClassVar[int] = 4096

    def __init__(self, shutdown: ShutdownToken, clock: Clock) -> None:
        super().__init__(shutdown, clock)
        #: Set while the socket accepts callers.
        self.listening = threading.Event()
        self._calls: dict[socket.socket, _Call] = {}

    #: Where the socket is and which key says so, for the line about one that can't be opened.
    where = "its socket"

    def open(self) -> socket.socket:
        """A bound, listening socket (raises OSError)."""
        raise RuntimeError(f"{self.name} opens no socket")

    def answer(self, request: bytes) -> bytes:
        """The reply to what came before ``end``: all that came where the caller stopped, or sent too much."""
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
                self._serve(listening, selector)
        finally:
            self.listening.clear()
            self.shutdown.forget(wakeup)
            wakeup.close()
            for call in self._calls.values():
                call.connection.close()
            self._calls.clear()

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

    def _serve(self, listening: socket.socket, selector: selectors.BaseSelector) -> None:
        while not self.shutdown.is_set:
            self.alive()
            first = min((call.until for call in self._calls.values()), default=None)
            wait = _NAP if first is None else min(_NAP, max(0.0, first - self.clock.monotonic()))
            for key, _ in selector.select(wait):
                if key.fileobj is listening:
                    self._accept(listening, selector)
                elif isinstance(key.data, _Call) and key.data.connection in self._calls:
                    self._go_on(key.data, selector)
            now = self.clock.monotonic()
            for call in [call for call in self._calls.values() if call.until <= now]:
                self.log.debug("a call took too long")
                self._end(call, selector)

    def _accept(self, listening: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = listening.accept()
        except BlockingIOError:
            return  # it has gone away
        except OSError as error:
            # Out of descriptors, say: the caller stays in the backlog, and select would return at once for ever.
            self.log.warning("can't take a call: %s", error.strerror or error)
            self.shutdown.wait(1.0)
            return
        if len(self._calls) >= MAX_CALLERS:
            self._end(next(iter(self._calls.values())), selector)
        connection.setblocking(False)
        call = self._calls[connection] = _Call(connection, self.clock.monotonic() + CALL_DEADLINE)
        selector.register(connection, selectors.EVENT_READ, call)

    def _go_on(self, call: _Call, selector: selectors.BaseSelector) -> None:
        """Read or write what can be read or written now."""
        try:
            if call.reply is None:
                part = call.connection.recv(_PIECE)
                call.request += part
                if part and self.end not in call.request and len(call.request) <= self.limit_bytes:
                    return
                call.reply = memoryview(self.answer(bytes(call.request).partition(self.end)[0]))
                selector.modify(call.connection, selectors.EVENT_WRITE, call)
            call.reply = call.reply[call.connection.send(call.reply) :]
        except BlockingIOError:
            return
        except OSError as error:
            self.log.debug("a call ended early: %s", error)
            self._end(call, selector)
            return
        if not call.reply:
            self._end(call, selector)

    def _end(self, call: _Call, selector: selectors.BaseSelector) -> None:
        del self._calls[call.connection]
        selector.unregister(call.connection)
        call.connection.close()
