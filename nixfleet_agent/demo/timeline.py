"""What has happened so far, as the control plane and the agents' logs tell it: states, waves, refusals, and lines."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nixfleet_agent.demo.logs import LoggedRefusal
from nixfleet_agent.local_cp.happenings import BREACH, FORGOTTEN, Notification
from nixfleet_agent.state_machine import State
from nixfleet_agent.text import printable
from nixfleet_agent.threads.clock import Clock

#: How long a wait goes without looking whether the agents still live, in seconds.
SLICE = 0.25
#: Ways of breaking the contract that are told; one mistake of an agent makes many.
BREACHES_KEPT = 20


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


@dataclass(frozen=True, slots=True)
class Rollout:
    """A release that was published: when, in seconds since the start, and its waves of host names."""

    version: str
    seconds: float
    waves: tuple[tuple[str, ...], ...]


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
        self._rollouts: dict[str, Rollout] = {}
        self._changes: dict[str, float] = {}
        self._refusals: list[LoggedRefusal] = []
        self._halted: dict[str, str] = {}
        self._breaches: list[str] = []
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
    def rollouts(self) -> tuple[Rollout, ...]:
        """In the order in which they were published."""
        with self._changed:
            return tuple(self._rollouts.values())

    @property
    def halted(self) -> Mapping[str, str]:
        """Why no more turns are given, by version."""
        with self._changed:
            return dict(self._halted)

    @property
    def refusals(self) -> tuple[LoggedRefusal, ...]:
        """Oldest first."""
        with self._changed:
            return tuple(self._refusals)

    @property
    def breaches(self) -> tuple[str, ...]:
        """How requests have broken the contract of the wire: each way once, oldest first."""
        with self._changed:
            return tuple(self._breaches)

    def state(self, version: str, hostname: str) -> State | None:
        with self._changed:
            return self._states.get((version, hostname))

    def took(self, version: str) -> float:
        """Seconds from a release's publication to the last change of a state in it."""
        with self._changed:
            began = self._rollouts[version].seconds
            return max(0.0, self._changes.get(version, began) - began)

    def open_rollout(self, rollout_id: str, version: str, waves: Sequence[Sequence[str]]) -> None:
        """This rollout is this version, from now on."""
        with self._changed:
            self._versions[rollout_id] = version
            self._rollouts[version] = Rollout(version, self.seconds, tuple(tuple(wave) for wave in waves))

    def note(self, text: str) -> None:
        """A line of the story itself."""
        with self._changed:
            self._add(Entry(self.seconds, "", "", text))

    def seen(self, hostname: str, version: str, kind: str) -> bool:
        """Whether the control plane has taken an event of this kind."""
        with self._changed:
            return (version, hostname, kind) in self._kinds

    def refused(self, hostname: str, reason: str) -> bool:
        """Whether the host's agent has refused something for this reason."""
        with self._changed:
            return any(refusal.hostname == hostname and refusal.reason == reason for refusal in self._refusals)

    def forget(self) -> None:
        """The control plane has lost its database: what it knew of the hosts is not known any more."""
        with self._changed:
            self._states.clear()
            self._kinds.clear()

    def refuse(self, refusal: LoggedRefusal) -> None:
        """An agent has refused something; a reason that it gave before is no news."""
        with self._changed:
            known = any((r.hostname, r.reason) == (refusal.hostname, refusal.reason) for r in self._refusals)
            self._refusals.append(refusal)
            if not known:
                self._add(Entry(self.seconds, refusal.hostname, "", f"    {printable(refusal.message, 300)}"))

    def watch(self, happening: Notification) -> None:
        """The control plane's watcher."""
        if happening.what == BREACH:
            self._breach(happening)
            return
        with self._changed:
            version = self._versions.get(happening.rollout_id, happening.rollout_id)
            key = (version, happening.hostname)
            before = self._states.get(key)
            if happening.hostname and happening.state is not None:
                self._states[key] = happening.state
                self._changes[version] = self.seconds
            if happening.what == "Halted":
                self._halted[version] = str((happening.detail or {}).get("reason", "halted"))
            self._kinds.add((*key, happening.what))
            words = _words(happening, version, before)
            if words:
                self._add(Entry(self.seconds, happening.hostname, version, words))
            self._changed.notify_all()

    def _breach(self, happening: Notification) -> None:
        said = printable((happening.detail or {}).get("how"), 400)
        how = f"{happening.hostname or 'somebody'} breaks the contract of the wire: {said}"
        with self._changed:
            if how not in self._breaches and len(self._breaches) < BREACHES_KEPT:
                self._breaches.append(how)
                self._add(Entry(self.seconds, "", "", how))

    def wait(self, done: Callable[[], bool], seconds: float, look: Callable[[], None]) -> bool:
        """Until ``done``, for at most ``seconds``; ``look`` is called every now and then and may raise."""
        deadline = self._clock.monotonic() + seconds
        looked = None
        while not done():
            now = self._clock.monotonic()
            if looked is None or now - looked >= SLICE:
                look()
                looked = now
            if now >= deadline:
                return False
            with self._changed:
                self._changed.wait(min(deadline - now, SLICE))
        return True

    def _add(self, entry: Entry) -> None:
        self._entries.append(entry)
        if self._show is not None:
            self._show(entry)
        self._changed.notify_all()


def _words(happening: Notification, version: str, before: State | None) -> str:
    """What is worth a line: changes of state, and the first failure of a probe."""
    detail: Mapping[str, Any] = happening.detail or {}
    if happening.what == "Halted":
        return f"{version} gets no more turns, {printable(detail.get('reason'), 300)}"
    if happening.what == "Dispatched":
        return "its turn: dispatched"
    if happening.what.startswith(FORGOTTEN.format("")):
        return f"{happening.what.removeprefix(FORGOTTEN.format(''))} is answered with 204, and forgotten"
    if happening.what == "ProbeFailureFirst":
        return f"probe {printable(detail.get('probeName'), 100)} fails"
    if happening.state is None or happening.state is before or happening.what == "Queued":
        return ""
    words = {
        "ActivationFailed": f": {printable(detail.get('stderrTail'), 200)}",
        "Failed": f": {', '.join(map(printable, detail.get('failingProbes', ())))} failed for too long",
        "RollbackComplete": f": back on {printable(detail.get('revertedToClosure'), 200)[33:]}",
        "Known": ", says its database",
    }
    return f"{happening.state}{words.get(happening.what, '')}"
