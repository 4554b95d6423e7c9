"""What a process costs while it runs, read from /proc: memory, CPU, wake-ups, threads. Linux only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

_VOLUNTARY = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Cost:
    """``rss`` and ``anonymous`` in MB (2**20), ``cpu`` in percent of a core, ``wakeups`` a second, over ``seconds``."""

    rss: float
    anonymous: float
    threads: int
    cpu: float
    wakeups: float
    seconds: float


def rss(pid: int, field: str = "VmRSS") -> float:
    """One size of a process in MB: ``VmRSS``, ``RssAnon``, ``RssFile``, ``VmHWM``."""
    match = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if match is None:
        raise SystemExit(f"/proc/{pid}/status has no {field}")
    return int(match[1]) / 1024


def cost(pids: list[int], span: float) -> Cost:
    """What ``pids`` together cost over the next ``span`` seconds; sizes as they are at its end.

    CPU is the kernel's count in nanoseconds of every thread alive at both ends. A wake-up is a context switch of a
    thread that had gone to sleep by itself: what was only pushed off the CPU by somebody else has not woken it.
    """
    before = {pid: _threads(pid) for pid in pids}
    threading.Event().wait(span)
    after = {pid: _threads(pid) for pid in pids}
    burnt = switches = 0
    for pid in pids:
        for thread, (nanoseconds, voluntary) in after[pid].items():
            old = before[pid].get(thread, (0, 0))
            burnt += nanoseconds - old[0]
            switches += voluntary - old[1]
    return Cost(
        rss=sum(rss(pid) for pid in pids),
        anonymous=sum(rss(pid, "RssAnon") for pid in pids),
        threads=sum(len(threads) for threads in after.values()),
        cpu=burnt / 1e9 / span * 100,
        wakeups=switches / span,
        seconds=span,
    )


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            try:
                found += [int(child) for child in (task / "children").read_text().split()]
            except FileNotFoundError:
                continue
    return found


def fresh_byte_code() -> None:
    """Compile what changed: where the environment forbids to write byte code, each start would compile it again."""
    writing = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-m", "compileall", "-q", "nixfleet_agent"], check=True, env=writing)


def _threads(pid: int) -> dict[str, tuple[int, int]]:
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            status = (task / "status").read_text()
            nanoseconds = int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
        match = _VOLUNTARY.search(status)
        found[task.name] = (nanoseconds, int(match[1]) if match else 0)
    return found
