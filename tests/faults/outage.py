"""A week without a control plane, in simulated time: twenty probes, a journal that stays small, and a drain in order.

The real reducer, thinning and journal, on a clock that only this moves; no process, no network.
"""

from __future__ import annotations

import time
import unittest
from collections import Counter
from collections.abc import Callable

from nixfleet_agent.journal.entries import decode
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.runtime.rollout.inputs import HostEvent
from nixfleet_agent.state_machine import ProbeStatus
from tests.faults.rig import Problem
from tests.faults.runs import Outcome, Runs
from tests.runtime.harness import HOSTNAME, TARGET, TestHost

PROBES, INTERVAL_SECS = 20, 30
DAY_SECS = 24 * 3600
LIMIT_BYTES = 50 << 20
ROLLOUT = "stable@aa"
#: One probe flaps: it fails for ten minutes of each hour.
FLAP_EVERY, FLAP_FOR = 3600, 600


def week(runs: Runs) -> Outcome:
    """In quick mode a day."""
    case = unittest.TestCase()
    days = 1 if runs.quick else 7
    began = time.monotonic()
    try:
        return _outage(TestHost(case), days, began)
    finally:
        case.doCleanups()


def _outage(host: TestHost, days: int, began: float) -> Outcome:
    host.start()
    names = [f"probe-{number:02}" for number in range(PROBES)]
    host.soaking(soak_floor=days * 2 * 24 * 60)
    host.declare(ROLLOUT, *names)
    host.tick(TARGET)
    for second in range(0, days * DAY_SECS, INTERVAL_SECS):
        for name in names:
            failing = name == names[0] and second % FLAP_EVERY < FLAP_FOR
            status = ProbeStatus.FAIL if failing else ProbeStatus.PASS
            reason = "connection refused" if failing else None
            event = host.event("ProbeResult", probe_name=name, status=status, failure_reason=reason)
            host.put(HostEvent(ROLLOUT, event))
        host.settle()
        host.clock.advance(INTERVAL_SECS)
    queue = host.state_dir / "outbound-queue"
    files = sorted(queue.iterdir())
    size = sum(path.stat().st_blocks * 512 for path in files)
    host.restart(TARGET)
    seqs = _drained(host.journal)
    said = f"{days} days: {len(files)} files, {size / 2**20:.1f} MiB, {time.monotonic() - began:.0f} s"
    outcome = Outcome(1, notes=[said])
    if size >= LIMIT_BYTES:
        outcome.problems.append(f"{said}: over {LIMIT_BYTES >> 20} MiB")
    if seqs != list(range(1, host.record().last_event_seq + 1)):
        missing = set(range(1, host.record().last_event_seq + 1)) - set(seqs)
        doubled = [seq for seq, count in Counter(seqs).items() if count > 1]
        outcome.problems.append(f"drained out of order: {len(seqs)} events, missing {missing}, doubled {doubled}")
    return outcome


def _drained(journal: Journal) -> list[int]:
    """Every event as the outbound worker takes it, by seq."""
    seqs = []
    while (path := journal.first(ROLLOUT)) is not None:
        entry = decode(path.read_bytes())
        if entry.hostname != HOSTNAME:
            raise Problem(f"{path}: of another host")
        seqs.append(entry.seq)
        journal.delivered(ROLLOUT, path)
    return seqs


ITEMS: dict[str, Callable[[Runs], Outcome]] = {"outage-week": week}
