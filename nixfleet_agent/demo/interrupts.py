"""Ctrl-C, SIGTERM and a closed terminal: they end the demo at any moment but those in which something would be lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Signals that end the demo; while it cleans up they are ignored.
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
    """SIGTERM and a closed terminal end the demo as Ctrl-C does, unless it was started with ``nohup``."""
    ending = [number for number in ENDING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    _interrupts.waiting = False
    before = {number: signal.signal(number, _interrupts.take) for number in ending}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """What is started in the block and where that is noted belong together: who comes in between waits for its end.

    A thread that was started and that nobody knows would keep the process, and one that was announced and not started
    can't be joined: `Thread.start` waits, so that is just where an interrupt falls.
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
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
