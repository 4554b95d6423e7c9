"""`POST /v1/agent/heartbeat`: what the host reports of itself, and the hints it gets back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto import ids
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.state_machine.states import State

#: Seqs are unsigned integers; JSON numbers above this are not exact everywhere.
MAX_SEQ = 2**53 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The request (snake_case on the wire). ``uptime_secs`` is the agent's own."""

    hostname: str
    at: datetime
    agent_version: str
    uptime_secs: int
    rollout_id: str | None
    current_closure: str | None
    last_event_seq_by_rollout: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """The body; what is not known is left out."""
        body = {
            "hostname": self.hostname,
            "rollout_id": self.rollout_id,
            "current_closure": self.current_closure,
            "at": format_time(self.at),
            "agent_version": self.agent_version,
            "uptime_secs": self.uptime_secs,
            "last_event_seq_by_rollout": dict(self.last_event_seq_by_rollout),
        }
        return {key: value for key, value in body.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An unsigned hint (camelCase): the control plane's record of one rollout on this host."""

    rollout_id: str
    hostname: str
    channel: str
    state: State
    target_closure: str
    last_event_seq: int
    dispatched_at: datetime
    soak_due_at: datetime | None = None

    @classmethod
    def parse(cls, value: object) -> Snapshot:
        """Raises ProtoError naming the field that is wrong; fields that nobody uses are not read."""
        if not isinstance(value, Mapping):
            raise ProtoError("a snapshot is not a JSON object")
        soak = value.get("soakDueAt")
        rollout_id = ids.require(ids.ROLLOUT_ID, value.get("rolloutId"), "rolloutId of a snapshot")
        try:
            state = State(str(value.get("state")))
        except ValueError as error:
            raise ProtoError(f"state of a snapshot is not known: {str(value.get('state'))[:64]!r}") from error
        return cls(
            rollout_id=rollout_id,
            hostname=ids.require(ids.HOSTNAME, value.get("hostname"), "hostname of a snapshot"),
            channel=ids.channel_of(rollout_id),
            state=state,
            target_closure=ids.require(ids.CLOSURE, value.get("targetClosure"), "targetClosure of a snapshot"),
            last_event_seq=seq(value.get("lastEventSeq"), "lastEventSeq of a snapshot"),
            dispatched_at=parse_time(value.get("dispatchedAt"), "dispatchedAt of a snapshot"),
            soak_due_at=None if soak is None else parse_time(soak, "soakDueAt of a snapshot"),
        )


def snapshots(body: object, most: int) -> tuple[list[Snapshot], list[ProtoError], int]:
    """Of the first ``most`` snapshots of a heartbeat's answer those that can be read, what was wrong with the others,
    and how many more there are: thirty thousand wrong ones fit into an answer.
    """
    listed = body.get("bootstrap_rollouts") if isinstance(body, Mapping) else None
    good: list[Snapshot] = []
    bad: list[ProtoError] = []
    items = listed if isinstance(listed, list) else []
    for item in items[:most]:
        try:
            good.append(Snapshot.parse(item))
        except ProtoError as error:
            bad.append(error)
    return good, bad, max(0, len(items) - most)


def seq(value: object, what: str) -> int:
    """An unsigned integer that every JSON reader keeps exact; raises ProtoError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEQ:
        raise ProtoError(f"{what} is not an unsigned integer: {str(value)[:64]!r}")
    return value
