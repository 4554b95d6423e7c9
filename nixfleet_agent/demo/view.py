"""How the story is shown: a live picture on a terminal, plain lines everywhere else."""

from __future__ import annotations

import importlib.util
import os
import threading
from types import TracebackType
from typing import Protocol, TextIO

from nixfleet_agent.demo.fleet import DemoFleet
from nixfleet_agent.demo.timeline import Entry, Timeline


class View(Protocol):
    """Open while the story runs."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, entry: Entry) -> None:
        """A new line of the timeline; called with the timeline's lock held."""

    def follow(self, title: str, timeline: Timeline) -> None:
        """What the story is called, and where it is told; before the view is opened."""

    def watch(self, fleet: DemoFleet | None) -> None:
        """From now on there is a fleet to show, or none any more."""


def view_on(out: TextIO) -> View:
    """Rich draws only for people who look, on a terminal that can draw, where it is installed; all others get lines."""
    can_draw = out.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    if can_draw and importlib.util.find_spec("rich") is not None:
        from nixfleet_agent.demo.live import Live

        return Live(out)
    return Lines(out)


class Lines:
    """One line per entry, as it comes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._reader_gone = False

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held back."""

    def show(self, entry: Entry) -> None:
        with self._lock:
            if self._reader_gone:
                return
            try:
                print(entry, file=self._out, flush=True)
            except OSError:
                # `demo | head`, or a file on a full disk, is no reason to leave a fleet half released, and the thread
                # that this is may be the one that listens to the control plane. The report will say what is wrong.
                self._reader_gone = True

    def follow(self, title: str, timeline: Timeline) -> None:
        """Lines come by themselves."""

    def watch(self, fleet: DemoFleet | None) -> None:
        """Lines need no picture."""
