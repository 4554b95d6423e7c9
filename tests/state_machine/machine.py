"""Records and events for tests of the state machine: one of each, with values that can't be mistaken for another."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any

from nixfleet_agent.state_machine import KINDS, Event, Mode, Policy, ProbeStatus, RolloutRecord, State, SwitchMethod
from nixfleet_agent.state_machine.record import DeclaredProbe, ProbeRecord

T0 = datetime(2026, 5, 16, 1, 0, tzinfo=timezone.utc)
ROLLOUT = "stable@def4567abc"
PRIOR, TARGET, THIRD = ("a" * 32 + "-prior", "b" * 32 + "-target", "c" * 32 + "-third")
ROLLBACK, HALT = Policy.ROLLBACK_AND_HALT, Policy.HALT


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


NOW = at(10_000)
SAMPLES: dict[str, dict[str, Any]] = {
    "DispatchAck": {"current_closure_at_dispatch": PRIOR, "received_at": at(1)},
    "ActivationStarted": {"started_at": at(2), "switch_method": SwitchMethod.SYSTEMD_RUN},
    "ActivationCompleted": {"observed_current_closure": TARGET, "exit_code": 0, "completed_at": at(3)},
    "ActivationFailed": {
        "exit_code": 4,
        "stderr_tail": "no",
        "failed_at": at(4),
        "switch_fired": True,
        "observed_at_failure": THIRD,
    },
    "ActivationDeferred": {"component": "kernel", "deferred_at": at(5), "boot_id": "boot-1"},
    "ProbeTopologyDeclared": {"probes": (), "declared_at": at(6)},
    "ProbeObservedFirst": {"probe_name": "web", "mode": Mode.ENFORCE, "observed_at": at(7)},
    "ProbeResult": {"probe_name": "web", "mode": Mode.ENFORCE, "status": ProbeStatus.PASS, "observed_at": at(8)},
    "ProbeFailureFirst": {"probe_name": "web", "mode": Mode.ENFORCE, "first_failed_at": at(9)},
    "Failed": {
        "failed_at": at(10),
        "sustained_duration_secs": 120,
        "failing_probes": ("web",),
        "policy_applied": ROLLBACK,
        "observed_at_failure": TARGET,
    },
    "RollbackComplete": {"reverted_to_closure": PRIOR, "exit_code": 0, "completed_at": at(11)},
    "Converged": {"converged_at": at(5000), "current_closure": TARGET},
}


def event(kind: str, seq: int = 100, *, local: bool = True, **changes: Any) -> Event:
    """The sample of ``kind`` as its Local or Remote class, with some fields changed."""
    build: Any = KINDS[kind].local if local else KINDS[kind].remote
    made: Event = build(seq=seq, **{**SAMPLES[kind], **changes})
    return made


def declared(name: str, mode: Mode = Mode.ENFORCE, *, run_once: bool = False) -> DeclaredProbe:
    return DeclaredProbe(probe_name=name, kind="http", mode=mode, run_once=run_once)


def probed(status: ProbeStatus = ProbeStatus.PASS, **changes: Any) -> ProbeRecord:
    return replace(ProbeRecord(status=status, mode=Mode.ENFORCE, last_observed_at=at(8)), **changes)


def record(state: State, **changes: Any) -> RolloutRecord:
    """A rollout in ``state``, with the history that leads there; soaking ones may converge from ``at(1000)`` on."""
    base = RolloutRecord(
        rollout_id=ROLLOUT,
        hostname="web-01",
        channel="stable",
        target_closure=TARGET,
        dispatched_at=T0,
        state=state,
        current_closure_at_dispatch=PRIOR,
        current_closure=PRIOR,
        soak_due_at=at(1000),
        soak_floor=5,
        last_event_seq=50,
    )
    if state in (State.SOAKING, State.CONVERGED):
        base = replace(
            base,
            current_closure=TARGET,
            topology=(declared("web"), declared("disk", Mode.OBSERVE)),
            probes=MappingProxyType({"web": probed()}),
        )
    if state is State.FAILED:
        base = replace(base, rollback_owed=True, policy_applied=ROLLBACK, failed_at=at(4))
    if state is State.REVERTED:
        base = replace(base, reverted_to=PRIOR, reverted_at=at(11))
    return replace(base, **changes)
