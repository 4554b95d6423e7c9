"""What has happened so far, as the control plane sees it: states by host and release, and lines for people."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nixfleet_agent.clock import Clock
from nixfleet_agent.local_cp.control import Happening
from nixfleet_agent.state_machine import State
from nixfleet_agent.text import printable

#: How long a wait goes without looking whether the agents still live, in seconds.
SLICE = 0.25


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: seconds since the start, the host (empty for the fleet), the release (empty for none), and words."""

    seconds: float
    hostname: str
    version: str
    text: str

    def __str__(self) -> str:
        where = f"{self.hostname:<8} {self.version:<3} " if self.hostname else ""
        return f"{self.seconds:6.1f} s  {where}{self.text}"


class Timeline:
    """Thread-safe. ``show`` is called with each new entry, in order."""

    def __init__(self, clock: Clock, show: Callable[[Entry], None] | None = None) -> None:
        self._clock = clock
        self._began = clock.monotonic()
        self._changed = threading.Condition()
        self._entries: list[Entry] = []
        self._states: dict[tuple[str, str], State] = {}
        self._kinds: set[tuple[str, str, str]] = set()
        self._versions: dict[str, str] = {}
        self._show = show

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._clock.monotonic() - self._began

    @property
    def entries(self) -> tuple[Entry, ...]:
        with self._changed:
            return tuple(self._entries)

    @property
    def states(self) -> Mapping[tuple[str, str], State]:
        """By (version, host name)."""
        with self._changed:
            return dict(self._states)

    @property
    def versions(self) -> tuple[str, ...]:
        """Releases in the order in which they were published."""
        with self._changed:
            return tuple(dict.fromkeys(self._versions.values()))

    def label(self, rollout_id: str, version: str) -> None:
        """This rollout is this version."""
        with self._changed:
            self._versions[rollout_id] = version

    def note(self, text: str) -> None:
        """A line of the story itself."""
        with self._changed:
            self._add(Entry(self.seconds, "", "", text))

    def seen(self, hostname: str, version: str, kind: str) -> bool:
        """Whether the control plane has taken an event of this kind."""
        with self._changed:
            return (version, hostname, kind) in self._kinds

    def watch(self, happening: Happening) -> None:
        """The control plane's watcher."""
        with self._changed:
            version = self._versions.get(happening.rollout_id, happening.rollout_id)
            key = (version, happening.hostname)
            before = self._states.get(key)
            if happening.hostname and happening.state is not None:
                self._states[key] = happening.state
            self._kinds.add((*key, happening.what))
            words = _words(happening, before)
            if words:
                self._add(Entry(self.seconds, happening.hostname, version, words))
            self._changed.notify_all()

    def wait(self, done: Callable[[], bool], seconds: float, look: Callable[[], None]) -> bool:
        """Until ``done``, for at most ``seconds``; ``look`` is called now and then and may raise."""
        deadline = self._clock.monotonic() + seconds
        while not done():
            look()
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return False
            with self._changed:
                self._changed.wait(min(left, SLICE))
        return True

    def _add(self, entry: Entry) -> None:
        self._entries.append(entry)
        if self._show is not None:
            self._show(entry)
        self._changed.notify_all()


def _words(happening: Happening, before: State | None) -> str:
    """What is worth a line: changes of state, and the first failure of a probe."""
    detail: Mapping[str, Any] = happening.detail or {}
    if happening.what == "Halted":
        return f"rollout {happening.rollout_id} {printable(detail.get('reason'), 300)}"
    if happening.what == "Dispatched":
        return "its turn: dispatched"
    if happening.what == "ProbeFailureFirst":
        return f"probe {printable(detail.get('probeName'), 100)} fails"
    if happening.state is None or happening.state is before or happening.what == "Queued":
        return ""
    words = {
        "ActivationFailed": f": {printable(detail.get('stderrTail'), 200)}",
        "Failed": f": {', '.join(map(printable, detail.get('failingProbes', ())))} failed for too long",
        "RollbackComplete": f": back on {printable(detail.get('revertedToClosure'), 200)[33:]}",
    }
    return f"{happening.state}{words.get(happening.what, '')}"
