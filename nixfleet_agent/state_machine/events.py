"""What can happen in a rollout: one class per wire kind, each with its Local and its Remote half.

Fields marked ``local`` are kept in the host's own log and never put on the wire: they are what a restart
needs to know, and nothing that a control plane could use.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from nixfleet_agent.state_machine.record import DeclaredProbe
from nixfleet_agent.state_machine.states import Mode, Policy, ProbeStatus, SwitchMethod


def _local(default: Any = None) -> Any:
    return field(default=default, metadata={"local": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened; ``seq`` is 0 until the reducer assigns it."""

    kind: ClassVar[str]
    stamp: ClassVar[str]

    seq: int = 0

    @property
    def at(self) -> datetime:
        """When it happened, by the wall clock of the host."""
        at: datetime = getattr(self, self.stamp)
        return at


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """How long one step of an activation or a rollback took, for the host's own history."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchAck(Event):
    """The host accepted its turn."""

    kind: ClassVar[str] = "DispatchAck"
    stamp: ClassVar[str] = "received_at"

    current_closure_at_dispatch: str | None
    received_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationStarted(Event):
    """It is known how the host will switch; the switch comes next."""

    kind: ClassVar[str] = "ActivationStarted"
    stamp: ClassVar[str] = "started_at"

    started_at: datetime
    switch_method: SwitchMethod


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationCompleted(Event):
    """The target runs and its switch has ended."""

    kind: ClassVar[str] = "ActivationCompleted"
    stamp: ClassVar[str] = "completed_at"

    observed_current_closure: str
    exit_code: int
    completed_at: datetime
    phases: tuple[Phase, ...] = _local(())


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationFailed(Event):
    """The target does not run; ``exit_code`` is -1 where no better one exists.

    ``boot_fallback``: a boot was to bring it, and the host came up with another system.
    """

    kind: ClassVar[str] = "ActivationFailed"
    stamp: ClassVar[str] = "failed_at"

    exit_code: int
    stderr_tail: str
    failed_at: datetime
    switch_fired: bool | None = _local()
    observed_at_failure: str | None = _local()
    boot_fallback: bool | None = _local()
    phases: tuple[Phase, ...] = _local(())


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationDeferred(Event):
    """The target is what boots next; ``component`` can't be replaced live."""

    kind: ClassVar[str] = "ActivationDeferred"
    stamp: ClassVar[str] = "deferred_at"

    component: str
    deferred_at: datetime
    boot_id: str | None = _local()
    phases: tuple[Phase, ...] = _local(())


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTopologyDeclared(Event):
    """All probes of the release that now runs, also when there are none."""

    kind: ClassVar[str] = "ProbeTopologyDeclared"
    stamp: ClassVar[str] = "declared_at"

    probes: tuple[DeclaredProbe, ...]
    declared_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeObservedFirst(Event):
    """A probe gave its first result."""

    kind: ClassVar[str] = "ProbeObservedFirst"
    stamp: ClassVar[str] = "observed_at"

    probe_name: str
    mode: Mode
    observed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SubResult:
    """One control of an evidence probe."""

    control_id: str
    status: ProbeStatus
    framework: str
    article: str | None = None
    effective_mode: Mode
    override_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult(Event):
    """One run of a probe."""

    kind: ClassVar[str] = "ProbeResult"
    stamp: ClassVar[str] = "observed_at"

    probe_name: str
    mode: Mode
    status: ProbeStatus
    observed_at: datetime
    failure_reason: str | None = None
    sub_results: tuple[SubResult, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFailureFirst(Event):
    """A probe that passed, or had no result, now fails."""

    kind: ClassVar[str] = "ProbeFailureFirst"
    stamp: ClassVar[str] = "first_failed_at"

    probe_name: str
    mode: Mode
    first_failed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """Enforce probes failed for longer than the threshold."""

    kind: ClassVar[str] = "Failed"
    stamp: ClassVar[str] = "failed_at"

    failed_at: datetime
    sustained_duration_secs: int
    failing_probes: tuple[str, ...]
    policy_applied: Policy
    observed_at_failure: str | None = _local()


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackComplete(Event):
    """The closure from before the rollout runs again."""

    kind: ClassVar[str] = "RollbackComplete"
    stamp: ClassVar[str] = "completed_at"

    reverted_to_closure: str
    exit_code: int
    completed_at: datetime
    phases: tuple[Phase, ...] = _local(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Converged(Event):
    """The target soaked and every gate passed."""

    kind: ClassVar[str] = "Converged"
    stamp: ClassVar[str] = "converged_at"

    converged_at: datetime
    current_closure: str


class Local:
    """The half that the host itself raises: effects are emitted and fired."""

    __slots__ = ()


class Remote:
    """The mirror half: the same change of the record, its effects only logged."""

    __slots__ = ()


class LocalActivate(Local, DispatchAck):
    __slots__ = ()


class LocalActivationStarted(Local, ActivationStarted):
    __slots__ = ()


class LocalActivationCompleted(Local, ActivationCompleted):
    __slots__ = ()


class LocalActivationFailed(Local, ActivationFailed):
    __slots__ = ()


class LocalActivationDeferred(Local, ActivationDeferred):
    __slots__ = ()


class LocalProbeTopologyDeclared(Local, ProbeTopologyDeclared):
    __slots__ = ()


class LocalProbeObservedFirst(Local, ProbeObservedFirst):
    __slots__ = ()


class LocalProbeResult(Local, ProbeResult):
    __slots__ = ()


class LocalProbeFailureFirst(Local, ProbeFailureFirst):
    __slots__ = ()


class LocalSustainedFailureCrossed(Local, Failed):
    __slots__ = ()


class LocalRollbackCompleted(Local, RollbackComplete):
    __slots__ = ()


class LocalConvergedReached(Local, Converged):
    __slots__ = ()


class RemoteDispatchAck(Remote, DispatchAck):
    __slots__ = ()


class RemoteActivationStarted(Remote, ActivationStarted):
    __slots__ = ()


class RemoteActivationCompleted(Remote, ActivationCompleted):
    __slots__ = ()


class RemoteActivationFailed(Remote, ActivationFailed):
    __slots__ = ()


class RemoteActivationDeferred(Remote, ActivationDeferred):
    __slots__ = ()


class RemoteProbeTopologyDeclared(Remote, ProbeTopologyDeclared):
    __slots__ = ()


class RemoteProbeObservedFirst(Remote, ProbeObservedFirst):
    __slots__ = ()


class RemoteProbeResult(Remote, ProbeResult):
    __slots__ = ()


class RemoteProbeFailureFirst(Remote, ProbeFailureFirst):
    __slots__ = ()


class RemoteFailed(Remote, Failed):
    __slots__ = ()


class RemoteRollbackComplete(Remote, RollbackComplete):
    __slots__ = ()


class RemoteConverged(Remote, Converged):
    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """The three classes of one wire kind."""

    shape: type[Event]
    local: type[Event]
    remote: type[Event]


#: Every wire kind, in the order of a rollout's life.
KINDS: dict[str, Kind] = {
    kind.shape.kind: kind
    for kind in (
        Kind(DispatchAck, LocalActivate, RemoteDispatchAck),
        Kind(ActivationStarted, LocalActivationStarted, RemoteActivationStarted),
        Kind(ActivationCompleted, LocalActivationCompleted, RemoteActivationCompleted),
        Kind(ActivationFailed, LocalActivationFailed, RemoteActivationFailed),
        Kind(ActivationDeferred, LocalActivationDeferred, RemoteActivationDeferred),
        Kind(ProbeTopologyDeclared, LocalProbeTopologyDeclared, RemoteProbeTopologyDeclared),
        Kind(ProbeObservedFirst, LocalProbeObservedFirst, RemoteProbeObservedFirst),
        Kind(ProbeResult, LocalProbeResult, RemoteProbeResult),
        Kind(ProbeFailureFirst, LocalProbeFailureFirst, RemoteProbeFailureFirst),
        Kind(Failed, LocalSustainedFailureCrossed, RemoteFailed),
        Kind(RollbackComplete, LocalRollbackCompleted, RemoteRollbackComplete),
        Kind(Converged, LocalConvergedReached, RemoteConverged),
    )
}
