"""The processes of one run, known by its folder in their environment."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def processes_of(folder: Path) -> dict[int, str]:
    """Living processes with this run's paths in their environment."""
    found = {}
    wanted = f"{folder}/".encode()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            if wanted not in Path(f"/proc/{name}/environ").read_bytes():
                continue
            if "\nState:\tZ" not in Path(f"/proc/{name}/status").read_text():
                found[int(name)] = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended
            continue
    return found


def end_all(folder: Path) -> None:
    """Kill every process of a run, until none is left: one may have started another meanwhile."""
    while found := processes_of(folder):
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
