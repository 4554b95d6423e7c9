"""Whether an agent grows: ten thousand rollouts lived through, and a week of time, on a fake clock.

The real reducer and the real journal. The disk is real too, but it is not asked to sync, because that would take
hours and hold no memory. Each rollout is accepted, switched to, probed, converged and delivered, one an hour, so that
its log is pruned a week later as it would be.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import unittest
from datetime import timedelta
from unittest import mock

from nixfleet_agent.runtime.rollout.inputs import AdvanceTick, HostEvent
from nixfleet_agent.state_machine import ProbeStatus, State
from tests.bench import figures
from tests.bench.figures import Figure
from tests.bench.processes import rss
from tests.runtime.harness import TestHost

WEEK = 7 * 24 * 3600
PROBES, PROBE_SECS = 20, 30
#: RSS is counted in pages, the allocator keeps some, and the interpreter doubles its table of file name parts once (0.9
#: MB, and no entry more in it): less than this is no growth.
NOISE_MB = 2.0


def resident() -> float:
    gc.collect()
    return rss(os.getpid())


def deliver(host: TestHost) -> None:
    """What the outbound worker does when the control plane takes everything."""
    for rollout_id in host.journal.waiting():
        while (path := host.journal.first(rollout_id)) is not None:
            host.journal.delivered(rollout_id, path)


def live_through(host: TestHost, number: int) -> None:
    """One rollout from its Dispatch to its end."""
    rollout_id, target = f"stable@{number:012x}", f"{number:032d}-system"
    due = host.clock.now() + timedelta(seconds=60)
    host.dispatch(rollout_id, target, soak_floor=1, soak_due_at=due)
    host.switching(rollout_id)
    host.current = target
    host.tell(rollout_id, "ActivationCompleted", observed_current_closure=target)
    host.declare(rollout_id, "web")
    host.tell(rollout_id, "ProbeObservedFirst")
    host.tell(rollout_id, "ProbeResult", status=ProbeStatus.PASS)
    host.clock.advance(61)
    host.tell(rollout_id, "ProbeResult", status=ProbeStatus.PASS)
    host.tick()
    if host.record(rollout_id).state is not State.CONVERGED:
        raise SystemExit(f"{rollout_id} did not converge: {host.record(rollout_id)}")
    deliver(host)
    host.transitions.clear()
    host.clock.advance(3539)


def rollouts(test: unittest.TestCase, count: int) -> Figure:
    """Growth from the last fifth before the pruning limit to the end."""
    host = TestHost(test)
    host.start()
    warm = min(400, count // 2)
    for number in range(warm):
        live_through(host, number)
    before = resident()
    for number in range(warm, count):
        live_through(host, number)
    return Figure(
        what=f"growth over {count} rollouts, one an hour",
        value=resident() - before,
        unit="MB",
        most=NOISE_MB,
        runs=count,
    )


def idle_week(test: unittest.TestCase, seconds: int) -> Figure:
    """A tick a second on a converged host."""
    host = TestHost(test)
    host.start()
    live_through(host, 1)
    tick = AdvanceTick(host.current)
    before = resident()
    for _ in range(seconds):
        host.clock.advance(1)
        host.reducer._on_tick(tick)
    return Figure(what=f"growth over {seconds} idle ticks", value=resident() - before, unit="MB", most=NOISE_MB)


def cut_off_week(test: unittest.TestCase, seconds: int) -> list[Figure]:
    """Twenty probes on a soaking host that never reaches its control plane."""
    host = TestHost(test)
    host.start()
    host.soaking()
    names = [f"probe-{number}" for number in range(PROBES)]
    host.declare("stable@aa", *names)
    before = 0.0
    turns = seconds // PROBE_SECS
    for turn in range(turns):
        host.clock.advance(PROBE_SECS)
        for name in names:
            result = host.event("ProbeResult", probe_name=name, status=ProbeStatus.PASS)
            host.reducer._on_event(HostEvent("stable@aa", result))
        if turn == turns // 10:
            before = resident()
    queue = host.state_dir / "outbound-queue"
    size = sum(path.stat().st_blocks * 512 for path in queue.iterdir()) / 2**20
    results = turns * PROBES
    return [
        Figure(
            what=f"growth over {results} probe results, cut off", value=resident() - before, unit="MB", most=NOISE_MB
        ),
        Figure(what="queue on disk after that", value=size, unit="MB", most=50),
    ]


def measure(quick: bool) -> list[Figure]:
    logging.disable(logging.CRITICAL)
    test = unittest.TestCase()
    share = 20 if quick else 1
    try:
        with mock.patch.object(os, "fsync", lambda descriptor: None):
            return [
                rollouts(test, 10_000 // share),
                idle_week(test, WEEK // share),
                *cut_off_week(test, WEEK // share),
            ]
    finally:
        test.doCleanups()


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
