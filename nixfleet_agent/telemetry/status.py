"""What the agent knows of itself, gathered for `status`, metrics and `/healthz`: last value of each section wins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from nixfleet_agent.proto.times import format_time

#: Label sets of one counter that are counted apart; releases name their probes as they like, and memory is finite.
MOST_LABEL_SETS = 1000


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

    def publish(self, section: str, value: object) -> None:
        """Replace ``section``; the value must not be changed afterwards (frozen dataclass, tuple, fresh dict)."""
        with self._lock:
            self._sections[section] = value

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

    def snapshot(self) -> dict[str, Any]:
        """All sections as JSON values."""
        with self._lock:
            sections, providers = dict(self._sections), dict(self._providers)
        sections |= {name: read() for name, read in providers.items()}
        return {name: as_json(value) for name, value in sorted(sections.items())}


def as_json(value: object) -> Any:
    """Dataclasses, times, enums and paths as JSON values; keys keep their names."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value
