"""What is known of one rollout on one host: immutable, and replaced as a whole by each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from nixfleet_agent.state_machine.states import Mode, Policy, ProbeStatus, State


def _no_probes() -> Mapping[str, ProbeRecord]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredProbe:
    """One line of a declared topology. ``run_once`` stays on the host: the wire has no place for it."""

    probe_name: str
    kind: str
    mode: Mode
    run_once: bool = field(default=False, metadata={"local": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRecord:
    """The latest of one probe since the activation."""

    status: ProbeStatus
    mode: Mode
    last_observed_at: datetime
    last_pass_at: datetime | None = None
    failing_since: datetime | None = None
    failures_in_row: int = 0
    failure_reason: str | None = None


@dataclass(frozen=True, slots=True)
class WayBack:
    """Where a rollback goes: the last closure proven on this host (None: there is none).

    ``proven`` is False where an agent before this rule accepted the rollout: then it is what ran at its acceptance.
    """

    closure: str | None
    proven: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRecord:
    """State and history of one rollout. ``soak_floor`` is in signed minutes; times are aware UTC.

    ``way_back`` is None on a control plane, which is not told: there ``current_closure_at_dispatch`` stands for it.
    """

    rollout_id: str
    hostname: str
    channel: str
    target_closure: str
    dispatched_at: datetime
    state: State = State.PENDING
    way_back: WayBack | None = None
    current_closure_at_dispatch: str | None = None
    current_closure: str | None = None
    reverted_to: str | None = None
    dispatch_acked_at: datetime | None = None
    activation_started_at: datetime | None = None
    activation_completed_at: datetime | None = None
    activation_failed_at: datetime | None = None
    probe_observed_first_at: datetime | None = None
    probe_failure_first_at: datetime | None = None
    soak_due_at: datetime | None = None
    soak_floor: int = 0
    converged_at: datetime | None = None
    failed_at: datetime | None = None
    reverted_at: datetime | None = None
    policy_applied: Policy | None = None
    rollback_owed: bool = False
    switch_fired: bool | None = None
    deferred_at: datetime | None = None
    deferred_boot_id: str | None = None
    deferred_component: str | None = None
    observed_at_failure: str | None = None
    probes: Mapping[str, ProbeRecord] = field(default_factory=_no_probes)
    topology: tuple[DeclaredProbe, ...] | None = None
    last_event_seq: int = 0

    def changed(self, changes: Mapping[str, Any]) -> RolloutRecord:
        """This record with some fields replaced: ``dataclasses.replace``, but a restart does it by the ten thousand.

        The slots are filled as they are: the constructor would take each of thirty fields by its keyword.
        """
        new = object.__new__(RolloutRecord)
        for fill, value in zip(_FILL, _values(self), strict=True):
            fill(new, value)
        for name, value in changes.items():
            _FILL_BY_NAME[name](new, value)
        return new

    @property
    def prior_closure(self) -> str | None:
        """The closure that a rollback goes to; None where none is known or it is the target itself."""
        prior = self.current_closure_at_dispatch if self.way_back is None else self.way_back.closure
        return None if prior == self.target_closure else prior

    @property
    def terminal(self) -> bool:
        """Nothing more happens by itself: Converged, Reverted, or Failed with no rollback owed."""
        if self.state is State.FAILED:
            return not self.rollback_owed
        return self.state in (State.CONVERGED, State.REVERTED)

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the probes that must pass before this rollout converges, sorted.

        Without a topology (an older agent sent none to its control plane) every enforce probe heard of counts.
        """
        if self.topology is not None:
            return tuple(sorted(p.probe_name for p in self.topology if p.mode is Mode.ENFORCE))
        return tuple(sorted(name for name, probe in self.probes.items() if probe.mode is Mode.ENFORCE))


_FIELDS = tuple(each.name for each in fields(RolloutRecord))
_values = attrgetter(*_FIELDS)
_FILL_BY_NAME = {name: RolloutRecord.__dict__[name].__set__ for name in _FIELDS}
_FILL = tuple(_FILL_BY_NAME.values())
