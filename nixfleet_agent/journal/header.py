"""The accepted Dispatch as seq 0 of its rollout's log: all that a later decision needs, without network or memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto import ids
from nixfleet_agent.proto.heartbeat import seq
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.state_machine import Policy, RolloutRecord, State, WayBack

#: The kind of seq 0; it is never posted.
DISPATCH_KIND = "Dispatch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """A Dispatch with everything that was resolved for it from signed artifacts: seq 0 of its rollout's log.

    ``soak_floor`` is in minutes; ``marks`` are the high-water marks it was accepted under, as JSON. ``current_closure``
    is what ran when it was accepted.

    What follows is its place in the log, given by ``accepted`` or ``adopted``. ``number`` orders acceptances on this
    host; an adopted rollout has 0 and so never outranks an accepted one.
    ``prior_closure`` is what a rollback goes to: the last proven closure, None where there is none. ``proven`` is False
    in logs of agents before this rule, whose ``prior_closure`` is what ran at acceptance.
    ``inherited`` says that an unfinished rollback of another rollout was taken over.
    ``adopted_state`` and ``adopted_seq`` are what the control plane said of a rollout that this host had no log of.
    """

    rollout_id: str
    target_closure: str
    current_closure: str | None = None
    soak_due_at: datetime
    soak_floor: int
    policy: Policy
    accepted_at: datetime
    manifest_hash: str
    manifest_signed_at: datetime
    fleet_hash: str
    fleet_signed_at: datetime
    marks: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    prior_closure: str | None = None
    proven: bool = False
    inherited: bool = False
    adopted_state: State | None = None
    adopted_seq: int = 0

    @property
    def adopted(self) -> bool:
        return self.adopted_state is not None

    @property
    def ran(self) -> str | None:
        """What ran when the rollout was accepted."""
        return self.current_closure if self.proven else self.prior_closure

    def record(self, hostname: str) -> RolloutRecord:
        """The rollout as it stands before its first event."""
        return RolloutRecord(
            rollout_id=self.rollout_id,
            hostname=hostname,
            channel=ids.channel_of(self.rollout_id),
            target_closure=self.target_closure,
            dispatched_at=self.accepted_at,
            state=self.adopted_state or State.PENDING,
            way_back=WayBack(self.prior_closure, self.proven),
            current_closure_at_dispatch=self.ran,
            current_closure=self.target_closure if self.adopted else self.ran,
            soak_due_at=self.soak_due_at,
            soak_floor=self.soak_floor,
            last_event_seq=self.adopted_seq,
        )

    def to_json(self) -> dict[str, Any]:
        """The ``event`` object of seq 0."""
        body = {
            "kind": DISPATCH_KIND,
            "acceptance": self.number,
            "targetClosure": self.target_closure,
            "priorClosure": self.prior_closure,
            "soakDueAt": format_time(self.soak_due_at),
            "soakFloorMinutes": self.soak_floor,
            "policy": str(self.policy),
            "acceptedAt": format_time(self.accepted_at),
            "manifest": {"hash": self.manifest_hash, "signedAt": format_time(self.manifest_signed_at)},
            "fleet": {"hash": self.fleet_hash, "signedAt": format_time(self.fleet_signed_at)},
            "marks": dict(self.marks),
        }
        if self.inherited:
            body["priorInherited"] = True
        if self.proven:
            body |= {"priorProven": True, "currentClosure": self.current_closure}
        if self.adopted_state is not None:
            body |= {"adoptedState": str(self.adopted_state), "adoptedSeq": self.adopted_seq}
        return {key: value for key, value in body.items() if value is not None}

    @classmethod
    def parse(cls, rollout_id: str, value: object) -> Acceptance:
        """What ``to_json`` wrote; raises ProtoError naming the field that is wrong."""
        if not isinstance(value, Mapping) or value.get("kind") != DISPATCH_KIND:
            raise ProtoError(f"seq 0 of {rollout_id} is not an accepted Dispatch")
        manifest, fleet, marks = (value.get(part) for part in ("manifest", "fleet", "marks"))
        if not (isinstance(manifest, Mapping) and isinstance(fleet, Mapping) and isinstance(marks, Mapping)):
            raise ProtoError(f"seq 0 of {rollout_id} does not name its manifest, fleet and marks")
        prior, current, adopted = (value.get(key) for key in ("priorClosure", "currentClosure", "adoptedState"))
        try:
            return cls(
                number=seq(value.get("acceptance"), "acceptance"),
                rollout_id=rollout_id,
                target_closure=ids.require(ids.CLOSURE, value.get("targetClosure"), "targetClosure"),
                prior_closure=None if prior is None else ids.require(ids.CLOSURE, prior, "priorClosure"),
                soak_due_at=parse_time(value.get("soakDueAt"), "soakDueAt"),
                soak_floor=seq(value.get("soakFloorMinutes"), "soakFloorMinutes"),
                policy=Policy(str(value.get("policy"))),
                accepted_at=parse_time(value.get("acceptedAt"), "acceptedAt"),
                manifest_hash=str(manifest.get("hash")),
                manifest_signed_at=parse_time(manifest.get("signedAt"), "signedAt of the manifest"),
                fleet_hash=str(fleet.get("hash")),
                fleet_signed_at=parse_time(fleet.get("signedAt"), "signedAt of the fleet"),
                marks=marks,
                adopted_state=None if adopted is None else State(adopted),
                adopted_seq=seq(value.get("adoptedSeq", 0), "adoptedSeq"),
                inherited=value.get("priorInherited") is True,
                current_closure=None if current is None else ids.require(ids.CLOSURE, current, "currentClosure"),
                proven=value.get("priorProven") is True,
            )
        except ValueError as error:
            raise ProtoError(f"seq 0 of {rollout_id}: {error}") from error


def accepted(acceptance: Acceptance, number: int, prior: str | None, *, inherited: bool = False) -> Acceptance:
    """The log's seq 0 for a Dispatch that passed every check."""
    return replace(acceptance, number=number, prior_closure=prior, proven=True, inherited=inherited)


def adopted(acceptance: Acceptance, state: State, last_event_seq: int) -> Acceptance:
    """Seq 0 of a rollout that already runs here but has no log: no way back is known, and none is invented."""
    started = state if state in (State.PENDING, State.SOAKING) else State.ACTIVATING
    entry = accepted(acceptance, 0, None)
    return replace(entry, adopted_state=started, adopted_seq=last_event_seq)
