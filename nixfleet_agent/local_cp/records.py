"""Rollout records as JSON for the database, and as the snapshots of a heartbeat's answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import datetime
from enum import Enum
from types import MappingProxyType
from typing import Any

from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.state_machine import (
    DeclaredProbe,
    Mode,
    Policy,
    ProbeRecord,
    ProbeStatus,
    RolloutRecord,
    State,
)


def dump(record: RolloutRecord) -> str:
    """One line of JSON that ``load`` turns back into an equal record."""
    return json.dumps(_plain(record), separators=(",", ":"))


def load(text: str) -> RolloutRecord:
    """The record that ``dump`` wrote; the database is our own, so anything else is a programming error."""
    value = json.loads(text)
    probes = {name: ProbeRecord(**_revive(probe)) for name, probe in value.pop("probes").items()}
    topology = value.pop("topology")
    declared = None if topology is None else tuple(DeclaredProbe(**_revive(probe)) for probe in topology)
    return RolloutRecord(**_revive(value), probes=MappingProxyType(probes), topology=declared)


def snapshot(record: RolloutRecord) -> dict[str, Any]:
    """The camelCase object that a heartbeat is answered with; what is not known is left out."""
    times = {
        "dispatchedAt": record.dispatched_at,
        "dispatchAckedAt": record.dispatch_acked_at,
        "activationStartedAt": record.activation_started_at,
        "activationCompletedAt": record.activation_completed_at,
        "soakDueAt": record.soak_due_at,
    }
    body: dict[str, Any] = {
        "rolloutId": record.rollout_id,
        "hostname": record.hostname,
        "channel": record.channel,
        "state": record.state.value,
        "targetClosure": record.target_closure,
        "currentClosureAtDispatch": record.current_closure_at_dispatch,
        "currentClosure": record.current_closure,
        "lastEventSeq": record.last_event_seq,
        **{name: format_time(at) for name, at in times.items() if at is not None},
    }
    return {name: value for name, value in body.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, RolloutRecord | ProbeRecord | DeclaredProbe):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return format_time(value)
    return value.value if isinstance(value, Enum) else value


#: How each field that JSON has no type for is read back; a name means the same in every class it is in.
_READERS: dict[str, Callable[[Any], Any]] = {
    **{
        field.name: parse_time
        for shape in (RolloutRecord, ProbeRecord)
        for field in fields(shape)
        if field.name.endswith(("_at", "_since"))
    },
    "state": State,
    "policy_applied": Policy,
    "status": ProbeStatus,
    "mode": Mode,
}


def _revive(value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _READERS[name](item) if item is not None and name in _READERS else item for name, item in value.items()
    }
