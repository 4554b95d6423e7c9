"""The processes of one run, known by its folder in their environment."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


class Starved:
    """Time as a process has it on a busy machine: less what the worst off of its threads waited for a processor."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._began = time.monotonic()
        self._first = self._waited()
        self._last = dict(self._first)

    def look(self) -> None:
        """Often enough that what a thread waited before its end is not missed."""
        self._last |= self._waited()

    def elapsed(self) -> float:
        """Seconds."""
        starved = max((self._last[task] - self._first.get(task, 0) for task in self._last), default=0)
        return time.monotonic() - self._began - starved / 1e9

    def _waited(self) -> dict[str, int]:
        """Nanoseconds in a run queue, by thread."""
        waited = {}
        for task in self._tasks.glob("*"):
            try:
                waited[task.name] = int((task / "schedstat").read_text().split()[1])
            except OSError:  # it has ended
                continue
        return waited


def processes_of(folder: Path) -> dict[int, str]:
    """Living processes with this run's paths in their environment."""
    found = {}
    wanted = f"{folder}/".encode()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            if wanted in _read(f"/proc/{name}/environ") and b"\nState:\tZ" not in _read(f"/proc/{name}/status"):
                found[int(name)] = _read(f"/proc/{name}/cmdline").replace(b"\0", b" ").decode()
        except OSError:  # it has ended
            continue
    return found


def _read(path: str) -> bytes:
    """Every run looks at all processes several times; a Path costs more than the reading."""
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def end_all(folder: Path) -> None:
    """Kill every process of a run, until none is left: one may have started another meanwhile."""
    while found := processes_of(folder):
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
