"""What must not depend on how large things are: a tick on the size of the fleet, an event on the backlog before it.

The real reducer in a soaking rollout while the agent remembers a verified fleet of so many hosts; the real journal
with so many undelivered events on disk (files are not synced, so that the disk does not hide what is measured). All
of it is CPU time.
Baseline of each row is the smallest size.
"""

from __future__ import annotations

import gc
import logging
import os
import statistics
import sys
import tempfile
import time
import unittest
from datetime import timedelta
from pathlib import Path
from unittest import mock

from nixfleet_agent.journal.entries import Entry, entry_of
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.runtime.rollout.inputs import AdvanceTick
from nixfleet_agent.trust.marks import Marks
from nixfleet_agent.trust.roots import parse_trust
from nixfleet_agent.trust.seen import SeenFleet, see_fleet
from tests.bench import figures
from tests.bench.figures import Figure
from tests.bench.verify_fleet import NOW, big_fleet
from tests.runtime.harness import HOSTNAME, TARGET, TestHost
from tests.state_machine.machine import T0, event
from tests.support.signing import CiSigner

SIZES = (10, 1_000, 100_000)
#: Caches of the processor are part of it: three orders of magnitude may cost this much.
BAR = 2.0
ROLLOUT = "stable@def4567abc"


def verified(hosts: int) -> SeenFleet:
    ci = CiSigner()
    signed = big_fleet(ci, hosts)
    trust = parse_trust(ci.trust_bytes())
    return see_fleet(signed.raw, signed.signature, None, trust, now=NOW, override_window=None, marks=Marks())


def tick_microseconds(host: TestHost, fleet: SeenFleet, count: int) -> float:
    """Median of one tick while ``fleet`` is remembered."""
    gc.collect()
    host.dispatch(f"stable@{len(fleet.raw):012x}", TARGET, soak_due_at=host.clock.now() + timedelta(days=30))
    host.soaking(f"stable@{len(fleet.raw) + 1:012x}", soak_due_at=host.clock.now() + timedelta(days=30))
    tick, taken = AdvanceTick(TARGET), []
    for _ in range(count):
        begun = time.process_time()
        host.reducer._on_tick(tick)
        taken.append(time.process_time() - begun)
    return 1e6 * statistics.median(taken)


def event_microseconds(folder: Path, backlog: int, count: int) -> float:
    """Median of appending one event behind ``backlog`` others, and of taking the first one to its sent log."""
    journal = Journal(folder, HOSTNAME)
    journal.open()
    zero = Entry(seq=0, hostname=HOSTNAME, rollout_id=ROLLOUT, kind="Dispatch", created_at=T0, event={"kind": "x"})
    journal.accept(zero)
    for seq in range(1, backlog + 1):
        journal.append(entry_of(event("ProbeResult", seq), HOSTNAME, ROLLOUT, T0))
    taken = []
    for seq in range(backlog + 1, backlog + 1 + count):
        entry = entry_of(event("ProbeResult", seq), HOSTNAME, ROLLOUT, T0)
        begun = time.process_time()
        journal.append(entry)
        path = journal.first(ROLLOUT)
        if path is None:
            raise SystemExit("the journal lost its backlog")
        journal.delivered(ROLLOUT, path)
        taken.append(time.process_time() - begun)
    return 1e6 * statistics.median(taken)


def compared(what: str, size: str, values: list[tuple[int, float]]) -> list[Figure]:
    (smallest, least), *rest = values
    return [
        Figure(
            what=f"{what}, {count:,} {size}", value=value, unit="us", baseline=least, against=f"({smallest})", most=BAR
        )
        for count, value in rest
    ]


def measure(quick: bool) -> list[Figure]:
    logging.disable(logging.CRITICAL)
    sizes = SIZES[:2] if quick else SIZES
    test = unittest.TestCase()
    try:
        with mock.patch.object(os, "fsync", lambda descriptor: None):
            host = TestHost(test)
            host.start()
            ticks = [(size, tick_microseconds(host, verified(size), 5_000)) for size in sizes]
            events = []
            for size in sizes:
                with tempfile.TemporaryDirectory() as name:
                    events.append((size, event_microseconds(Path(name), size, 2_000)))
    finally:
        test.doCleanups()
    return [*compared("one tick", "hosts in the fleet", ticks), *compared("one event", "undelivered before it", events)]


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
