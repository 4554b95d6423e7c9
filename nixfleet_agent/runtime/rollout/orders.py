"""What the reducer leaves in the mailboxes of the activation and the probe worker."""

from __future__ import annotations

from dataclasses import dataclass

from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.runtime.rollout.rollouts import Rollout


@dataclass(frozen=True, slots=True)
class Release:
    """A rollout is over: let go of what it held (GC roots)."""

    rollout_id: str


@dataclass(frozen=True, slots=True)
class StandDown:
    """The rollback of that rollout is wanted no more: another one answers for what runs, and has nothing to order."""

    rollout_id: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """The release changes the agent, and its own can start: it is to go on, guarded until it is ready."""

    intent: Forward

    @property
    def rollout_id(self) -> str:
        return self.intent.rollout_id


ActivationOrder = Forward | Rollback | Release | StandDown | HandOver


def outranks(waiting: ActivationOrder, new: ActivationOrder) -> bool:
    """Whether ``new`` must not overwrite ``waiting``: a rollback that waits is never lost to a forward order.

    The reducer puts a forward order in its place only once the rollout of that order is in charge.
    """
    return isinstance(new, Release) or (isinstance(waiting, Rollback) and isinstance(new, Forward))


@dataclass(frozen=True, slots=True)
class ResetProbes:
    """Stop every probe and start those that the running release declares, for this rollout."""

    rollout_id: str


@dataclass(frozen=True, slots=True)
class StopProbes:
    """No rollout soaks: stop every probe."""


ProbeOrder = ResetProbes | StopProbes


def forward_order(rollout: Rollout, *, resume: bool = False) -> Forward:
    """The order to bring a rollout's target to life."""
    record = rollout.record
    return Forward(
        rollout_id=record.rollout_id,
        target=record.target_closure,
        prior=record.prior_closure,
        policy=str(rollout.accepted.policy),
        resume=resume,
        already_started=record.activation_started_at is not None,
        signed_at=rollout.accepted.manifest_signed_at,
    )


def rollback_order(rollout: Rollout, closure: str) -> Rollback:
    """The order to get back to ``closure``."""
    record = rollout.record
    return Rollback(
        rollout_id=record.rollout_id,
        target=closure,
        failed=record.target_closure,
        forward_fired=record.switch_fired,
        observed_at_failure=record.observed_at_failure,
        inherited=rollout.accepted.inherited,
    )
