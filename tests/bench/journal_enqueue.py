"""How fast an event becomes durable, against a bare loop of write, fsync, rename and fsync of the folder.

    python -m tests.bench.journal_enqueue [--events N] [--rounds N] [--folder DIR] [--json]

Both sides write the same bytes in turn, on the same disk. Exits 1 when the journal reaches less than 80 % of the
bare loop.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from nixfleet_agent.runtime.journal import Journal
from nixfleet_agent.runtime.journal_files import entry_of
from tests.runtime.harness import HOSTNAME
from tests.state_machine.machine import T0, event

BAR = 0.8
ROLLOUT = "stable@def4567abc"


def bare(folder: Path, names: list[str], raw: bytes) -> float:
    """Seconds for one durable file per name, and nothing else."""
    begun = time.perf_counter()
    for name in names:
        temporary = folder / (name + ".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(descriptor, raw)
        os.fsync(descriptor)
        os.close(descriptor)
        os.rename(temporary, folder / name)
        directory = os.open(folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    return time.perf_counter() - begun


def through_the_journal(journal: Journal, first: int, count: int) -> float:
    """Seconds for ``count`` events from ``first`` on, from the event to the durable file."""
    begun = time.perf_counter()
    for seq in range(first, first + count):
        journal.append(entry_of(event("ProbeResult", seq), HOSTNAME, ROLLOUT, T0))
    return time.perf_counter() - begun


def measure(events: int, rounds: int, parent: str | None) -> dict[str, float]:
    """Medians over rounds that take both sides in turn, so that a disturbance meets both."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        journal = Journal(Path(folder), HOSTNAME)
        journal.open()
        baseline = Path(folder) / "bare-queue"
        baseline.mkdir()
        raw = entry_of(event("ProbeResult", 1), HOSTNAME, ROLLOUT, T0).encode()
        ours, theirs = [], []
        for number in range(rounds):
            first = 1 + number * events
            names = [entry_of(event("ProbeResult", first + n), HOSTNAME, ROLLOUT, T0).name for n in range(events)]
            theirs.append(bare(baseline, names, raw))
            ours.append(through_the_journal(journal, first, events))
    ratio = statistics.median(mine / other for mine, other in zip(theirs, ours, strict=True))
    return {
        "events": events,
        "rounds": rounds,
        "bare_per_second": events / statistics.median(theirs),
        "journal_per_second": events / statistics.median(ours),
        "ratio": ratio,
        "bar": BAR,
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=200, help="in each round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", help="on the disk to measure; default: the system's folder for temporary files")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    figures = measure(options.events, options.rounds, options.folder)
    if options.json:
        print(json.dumps(figures))
    else:
        print(f"bare loop        {figures['bare_per_second']:8.0f} events/s")
        print(f"durable enqueue  {figures['journal_per_second']:8.0f} events/s")
        print(f"ratio            {figures['ratio']:8.2f}  (bar: at least {BAR})")
    return 0 if figures["ratio"] >= BAR else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
