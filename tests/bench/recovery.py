"""How long the next process takes to know where every rollout stands, against reading and parsing the same files.

Bar: opening and folding the journal takes at most 3 x what listing, reading and parsing its files takes.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from nixfleet_agent import durable
from nixfleet_agent.journal.entries import Entry, entry_of
from nixfleet_agent.journal.header import DISPATCH_KIND, Acceptance
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.runtime.rollout.recovery import recover
from nixfleet_agent.state_machine import Policy, ProbeStatus, State
from tests.bench import figures
from tests.bench.figures import Figure
from tests.runtime.harness import HOSTNAME, PRIOR, TARGET
from tests.state_machine.machine import T0, at, declared, event

BAR = 3.0
ROLLOUTS = 20


def fill(folder: Path, files: int) -> None:
    """Logs of twenty rollouts as busy hosts have them: mostly probe results, a tenth of them not yet delivered."""
    journal = Journal(folder, HOSTNAME)
    journal.open()
    with mock.patch.object(os, "fsync", lambda descriptor: None):
        for number in range(ROLLOUTS):
            write_rollout(journal, number, files // ROLLOUTS - 1)


def write_rollout(journal: Journal, number: int, events: int) -> None:
    rollout_id = f"stable@{number:010x}"
    accepted = Acceptance(
        number=number + 1,
        rollout_id=rollout_id,
        target_closure=TARGET,
        prior_closure=PRIOR,
        soak_due_at=T0,
        soak_floor=5,
        policy=Policy.HALT,
        accepted_at=at(number * 10_000),
        manifest_hash="m" * 64,
        manifest_signed_at=T0,
        fleet_hash="f" * 64,
        fleet_signed_at=T0,
        marks={"fleet": "2026-05-16T01:00:00.000000Z", "channels": {"stable": "2026-05-16T01:00:00.000000Z"}},
    )
    zero = Entry(
        seq=0,
        hostname=HOSTNAME,
        rollout_id=rollout_id,
        kind=DISPATCH_KIND,
        created_at=T0,
        event=accepted.to_json(),
    )
    journal.accept(zero)
    probes = ("web", "db", "disk", "queue")
    made = [
        event("DispatchAck", 1),
        event("ActivationStarted", 2),
        event("ActivationCompleted", 3),
        event("ProbeTopologyDeclared", 4, probes=tuple(declared(name) for name in probes)),
    ]
    for seq in range(5, events + 1):
        failing = seq % 7 == 0
        made.append(
            event(
                "ProbeResult",
                seq,
                probe_name=probes[seq % 4],
                status=ProbeStatus.FAIL if failing else ProbeStatus.PASS,
                failure_reason="status 503 and not one of 200-299" if failing else None,
                observed_at=at(seq),
            )
        )
    for each in made:
        journal.append(entry_of(each, HOSTNAME, rollout_id, each.at))
        path = journal.first(rollout_id)
        if each.seq <= events * 9 // 10 and path is not None:
            journal.delivered(rollout_id, path)


def read_and_parse(folder: Path) -> float:
    """Seconds to list, read and parse every file, and nothing else."""
    begun = time.perf_counter()
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            with open(os.path.join(parent, name), "rb") as file:
                json.loads(file.read())
    return time.perf_counter() - begun


def recovered(folder: Path) -> float:
    """Seconds until every rollout is known, as at the start of the agent."""
    begun = time.perf_counter()
    journal = Journal(folder, HOSTNAME)
    journal.open()
    host = recover(journal, TARGET, 0.0)
    seconds = time.perf_counter() - begun
    assert len(host.rollouts) == ROLLOUTS
    assert all(rollout.record.state is State.SOAKING for rollout in host.rollouts.values())
    return seconds


def measured(files: int, rounds: int) -> tuple[float, float]:
    """Seconds of recovery and of reading alone: medians over rounds that take both sides in turn."""
    with tempfile.TemporaryDirectory() as name, mock.patch.object(durable, "boundary", lambda step, path: None):
        folder = Path(name)
        fill(folder, files)
        ours, theirs = [], []
        for _ in range(rounds):
            theirs.append(read_and_parse(folder))
            ours.append(recovered(folder))
    return statistics.median(ours), statistics.median(theirs)


def measure(quick: bool) -> list[Figure]:
    logging.basicConfig(level=logging.ERROR)
    files, rounds = (2_000, 3) if quick else (10_000, 7)
    ours, theirs = measured(files, rounds)
    return [
        Figure(
            what=f"recovery from {files:,} journal files",
            value=1000 * ours,
            unit="ms",
            baseline=1000 * theirs,
            against="read + json.loads",
            most=BAR,
            runs=rounds,
        )
    ]


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
