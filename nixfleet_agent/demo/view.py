"""How the story is shown: a live picture on a terminal, plain lines everywhere else."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, TextIO

from nixfleet_agent.demo.fleet import DemoFleet
from nixfleet_agent.demo.timeline import Entry, Timeline
from nixfleet_agent.state_machine import State

#: More hosts than this are shown as counts.
ROWS = 20
LINES = 14
REFRESH_PER_SECOND = 4

_COLOURS = {
    State.CONVERGED: "green",
    State.FAILED: "red",
    State.REVERTED: "magenta",
    State.SOAKING: "cyan",
}


class View(Protocol):
    """Open while the story runs."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, entry: Entry) -> None:
        """A new line of the timeline; called with the timeline's lock held."""

    def watch(self, fleet: DemoFleet, timeline: Timeline) -> None:
        """From now on there is a fleet to show."""


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
            except BrokenPipeError:
                # `demo | head` is no reason to leave a fleet half released: the story goes on unseen.
                self._reader_gone = True

    def watch(self, fleet: DemoFleet, timeline: Timeline) -> None:
        """Lines need no picture."""


class Live:
    """Hosts x releases, what waits to be delivered, and the last lines of the timeline; drawn with rich."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self._console = Console(file=out)
        self._picture: tuple[DemoFleet, Timeline] | None = None
        self._live = RichLive(console=self._console, get_renderable=self._render, refresh_per_second=REFRESH_PER_SECOND)

    def __enter__(self) -> Live:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, entry: Entry) -> None:
        """The picture is drawn by a thread of its own."""

    def watch(self, fleet: DemoFleet, timeline: Timeline) -> None:
        self._picture = (fleet, timeline)

    def _render(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        if self._picture is None:
            return Text("")
        fleet, timeline = self._picture
        states = timeline.states
        table = self._hosts(fleet, timeline, states) if len(fleet.names) <= ROWS else self._counts(timeline, states)
        lines = [Text(str(entry)) for entry in timeline.entries[-LINES:]]
        return Group(table, Text(""), *lines)

    def _hosts(self, fleet: DemoFleet, timeline: Timeline, states: Mapping[tuple[str, str], State]) -> Any:
        from rich.table import Table

        versions = {release.closure: version for version, release in fleet.releases.items()}
        table = Table("host", "runs", *timeline.versions, "queue", box=None, pad_edge=False)
        for name, host in fleet.hosts.items():
            running = host.running_closure()
            cells = [_state(states.get((version, name))) for version in timeline.versions]
            waiting = str(len(host.undelivered()) or "")
            table.add_row(name, versions.get(running or "", running or "?"), *cells, waiting)
        return table

    def _counts(self, timeline: Timeline, states: Mapping[tuple[str, str], State]) -> Any:
        from rich.table import Table

        table = Table("release", *(state.value for state in State), box=None, pad_edge=False)
        for version in timeline.versions:
            count = Counter(state for (of, _), state in states.items() if of == version)
            table.add_row(version, *(str(count[state] or "") for state in State))
        return table


def _state(state: State | None) -> Any:
    from rich.text import Text

    return Text(state.value if state else "", style=_COLOURS.get(state, "yellow") if state else "")
