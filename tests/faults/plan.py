"""What is to happen to one agent process: written by the harness, read by the process before it starts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

#: The environment variable that names the plan's file.
VARIABLE = "AGENT_FAULT_PLAN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One process's fate at the ``occurrence``-th boundary called ``at`` (or the ``number``-th of any name).

    Args:
        state_dir: labels are relative to it.
        trace: every boundary's label is appended to this file.
        action: ``kill``; ``power`` (kill after everything unsynced was taken back); ``error`` (an OSError for
            ``seconds``, ``code`` being its errno, at boundaries whose label has ``only`` in it).
        boot_id: what the process takes for this boot's id, None for the real one.
        levers: a folder of files that change what the running process meets: ``clock`` holds the seconds that its wall
            clock is off, ``disk`` the errno of every durable write, ``hang`` the names of files whose writing does not
            return; none there, nothing wrong.
    """

    state_dir: str
    trace: str
    action: str = ""
    at: str = ""
    occurrence: int = 1
    number: int = 0
    code: int = 0
    seconds: float = 0.0
    only: str = ""
    boot_id: str | None = None
    levers: str = ""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Plan:
        return cls(**json.loads(path.read_text()))
