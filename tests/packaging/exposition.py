"""The metrics of an agent on whose board everything is that can be: what alerts, dashboard and guide may speak of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from prometheus_client.parser import text_string_to_metric_families

from nixfleet_agent.operator.maintenance import MaintenanceStatus
from nixfleet_agent.prefetch import decision
from nixfleet_agent.prefetch.status import NextStatus
from nixfleet_agent.reboots.decision import FORWARD, Due, Waiting, WaitsFor, status_of
from nixfleet_agent.runtime.dispatch.window import PollWindow
from nixfleet_agent.runtime.release import ReleaseStatus
from nixfleet_agent.state_machine import Mode, ProbeStatus, RolloutRecord, State
from nixfleet_agent.state_machine.record import ProbeRecord
from nixfleet_agent.telemetry.metrics import COUNTERS, Metrics
from nixfleet_agent.telemetry.status import RolloutsView, StatusBoard
from tests.support.clock import EPOCH, FakeClock


@dataclass(frozen=True)
class _Certificate:
    not_after: datetime


def full_exposition() -> str:
    """The text that a scraper gets, with every metric and every label in it."""
    board = StatusBoard()
    probe = ProbeRecord(status=ProbeStatus.PASS, mode=Mode.ENFORCE, last_observed_at=EPOCH)
    record = RolloutRecord(
        rollout_id="stable@aa",
        hostname="web-01",
        channel="stable",
        target_closure="x",
        dispatched_at=EPOCH,
        state=State.SOAKING,
        probes=MappingProxyType({"web": probe}),
    )
    board.publish_rollouts(RolloutsView("stable@aa", True, "x", "x", records=(record,)))
    board.publish("queue", {"queued": 1, "rejected": 0, "oldest": EPOCH})
    board.publish("certificate", _Certificate(EPOCH))
    board.publish("contacts", {"/v1/agent/heartbeat": {"answered_at": EPOCH}})
    board.publish("release", ReleaseStatus("stable@aa", "x", EPOCH, EPOCH))
    board.publish("next", NextStatus("stable@bb", "y", decision.State.READY))
    board.publish("quarantine", ())
    board.publish("maintenance", MaintenanceStatus(False, EPOCH, ("Sat",), None))
    board.publish(
        "reboot",
        status_of(Due("stable@aa", FORWARD, "x", "kernel", EPOCH), "now", Waiting(WaitsFor.USERS, "users were warned")),
    )
    board.publish("poll", PollWindow.of(60.0))
    board.publish("log_lines_lost", 0)
    for counter, (_, labels) in COUNTERS.items():
        board.count(counter, **dict.fromkeys(labels, "x"))
    metrics = Metrics(board, FakeClock())
    metrics.observe_request("/v1/agent/heartbeat", "200", 0.1)
    return metrics.exposition().decode()


def samples() -> dict[str, set[str]]:
    """Sample name (``..._total``, ``..._bucket``) -> its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(full_exposition()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def families() -> set[str]:
    """The names that ``# TYPE`` lines announce."""
    return {line.split()[2] for line in full_exposition().splitlines() if line.startswith("# TYPE ")}
