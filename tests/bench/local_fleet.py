"""A whole fleet on this machine, of 10, 30 and 100 agents: does everything end where it should, and what does it cost.

Each is the demo as a user runs it: two releases that converge and one that every agent rolls back by itself, with one
process and one Nix store for each agent. Takes ten minutes; runs only when asked for by name.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent.demo.processes import remove_tree
from tests.bench import figures
from tests.bench.figures import Figure
from tests.bench.processes import rss

SIZES = (10, 30, 100)
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Told:
    """Seconds of the story; CPU seconds and MB of control plane, CI and cache (two processes); hosts gone wrong."""

    seconds: float
    cpu: float
    rss: float
    problems: int


def cpu_of(pid: int) -> float:
    """Seconds of CPU of a process, its ended threads included, its children not."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def control_planes(pid: int) -> list[int]:
    """The child of a demo that is its control plane, once it is there."""
    threads = (task / "children" for task in Path(f"/proc/{pid}/task").iterdir())
    children = [child for file in threads for child in file.read_text().split()]
    return [int(c) for c in children if b"nixfleet_agent.local_cp" in Path(f"/proc/{c}/cmdline").read_bytes()]


def tell(agents: int) -> Told:
    """One demo with ``agents`` hosts."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-"))
    command = [sys.executable, "-m", "nixfleet_agent", "demo", "--json", "--agents", str(agents), "--dir", str(folder)]
    burnt = highest = 0.0
    # Its document is larger than a pipe: into a file.
    with tempfile.TemporaryFile("w+") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL) as demo:
        while demo.poll() is None:
            with suppress(OSError, SystemExit):  # one of the two has just ended
                side = [demo.pid, *control_planes(demo.pid)]
                burnt, highest = max(burnt, sum(map(cpu_of, side))), max(highest, sum(map(rss, side)))
            threading.Event().wait(0.2)
        out.seek(0)
        told = json.load(out)
    if folder.exists():
        remove_tree(folder)
    return Told(told["seconds"], burnt, highest, len(told["problems"]))


def measure(quick: bool) -> list[Figure]:
    if shutil.which("nix-store") is None:
        raise SystemExit("Nix is missing: packaging/dev setup installs it")
    shown = []
    first: tuple[int, Told] | None = None
    for agents in SIZES[:1] if quick else SIZES:
        told = tell(agents)
        shown += [
            Figure(what=f"{agents} agents: hosts that ended wrong", value=told.problems, unit="", most=0),
            Figure(what=f"{agents} agents: three releases", value=told.seconds, unit="s"),
            Figure(what=f"{agents} agents: RSS of the control plane's side", value=told.rss, unit="MB"),
        ]
        if first is None:
            first = agents, told
            shown.append(Figure(what=f"{agents} agents: CPU of the control plane's side", value=told.cpu, unit="s"))
        else:
            fewer, base = first
            shown.append(
                Figure(
                    what=f"{agents} agents: CPU of the control plane's side",
                    value=told.cpu,
                    unit="s",
                    baseline=base.cpu,
                    against=f"({fewer} agents)",
                    most=agents / fewer,
                )
            )
    return shown


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
