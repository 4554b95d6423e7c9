"""What the control plane tells those who watch it: one object for each thing that happens, and its form as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.state_machine import State

#: What is told of an event of that kind which is answered and not kept.
FORGOTTEN = "Forgotten {}"
#: What is told of a request that breaks the contract of the wire; the detail says how.
BREACH = "Breach"


@dataclass(frozen=True, slots=True)
class Notification:
    """Something that a watcher may want to show.

    ``what`` is an event's kind, a word of the planner's (``Queued``, ``Dispatched``, ``Halted``), ``FORGOTTEN``,
    ``BREACH``, or ``Known``: the state of a host as a control plane that has just started finds it in its database.
    """

    at: datetime
    hostname: str
    rollout_id: str
    what: str
    state: State | None = None
    detail: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """What ``from_json`` turns back into an equal happening."""
        return {
            "at": format_time(self.at),
            "hostname": self.hostname,
            "rollout_id": self.rollout_id,
            "what": self.what,
            "state": None if self.state is None else self.state.value,
            "detail": None if self.detail is None else dict(self.detail),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Notification:
        """Raises KeyError, ProtoError or ValueError for what ``to_json`` does not make."""
        state = value["state"]
        return cls(
            parse_time(value["at"]),
            value["hostname"],
            value["rollout_id"],
            value["what"],
            None if state is None else State(state),
            value["detail"],
        )
