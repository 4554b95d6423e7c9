"""What a step asks for: orders as data, carried out by the applier (the agent) or the mirror (a control plane)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from nixfleet_agent.state_machine.events import Event
from nixfleet_agent.state_machine.states import State


@dataclass(frozen=True, slots=True)
class Effect:
    """An order about one rollout."""

    rollout_id: str


@dataclass(frozen=True, slots=True)
class RecordTransition(Effect):
    """For log, metrics and status; never a second record on disk."""

    before: State
    after: State
    at: datetime


@dataclass(frozen=True, slots=True)
class EmitEvent(Effect):
    """Journal the event and send it to the control plane."""

    event: Event


@dataclass(frozen=True, slots=True)
class FireSwitch(Effect):
    """Activate the target."""

    target_closure: str


@dataclass(frozen=True, slots=True)
class FireRollbackTo(Effect):
    """Go back to the closure that ran before the rollout."""

    closure: str


@dataclass(frozen=True, slots=True)
class ResetProbeCache(Effect):
    """Stop every probe and start those of the release that now runs."""


@dataclass(frozen=True, slots=True)
class AppendEventLog(Effect):
    """Mirror only: the event as received."""

    event: Event


@dataclass(frozen=True, slots=True)
class InsertQuarantine(Effect):
    """Mirror only: no host of the channel is given this closure again."""

    channel: str
    closure: str
