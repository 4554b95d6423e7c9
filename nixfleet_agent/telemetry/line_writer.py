"""Owns the thread that writes log lines: whoever logs only appends to a bounded queue, and never waits for a reader.

A pipe that nobody empties, a journald that is full or a dead disk under stdout hold back this thread and no other.
Lines that find no room, and lines that the stream refuses, are counted; the next one that gets through says how many.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import TextIO

#: What may wait to be written. A dump of all stacks is 0.3 MB; what is older than a megabyte of lines helps nobody.
MAX_LINES = 2000
MAX_CHARS = 1 << 20
#: Seconds that ``close`` waits for a reader before what is left counts as lost.
FLUSH_SECS = 1.0
#: Seconds that the thread then gets to notice; one inside the kernel, as on a dead disk, ends with the process.
_ABANDON_SECS = 0.2


class _AbandonedError(OSError):
    """Nobody reads, and the process ends."""


class LineWriter:
    """``lost_line`` makes the line that tells of that many lost ones."""

    def __init__(self, stream: TextIO, lost_line: Callable[[int], str]) -> None:
        self._sink = _sink(stream)
        self._lost_line = lost_line
        self._changed = threading.Condition()
        #: Lines in order; a number stands for that many lines which found no room there.
        self._waiting: deque[str | int] = deque()
        self._chars = 0
        self._writing = False
        self._closing = False
        self._lost = 0
        self._unsaid = 0
        # A daemon, because the kernel may never give it back: it holds nothing that the end of the process needs.
        self._thread = threading.Thread(target=self._run, name="log_writer", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Lines that were not written."""
        with self._changed:
            return self._lost

    def put(self, line: str) -> None:
        """Queue one line, with its end; from any thread, and at once."""
        with self._changed:
            if self._closing or len(self._waiting) >= MAX_LINES or self._chars + len(line) > MAX_CHARS:
                self._lost += 1
                self._count_in_place()
            else:
                self._waiting.append(line)
                self._chars += len(line)
            self._changed.notify_all()

    def _count_in_place(self) -> None:
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, int):
            self._waiting[-1] = last + 1
        else:
            self._waiting.append(1)

    def flush(self, seconds: float) -> bool:
        """Wait until all that was queued is written (or refused); False when ``seconds`` are over first."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._writing, seconds)

    def close(self) -> None:
        """Write what is left as long as somebody takes it, within ``FLUSH_SECS``, and end the thread."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        self._thread.join(FLUSH_SECS)
        if self._thread.is_alive():
            self._sink.abandon()
            self._thread.join(_ABANDON_SECS)
        if not self._thread.is_alive():
            self._sink.close()

    def _run(self) -> None:
        while (item := self._next()) is not None:
            try:
                self._write(item)
            except _AbandonedError:
                break
            finally:
                with self._changed:
                    self._writing = False
                    self._changed.notify_all()

    def _next(self) -> str | int | None:
        """The next line or count; None when there is nothing left of a closed writer."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closing)
            if not self._waiting:
                return None
            item = self._waiting.popleft()
            self._chars -= 0 if isinstance(item, int) else len(item)
            self._writing = True
            return item

    def _write(self, item: str | int) -> None:
        if isinstance(item, int):
            self._unsaid += item
        text = self._lost_line(self._unsaid) if self._unsaid else ""
        try:
            self._sink.write(text if isinstance(item, int) else text + item)
        except (OSError, ValueError) as error:  # a full disk, a reader that went away, a stream that was closed
            if isinstance(item, str):
                with self._changed:
                    self._lost += 1
                self._unsaid += 1
            if isinstance(error, _AbandonedError):
                raise
        else:
            self._unsaid = 0


class _Descriptor:
    """A pipe, socket, terminal or file: written only while it says that it has room, in pieces that fit into that."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._torn = False
        self._abandoned, self._abandon = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)
        self._room.register(self._abandoned, select.POLLIN)

    def write(self, text: str) -> None:
        # After half a line the next one begins on a line of its own.
        left = memoryview((b"\n" if self._torn else b"") + text.encode("utf-8", "replace"))
        begun = False
        try:
            while left:
                if any(ready == self._abandoned for ready, _ in self._room.poll()):
                    raise _AbandonedError("nobody takes the log")
                try:
                    # A pipe with room has PIPE_BUF bytes of it; a longer write could stop half way for ever.
                    written = os.write(self._descriptor, left[: select.PIPE_BUF])
                except BlockingIOError:
                    continue  # it is set to non-blocking, and somebody else was faster
                begun = begun or written > 0
                left = left[written:]
        except OSError:
            self._torn = self._torn or begun
            raise
        self._torn = False

    def abandon(self) -> None:
        os.write(self._abandon, b"!")

    def close(self) -> None:
        os.close(self._abandoned)
        os.close(self._abandon)


class _Memory:
    """A stream without a descriptor: a buffer in memory."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def abandon(self) -> None:
        """Memory makes nobody wait."""

    def close(self) -> None:
        """The stream is its owner's."""


def _sink(stream: TextIO) -> _Descriptor | _Memory:
    try:
        stream.flush()  # what was printed before comes first
        return _Descriptor(stream.fileno())
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        return _Memory(stream)


def write_if_ready(descriptor: int, text: str) -> bool:
    """One short line to ``descriptor`` if that has room for it now; False where it has none or refuses."""
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    try:
        return bool(room.poll(0)) and os.write(descriptor, text.encode("utf-8", "replace")[: select.PIPE_BUF]) > 0
    except OSError:
        return False
