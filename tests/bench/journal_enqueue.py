"""How fast an event becomes durable, against a bare loop of write, fsync, rename and fsync of the folder.

Both sides write the same bytes in turn, on the same disk (TMPDIR chooses another). Bar: 80 % of the bare loop.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from nixfleet_agent.journal.entries import entry_of
from nixfleet_agent.journal.journal import Journal
from tests.bench import figures
from tests.bench.figures import Figure
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


def measured(events: int, rounds: int) -> tuple[float, float]:
    """Events a second of the journal and of the bare loop; the sides take turns, so that a disturbance meets both."""
    with tempfile.TemporaryDirectory() as folder:
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
    return events / statistics.median(ours), events / statistics.median(theirs)


def measure(quick: bool) -> list[Figure]:
    rounds = 3 if quick else 9
    ours, theirs = measured(200, rounds)
    return [
        Figure(
            what="durable enqueue",
            value=ours,
            unit="/s",
            baseline=theirs,
            against="write + fsync + rename + dirsync",
            least=BAR,
            runs=rounds,
        )
    ]


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
