"""What the agent knows of itself, gathered for `status`, metrics and `/healthz`: last value of each section wins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from nixfleet_agent.proto.times import format_time
from nixfleet_agent.state_machine import RolloutRecord, State

#: Label sets of one counter that are counted apart; releases name their probes as they like, and memory is finite.
MOST_LABEL_SETS = 1000

T = TypeVar("T")
#: Marks the field of a section that `status` shows elsewhere.
_NOT_SHOWN = {"shown": False}


@dataclass(frozen=True, slots=True)
class Section(Generic[T]):
    """A section that other code reads back, with what it holds until its owner has published it."""

    name: str
    initial: T


@dataclass(frozen=True, slots=True)
class RolloutsView:
    """What other threads may know of the rollouts: published by the reducer after every change.

    ``reported`` are the rollouts whose last seq a heartbeat names, with that seq; ``watched`` those that are looked at,
    of which one may answer for what runs until the switch of the active one begins; ``records`` is every rollout.
    """

    active_id: str | None = None
    active_open: bool = False
    target: str | None = None
    expected: str | None = None
    reported: Mapping[str, int] = field(default_factory=dict)
    watched: tuple[str, ...] = ()
    records: tuple[RolloutRecord, ...] = field(default=(), metadata=_NOT_SHOWN)

    @property
    def active(self) -> RolloutRecord | None:
        """The rollout that counts now."""
        return next((record for record in self.records if record.rollout_id == self.active_id), None)

    def newest(self, count: int) -> tuple[RolloutRecord, ...]:
        """The records of so many rollouts that were accepted last, and of the active one."""
        latest = {r.rollout_id for r in sorted(self.records, key=lambda r: r.dispatched_at)[-count:]}
        return tuple(r for r in self.records if r.rollout_id in latest or r.rollout_id == self.active_id)

    def is_open(self, rollout_id: str) -> bool:
        """Whether it is the active rollout and has not ended."""
        return self.active_open and rollout_id == self.active_id

    def undecided(self, current: str | None) -> Container[str]:
        """The active rollout, what is watched beside it, and what could be handed back to: it soaks what runs."""
        soaking = (record for record in self.records if record.state is State.SOAKING)
        found = {record.rollout_id for record in soaking if current in (None, record.target_closure)}
        return found | set(self.watched) | ({self.active_id} if self.active_id and self.active_open else set())


ROLLOUTS: Section[RolloutsView | None] = Section("host", None)
#: Whether a switch of the agent's own runs now, so that what is current may be half of it.
SWITCHING = Section("switching", False)
SILENT_WORKERS: Section[tuple[str, ...]] = Section("silent_workers", ())
JOURNAL_ERROR: Section[str | None] = Section("journal_error", None)


class StatusBoard:
    """Sections published by their owners; readers get a copy that is plain JSON."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sections: dict[str, object] = {}
        self._providers: dict[str, Callable[[], object]] = {}
        self._counters: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}
        self._label_sets: dict[str, int] = {}

    def provide(self, section: str, read: Callable[[], object]) -> None:
        """A section that is read anew for each snapshot, such as a file that a command may change; must not raise."""
        with self._lock:
            self._providers[section] = read

    def count(self, counter: str, by: int = 1, **labels: str) -> None:
        """Add to a counter, which lives as long as the process; beyond ``MOST_LABEL_SETS`` all labels are `other`."""
        key = (counter, tuple(sorted(labels.items())))
        with self._lock:
            if key not in self._counters and self._label_sets.get(counter, 0) >= MOST_LABEL_SETS:
                key = (counter, tuple((label, "other") for label in sorted(labels)))
            if key not in self._counters:
                self._label_sets[counter] = self._label_sets.get(counter, 0) + 1
            self._counters[key] = self._counters.get(key, 0) + by

    def counters(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], int]:
        """(counter, sorted labels) -> value."""
        with self._lock:
            return dict(self._counters)

    def publish(self, section: Section[T] | str, value: T) -> None:
        """Replace ``section``; the value must not be changed afterwards (frozen dataclass, tuple, fresh dict)."""
        with self._lock:
            self._sections[section if isinstance(section, str) else section.name] = value

    def read(self, section: Section[T]) -> T:
        """What was published last, of the section's type."""
        with self._lock:
            return cast(T, self._sections.get(section.name, section.initial))

    def publish_rollouts(self, view: RolloutsView) -> None:
        """Replace the view of the rollouts; `status` shows its records in a section of their own."""
        with self._lock:
            self._sections[ROLLOUTS.name] = view
            self._sections["rollouts"] = view.records

    @property
    def rollouts(self) -> RolloutsView:
        """The view of the rollouts; an empty one until the reducer has published its first."""
        return self.read(ROLLOUTS) or RolloutsView()

    def is_over(self, rollout_id: str) -> bool:
        """Whether a rollout has ended or was superseded; False while no rollout is known yet."""
        view = self.read(ROLLOUTS)
        return view is not None and not view.is_open(rollout_id)

    @property
    def idle(self) -> bool:
        """Whether the rollouts are known, none of them is under way, and no switch runs."""
        view = self.read(ROLLOUTS)
        return view is not None and not view.active_open and not self.read(SWITCHING)

    def merge(self, section: str, key: str, value: object) -> None:
        """Set one key of a section that several threads share, such as the last contact of each endpoint."""
        with self._lock:
            old = self._sections.get(section)
            self._sections[section] = {**(old if isinstance(old, dict) else {}), key: value}

    def get(self, section: str) -> object:
        """The section as it was published, or read now where it has a provider, or None."""
        with self._lock:
            read = self._providers.get(section)
            published = self._sections.get(section)
        return read() if read is not None else published

    def snapshot(self, newest: int | None = None) -> dict[str, Any]:
        """All sections as JSON values; of the rollouts only the ``newest``, and the active one, where that is given."""
        with self._lock:
            sections, providers = dict(self._sections), dict(self._providers)
        view = sections.get(ROLLOUTS.name)
        if newest is not None and isinstance(view, RolloutsView):
            sections["rollouts"] = view.newest(newest)
        sections |= {name: read() for name, read in providers.items()}
        return {name: as_json(value) for name, value in sorted(sections.items())}


def as_json(value: object) -> Any:
    """Dataclasses, times, enums and paths as JSON values; keys keep their names."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return value
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    kind: Any = type(value)
    names = _shown(kind)
    return value if names is None else {name: as_json(getattr(value, name)) for name in names}


@cache
def _shown(kind: type) -> tuple[str, ...] | None:
    """The fields of a dataclass that `status` shows, None for another class: asked for a thousand records at once."""
    if not is_dataclass(kind):
        return None
    return tuple(each.name for each in fields(kind) if each.metadata.get("shown", True))
