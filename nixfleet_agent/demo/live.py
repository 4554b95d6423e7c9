"""The live picture, drawn with rich: hosts by release, waves, what agents refuse, and the last lines of the timeline.

It fits the terminal whatever its size: the timeline takes the lines that the rest leaves.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.table import Column, Table
from rich.text import Text

from nixfleet_agent.demo.fleet import DemoFleet
from nixfleet_agent.demo.timeline import Entry, Rollout, Timeline
from nixfleet_agent.state_machine import State
from nixfleet_agent.text import printable
from nixfleet_agent.threads.interrupts import held

#: More hosts than this, or than half the terminal's lines, are shown as counts.
ROWS = 20
REFRESH_PER_SECOND = 4
#: The queues of many hosts are counted this seldom, in seconds: it takes a look into three folders for each.
COUNT_EVERY = 2.0
#: Releases in the table, and refusals below it.
COLUMNS = 5
REFUSALS = 3
STATE_WIDTH = max(len(state.value) for state in State) + len("✓ ")
PADDING = 2
#: Lines of a picture that are empty, or left to the terminal; and those of the timeline that are always there.
FRAME = 5
LEAST_LINES = 3

_STYLES = {
    State.CONVERGED: ("green", "✓"),
    State.FAILED: ("red", "✗"),
    State.REVERTED: ("magenta", "↩"),
    State.SOAKING: ("cyan", "◑"),
    State.PENDING: ("yellow", "·"),
}
_UNDER_WAY = ("yellow", "▸")


class Live:
    """Open while the story runs; its last picture stays on the terminal."""

    def __init__(self, out: TextIO) -> None:
        self._console = Console(file=out, highlight=False)
        self._title = ""
        self._timeline: Timeline | None = None
        self._fleet: DemoFleet | None = None
        self._waiting = (-COUNT_EVERY, 0)
        self._live = RichLive(console=self._console, get_renderable=self._render, refresh_per_second=REFRESH_PER_SECOND)

    def __enter__(self) -> Live:
        try:
            with held():  # it has a thread, and hides the cursor
                self._live.start(refresh=True)
        except KeyboardInterrupt:  # nobody leaves what was not entered
            if self._live.is_started:
                self._live.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, entry: Entry) -> None:
        """The picture is drawn by a thread of its own."""

    def follow(self, title: str, timeline: Timeline) -> None:
        self._title, self._timeline = title, timeline

    def watch(self, fleet: DemoFleet | None) -> None:
        self._fleet = fleet

    def _render(self) -> RenderableType:
        timeline, fleet = self._timeline, self._fleet
        if timeline is None:
            return Text("")
        head = Text.assemble((f"nixfleet demo  {timeline.seconds:5.1f} s  ", "bold"), self._title)
        width, height = self._console.size
        height -= len(head.wrap(self._console, width)) + FRAME
        rest: list[RenderableType] = []
        if fleet is not None and timeline.rollouts:
            in_rows = len(fleet.names) <= min(ROWS, self._console.size.height // 2)
            table = _hosts(fleet, timeline, width) if in_rows else _counts(fleet, timeline)
            below = [*_waves(timeline), *_refusals(timeline)]
            if not in_rows:
                below.append(Text(f"{len(fleet.names)} hosts; {self._undelivered(fleet, timeline)} events to deliver"))
            below = below[: max(1, height - table.row_count - 1 - LEAST_LINES)]
            used = table.row_count + 1 + len(below)
            rest = [Text(""), table, Text(""), *below]
        else:
            used = 0
        room = max(LEAST_LINES, height - used)
        lines = [Text(str(entry), style="" if entry.hostname else "bold") for entry in timeline.entries[-room:]]
        for text in (*(part for part in rest if isinstance(part, Text)), *lines):
            text.no_wrap, text.overflow = True, "ellipsis"
        return Group(head, *rest, Text(""), *lines)

    def _undelivered(self, fleet: DemoFleet, timeline: Timeline) -> int:
        """Events in the queues of all hosts, as they were counted last."""
        counted, _ = self._waiting
        if timeline.seconds - counted >= COUNT_EVERY:
            self._waiting = (timeline.seconds, sum(len(host.undelivered()) for host in fleet.hosts.values()))
        return self._waiting[1]


def _table(*heads: str) -> Table:
    """Without lines around it; a row is one line, whatever the terminal's width."""
    columns = (Column(head, no_wrap=True) for head in heads)
    return Table(*columns, box=None, pad_edge=False, header_style="dim")


def _hosts(fleet: DemoFleet, timeline: Timeline, width: int) -> Table:
    """As many of the newest releases as there is room for, at least one."""
    versions = {release.closure: version for version, release in fleet.releases.items()}
    fixed = max(map(len, fleet.names)) + len("runs") + len("to deliver") + 2 * PADDING
    count = min(COLUMNS, max(1, (width - fixed) // (STATE_WIDTH + PADDING)))
    shown = [rollout.version for rollout in timeline.rollouts[-count:]]
    table = _table("host", "runs", *shown, "to deliver")
    states = timeline.states
    for name, host in fleet.hosts.items():
        running = versions.get(host.running_closure() or "", "?")
        waiting = len(host.undelivered())
        cells = [_state(states.get((version, name))) for version in shown]
        table.add_row(name, running, *cells, Text(str(waiting) if waiting else "", "yellow"))
    return table


def _counts(fleet: DemoFleet, timeline: Timeline) -> Table:
    table = _table("release", *(state.value for state in State))
    states = timeline.states
    for rollout in timeline.rollouts[-COLUMNS:]:
        count = Counter(states.get((rollout.version, name)) for name in fleet.names)
        table.add_row(rollout.version, *(Text(str(count[s] or ""), _style(s)[0]) for s in State))
    return table


def _waves(timeline: Timeline) -> Iterator[Text]:
    """One line for each wave of the newest release."""
    rollout: Rollout = timeline.rollouts[-1]
    states = timeline.states
    for number, wave in enumerate(rollout.waves, start=1):
        of_wave = [states.get((rollout.version, name)) for name in wave]
        done = sum(state is State.CONVERGED for state in of_wave)
        line = Text.assemble((f"{rollout.version} wave {number}  ", "dim"), f"{done}/{len(wave)} ")
        for state, group in itertools.groupby(sorted(of_wave, key=lambda s: list(State).index(s) if s else -1)):
            colour, sign = _style(state)
            line.append(sign * len(list(group)), colour)
        yield line
    if rollout.version in timeline.halted:
        yield Text(f"{rollout.version} {printable(timeline.halted[rollout.version], 200)}", "red")


def _refusals(timeline: Timeline) -> Iterator[Text]:
    """What agents refused last, with their own words; the same reason of several hosts is one line."""
    newest: dict[str, tuple[list[str], str]] = {}
    for refusal in timeline.refusals:
        names, _ = newest.pop(refusal.reason, ([], ""))
        newest[refusal.reason] = (list(dict.fromkeys([*names, refusal.hostname])), refusal.message)
    for reason, (names, message) in list(newest.items())[-REFUSALS:]:
        who = names[0] if len(names) == 1 else f"{len(names)} hosts"
        words = message.removeprefix("a Dispatch was refused: ").removeprefix("a Dispatch is kept for later: ")
        yield Text.assemble((f"{who} refused: {reason}  ", "yellow"), printable(words, 300))


def _state(state: State | None) -> Text:
    colour, sign = _style(state)
    return Text(f"{sign} {state.value}" if state else "", colour)


def _style(state: State | None) -> tuple[str, str]:
    return ("dim", "·") if state is None else _STYLES.get(state, _UNDER_WAY)
