"""Names for durable-write boundaries that are the same in every run: what is done to which file, without numbers."""

from __future__ import annotations

import re
from pathlib import Path

_EVENT = re.compile(r"\d{20}-.*-([A-Za-z]+)\.json")
_RECORD = re.compile(r"\d{6}-")


def label(step: str, path: Path, state_dir: Path) -> str:
    """``<step> <place>``; an event's file is known by its kind, a switch record by its direction and rollout."""
    try:
        parts = path.relative_to(state_dir).parts
    except ValueError:
        parts = ("elsewhere", path.name)
    return f"{step} {'/'.join(_part(part) for part in parts) or '.'}"


def _part(part: str) -> str:
    event = _EVENT.fullmatch(part)
    return event[1] if event else _RECORD.sub("N-", part)
