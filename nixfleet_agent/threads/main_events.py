"""What the main thread waits for: signals, deaths of workers, and whatever else ends or changes the process."""

from __future__ import annotations

import math
import os
import queue
import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

_PIPE_BYTES = 4096
_BELL = b"\0"


class MainEvents(queue.SimpleQueue[object]):
    """A queue that signals come into as well, by the byte that Python's own C handler writes into a pipe.

    Handlers written in Python run between two bytecodes of the main thread. A signal that comes just before it begins
    to sleep in a ``get`` is then handled when the sleep is over: a SIGTERM has taken 30 s. A byte in a pipe is read.
    """

    def __init__(self) -> None:
        self._pipe, self.ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._pipe, select.POLLIN)

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        """From any thread; never blocks."""
        super().put(item)
        with suppress(BlockingIOError):  # it rings already
            os.write(self.ring, _BELL)

    def wait(self, seconds: float) -> object:
        """The next event; None when ``seconds`` are over, or something rang for nothing."""
        with suppress(queue.Empty):
            return self.get_nowait()
        if self._poll.poll(math.ceil(seconds * 1000)):
            with suppress(BlockingIOError):
                for number in os.read(self._pipe, _PIPE_BYTES):
                    if number != _BELL[0]:
                        super().put(signal.Signals(number))
        with suppress(queue.Empty):
            return self.get_nowait()
        return None

    def close(self) -> None:
        """No thread that puts may be left."""
        os.close(self._pipe)
        os.close(self.ring)


@contextmanager
def signals(numbers: Sequence[signal.Signals]) -> Iterator[MainEvents]:
    """Events among which these signals are, for as long as the context lasts; in the main thread only."""
    events = MainEvents()
    ring_before = signal.set_wakeup_fd(events.ring, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _nothing) for number in numbers}
    try:
        yield events
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(ring_before)
        events.close()


def _nothing(number: int, frame: FrameType | None) -> None:
    """The byte in the pipe says it all; without a handler there would be none."""
