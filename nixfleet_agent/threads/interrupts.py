"""Ctrl-C, SIGTERM and a closed terminal: they end a command at any moment but those in which something would be lost.

The agent itself is not interrupted: it is told, and ends in order (``runtime.main_events``).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

#: Signals that end a command that has children; while it cleans up they are ignored.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Interrupts:
    """Of the process, as signals are: how many blocks hold them now, and whether one came meanwhile."""

    def __init__(self) -> None:
        self.holders = 0
        self.waiting = False

    def take(self, number: int, frame: FrameType | None) -> None:
        if self.holders:
            self.waiting = True
        else:
            raise KeyboardInterrupt


_interrupts = _Interrupts()


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM and a closed terminal end the block as Ctrl-C does; what a parent ignored (``nohup``) stays ignored."""
    _interrupts.waiting = False
    with _handled([number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN], _interrupts.take):
        yield


@contextmanager
def held() -> Iterator[None]:
    """What is started in the block and where that is noted belong together: who comes in between waits for its end.

    A child or a thread that nobody knows would outlive the command, or keep it for ever; one that was announced and not
    started can't be joined. Both kinds of starting wait inside, so that is just where an interrupt falls.
    """
    if threading.current_thread() is not threading.main_thread():  # no other one is ever interrupted
        yield
        return
    _interrupts.holders += 1
    try:
        yield
    finally:
        _interrupts.holders -= 1
    if _interrupts.waiting and not _interrupts.holders:
        _interrupts.waiting = False
        raise KeyboardInterrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """An impatient second Ctrl-C must not leave processes behind."""
    with _handled(ENDING, signal.SIG_IGN):
        yield


@contextmanager
def _handled(
    numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None] | signal.Handlers
) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
