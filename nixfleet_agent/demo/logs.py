"""The agents' logs, followed as they grow: each line is read once, and only what agents refuse is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Loggers whose warnings with a ``reason`` are refusals of what the control plane serves.
_REFUSING = ("nixfleet_agent.longpoll", "nixfleet_agent.manifest_poll")
#: What only waits for this host itself is no refusal.
_WAITING = ("hold", "window")


@dataclass(frozen=True, slots=True)
class LoggedRefusal:
    """What an agent would not do: the label of the reason, and the sentence that it logged."""

    hostname: str
    reason: str
    message: str


class LogTail:
    """One growing file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_lines(self) -> Iterator[dict[str, Any]]:
        """What has been written since the last call, whole lines only; a line that is no JSON becomes a ``message``."""
        if not self._path.exists() or self._path.stat().st_size == self._offset:
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            raw = file.read()
        whole = raw[: raw.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                value = line
            yield value if isinstance(value, dict) else {"message": str(value)}


def refusal(hostname: str, line: dict[str, Any]) -> LoggedRefusal | None:
    """The refusal that a line of a log tells of."""
    reason = line.get("reason")
    if line.get("logger") not in _REFUSING or not isinstance(reason, str) or reason in _WAITING:
        return None
    return LoggedRefusal(hostname, reason, str(line.get("message", "")))
