"""The Dispatch that the long poll hands out: "it is your turn in this rollout"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto import ids
from nixfleet_agent.proto.times import format_time, parse_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """As received (snake_case on the wire); every name has its pattern, nothing else is believed yet."""

    hostname: str
    rollout_id: str
    target_closure: str
    soak_due_at: datetime
    enqueued_at: datetime

    @classmethod
    def parse(cls, value: object) -> Dispatch:
        """Raises ProtoError naming the field that is wrong."""
        if not isinstance(value, Mapping):
            raise ProtoError("a Dispatch is not a JSON object")
        return cls(
            hostname=ids.require(ids.HOSTNAME, value.get("hostname"), "hostname of a Dispatch"),
            rollout_id=ids.require(ids.ROLLOUT_ID, value.get("rollout_id"), "rollout_id of a Dispatch"),
            target_closure=ids.require(ids.CLOSURE, value.get("target_closure"), "target_closure of a Dispatch"),
            soak_due_at=parse_time(value.get("soak_due_at"), "soak_due_at of a Dispatch"),
            enqueued_at=parse_time(value.get("enqueued_at"), "enqueued_at of a Dispatch"),
        )

    def is_same_turn(self, other: Dispatch) -> bool:
        """Whether both ask for the same; a planner that gives a turn again at each of its ticks gives it new times."""
        return (self.hostname, self.rollout_id, self.target_closure) == (
            other.hostname,
            other.rollout_id,
            other.target_closure,
        )

    def to_json(self) -> dict[str, Any]:
        """The body as on the wire."""
        return {
            "hostname": self.hostname,
            "rollout_id": self.rollout_id,
            "target_closure": self.target_closure,
            "soak_due_at": format_time(self.soak_due_at),
            "enqueued_at": format_time(self.enqueued_at),
        }
