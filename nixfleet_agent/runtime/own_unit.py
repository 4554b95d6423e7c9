"""Notices that the agent's own systemd unit now starts something else, so that an idle agent can make room for it.

A switch that brings a new agent does not restart the old one, which still watches that switch. Once nothing is under
way the old one ends, and systemd starts what the unit says now.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.threads.timers import Timer
from nixfleet_agent.threads.worker import Worker
from nixfleet_agent.trouble import Trouble

#: How often the unit is looked at, in seconds; each look starts a process.
INTERVAL_SECS = 300.0
_ASK_TIMEOUT_SECS = 10.0
_COMMAND = re.compile(r"path=(.*?) ; argv\[\]=(.*?) ;")


@dataclass(frozen=True, slots=True)
class UnitChanged:
    """Sent to the main thread: the unit starts ``command`` now, and nothing is under way."""

    command: str


class OwnUnitWorker(Worker):
    """Asks systemd for the unit's command line; ``idle`` says whether the agent may end now."""

    name = "own_unit"
    limit = 2 * INTERVAL_SECS

    def __init__(
        self,
        shutdown: ShutdownToken,
        clock: Clock,
        unit: str,
        idle: Callable[[], bool],
        tell: Callable[[UnitChanged], None],
    ) -> None:
        super().__init__(shutdown, clock)
        self._unit = unit
        self._idle = idle
        self._tell = tell
        self._started_by: str | None = None
        self._trouble = Trouble(self.log, f"can't ask systemd about {unit}")

    def run(self) -> None:
        """The first answer is what started this process; any other one means a new version or new arguments."""
        timer = Timer(INTERVAL_SECS, self.clock, self.shutdown)
        while timer.wait():
            self.alive()
            command = self.ask()
            self._started_by = self._started_by or command
            if command is not None and command != self._started_by and self._idle():
                self._tell(UnitChanged(command))

    def ask(self) -> str | None:
        """The command line that the unit has now; None when systemd does not say."""
        try:
            done = subprocess.run(  # nosec B603 B607 # fixed words, and the unit's name after --
                ["systemctl", "show", "--property=ExecStart", "--value", "--", self._unit],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_ASK_TIMEOUT_SECS,
                text=True,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            self._trouble.failed(error)
            return None
        self._trouble.over()
        match = _COMMAND.search(done.stdout)
        return match[2] if match else None


def own_unit(environ: Mapping[str, str], pid: int, cgroup: Path = Path("/proc/self/cgroup")) -> str | None:
    """The service that this process is the main process of; None under another init system, or in a terminal."""
    if environ.get("SYSTEMD_EXEC_PID") != str(pid):
        return None
    try:
        name = cgroup.read_text().strip().rpartition("/")[2]
    except OSError:
        return None
    return name if name.endswith(".service") else None


def own_unit_workers(
    shutdown: ShutdownToken, clock: Clock, board: StatusBoard, tell: Callable[[UnitChanged], None]
) -> list[Worker]:
    """The worker, where this process is the main process of a service."""
    unit = own_unit(os.environ, os.getpid())
    return [] if unit is None else [OwnUnitWorker(shutdown, clock, unit, lambda: board.idle, tell)]
