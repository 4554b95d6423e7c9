"""The daemon as it is, in a process that a plan kills, or whose disk fails, at a chosen durable-write boundary.

``python -m tests.faults.agent CONFIG``, with the plan's file named in the environment.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.activation.machine import SystemMachine
from nixfleet_agent.threads import clock
from tests.faults.labels import label
from tests.faults.plan import VARIABLE, Plan
from tests.faults.power import Unsynced


class Fate:
    """The boundary function: counts, and acts when its turn has come. Called from every thread of the agent."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._state_dir = Path(plan.state_dir)
        self._trace = os.open(plan.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()
        self._last = threading.local()
        self._seen = 0
        self._number = 0
        self._until: float | None = None
        self._unsynced = Unsynced() if plan.action == "power" else None
        self._disk = Path(plan.levers) / "disk" if plan.levers else None
        self._hanging = Path(plan.levers) / "hang" if plan.levers else None

    def boundary(self, step: str, path: Path) -> None:
        plan = self._plan
        name = self._name(step, path)
        while self._hanging is not None and path.name in _content(self._hanging).split():
            self._hanging.with_name("hung").touch()
            time.sleep(0.02)
        with self._lock:
            os.write(self._trace, f"{name}\n".encode("utf-8", "backslashreplace"))
            self._number += 1
            if name == plan.at:
                self._seen += 1
            due = (name == plan.at and self._seen == plan.occurrence) or self._number == plan.number
            if due and plan.action in ("kill", "power"):
                if self._unsynced is not None:
                    self._unsynced.take_back()
                os.kill(os.getpid(), signal.SIGKILL)
            if due and plan.action == "error":
                self._until = time.monotonic() + plan.seconds
            failing = self._until is not None and time.monotonic() < self._until
        code = plan.code if failing and plan.only in name else self._lever()
        if code:
            raise OSError(code, os.strerror(code))

    def _lever(self) -> int:
        return int(_content(self._disk) or 0) if self._disk is not None else 0

    def _name(self, step: str, path: Path) -> str:
        """A folder's fsync is named after the file whose name it makes durable."""
        if step == "fsync-dir" and (place := getattr(self._last, "place", None)) is not None:
            self._last.place = None
            return f"{step} {place}"
        name = label(step, path, self._state_dir)
        self._last.place = name.partition(" ")[2] if step == "rename" else None
        return name

    def install(self) -> None:
        durable.boundary = self.boundary
        if self._unsynced is not None:
            self._unsynced.install()


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _set_wrong(lever: Path) -> None:
    """From now on the wall clock is off by what the lever says."""
    right = clock.SystemClock.now

    def now(self: clock.SystemClock) -> datetime:
        return right(self) + timedelta(seconds=float(_content(lever) or 0))

    clock.SystemClock.now = now  # type: ignore[method-assign]


def main(config: str) -> int:
    plan = Plan.read(Path(os.environ.pop(VARIABLE)))
    if plan.boot_id is not None:
        boot_id = plan.boot_id
        # A process that was forked has imported it, and everything else, already.
        SystemMachine.boot_id = staticmethod(lambda: boot_id)  # type: ignore[method-assign]
    if plan.levers:
        _set_wrong(Path(plan.levers) / "clock")
    faulthandler.register(signal.SIGUSR2)
    Fate(plan).install()
    # Only now: what is imported from here on takes the names from above.
    from nixfleet_agent.cli import main as agent

    return agent(["run", "--config", config])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
