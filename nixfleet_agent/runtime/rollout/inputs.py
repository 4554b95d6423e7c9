"""Everything that workers can tell the reducer; rollout state is touched nowhere else."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.proto.heartbeat import Snapshot
from nixfleet_agent.state_machine.events import Event


@dataclass(frozen=True, slots=True)
class HostEvent:
    """Something that happened on this host in one rollout; its ``seq`` is assigned by the reducer."""

    rollout_id: str
    event: Event
    ack: Ack | None = None


@dataclass(frozen=True, slots=True)
class SwitchStarting:
    """The activation worker is about to fire a switch; it may once ``ack`` says so. Nothing of it is journaled."""

    rollout_id: str
    ack: Ack


@dataclass(frozen=True, slots=True)
class AdvanceTick:
    """A second went by; ``current_closure`` was read just now, None when it could not be."""

    current_closure: str | None


@dataclass(frozen=True, slots=True)
class ManifestSetUpdated:
    """The verified fleet and the rollout manifests of its channels, as hashes for status: nothing is decided by it."""

    fleet_hash: str
    fleet_signed_at: datetime
    rollouts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BootstrapHost:
    """A control plane's hint about one rollout.

    ``acceptance`` is given when the rollout was not known and the signed fleet and manifest name this host with
    exactly that target.
    """

    snapshot: Snapshot
    acceptance: Acceptance | None = None


@dataclass(frozen=True, slots=True)
class ReplayRequested:
    """The control plane lost events from ``seq`` on: of one rollout, or of every one in ``rollout_ids``."""

    rollout_ids: tuple[str, ...]
    seq: int


@dataclass(frozen=True, slots=True)
class RollbackAttemptFailed:
    """One try of a rollback failed: a Dispatch that was kept back may now take over what is owed."""

    rollout_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class SuccessorTried:
    """The release of this rollout changes the agent, and its own was tried by itself: it can start."""

    rollout_id: str


@dataclass(frozen=True, slots=True)
class AgentReady:
    """This process is the agent that the release of this rollout has brought, and systemd counts it as ready."""

    rollout_id: str


@dataclass(frozen=True, slots=True)
class HealthChecksReload:
    """An operator asked for the declarations to be read again: probes of a soaking rollout start anew."""


class Answer(Enum):
    """What the reducer says to a Dispatch that passed every check."""

    ACCEPTED = "accepted"
    REPEAT = "repeat"
    NOT_NOW = "not now"


class Ack:
    """A one-shot reply from the reducer to a worker that must know how its input came out."""

    def __init__(self, wakeup: threading.Event) -> None:
        self._answered = wakeup
        self._value: Answer | None = None
        self.reason = ""

    @property
    def event(self) -> threading.Event:
        """Set when answered, and by shutdown."""
        return self._answered

    @property
    def value(self) -> Answer | None:
        """The answer, or None while there is none."""
        return self._value

    def reply(self, value: Answer, reason: str = "") -> None:
        """Called once, by the reducer."""
        self.reason = reason
        self._value = value
        self._answered.set()


@dataclass(frozen=True, slots=True)
class Activate:
    """A verified Dispatch; ``ack`` is answered when it is durable (or why it is not accepted).

    ``until`` is the monotonic time up to which what was verified may be acted on.
    """

    acceptance: Acceptance
    ack: Ack
    until: float = math.inf


ReducerInput = (
    HostEvent
    | SwitchStarting
    | AdvanceTick
    | ManifestSetUpdated
    | BootstrapHost
    | ReplayRequested
    | RollbackAttemptFailed
    | SuccessorTried
    | AgentReady
    | HealthChecksReload
    | Activate
)
