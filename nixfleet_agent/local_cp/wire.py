"""Request bodies as types, where only a control plane reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto import ids
from nixfleet_agent.proto.heartbeat import Heartbeat, seq
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.proto.times import parse_time


def read_object(raw: bytes, what: str) -> dict[str, Any]:
    """The JSON object in a body; raises ProtoError."""
    value = loads_strict(raw, what=what)
    if not isinstance(value, dict):
        raise ProtoError(f"{what} is not a JSON object")
    return value


def heartbeat(body: Mapping[str, Any]) -> Heartbeat:
    """The report of a host; raises ProtoError naming the field that is wrong."""
    reported = body.get("last_event_seq_by_rollout")
    if not isinstance(reported, Mapping):
        raise ProtoError("last_event_seq_by_rollout is not an object")
    rollout_id, closure = body.get("rollout_id"), body.get("current_closure")
    return Heartbeat(
        hostname=ids.require(ids.HOSTNAME, body.get("hostname"), "hostname"),
        at=parse_time(body.get("at")),
        agent_version=text(body, "agent_version"),
        uptime_secs=seq(body.get("uptime_secs"), "uptime_secs"),
        rollout_id=None if rollout_id is None else ids.require(ids.ROLLOUT_ID, rollout_id, "rollout_id"),
        current_closure=None if closure is None else ids.require(ids.CLOSURE, closure, "current_closure"),
        last_event_seq_by_rollout={
            ids.require(ids.ROLLOUT_ID, key, "last_event_seq_by_rollout"): seq(
                value, f"last_event_seq_by_rollout: {key}"
            )
            for key, value in reported.items()
        },
    )


def text(body: Mapping[str, Any], name: str) -> str:
    """A string member; raises ProtoError."""
    value = body.get(name)
    if not isinstance(value, str):
        raise ProtoError(f"{name} is not a string")
    return value
