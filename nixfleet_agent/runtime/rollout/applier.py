"""Carries out what a step asks for, once its event is durable: orders into mailboxes, kicks, log and status."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from nixfleet_agent.runtime.rollout.orders import (
    ActivateForward,
    ActivationOrder,
    ProbeOrder,
    Release,
    ResetProbes,
    RollBack,
    StopProbes,
)
from nixfleet_agent.runtime.rollout.rollouts import Host, Rollout
from nixfleet_agent.state_machine import (
    Effect,
    EmitEvent,
    Event,
    FireRollbackTo,
    FireSwitch,
    RecordTransition,
    ResetProbeCache,
    RolloutRecord,
    State,
)
from nixfleet_agent.state_machine.events import ActivationDeferred, ActivationFailed, Failed
from nixfleet_agent.telemetry.status import RolloutsView, StatusBoard
from nixfleet_agent.text import clip
from nixfleet_agent.threads.mailbox import Mailbox

log = logging.getLogger("nixfleet_agent.reducer")
#: How much of what a failed program said goes into the line of its transition, in bytes.
REASON_LIMIT = 300
#: States that somebody should look at: who reads warnings only must not miss a release that failed.
_LOOK_AT = (State.FAILED, State.REVERTED, State.DEFERRED)


@dataclass(slots=True)
class Applier:
    """The doors out of the reducer; none of them waits for a worker.

    ``quarantine`` takes rollout, closure and reason; ``tell_hooks`` each durable event with the record after it.
    """

    activation: Mailbox[ActivationOrder]
    probes: Mailbox[ProbeOrder]
    board: StatusBoard
    kick_outbound: Callable[[], None]
    on_transition: Callable[[RecordTransition], None]
    quarantine: Callable[[str, str, str], None]
    tell_hooks: Callable[[RolloutRecord, Event], None]

    def carry_out(self, effects: tuple[Effect, ...], rollout: Rollout) -> None:
        """Carry out every effect; the event of an EmitEvent was durable before this was called.

        A rollout that took over what an unfinished rollback owed replaces that one's order by its own.
        """
        why = next((reason_of(effect.event) for effect in effects if isinstance(effect, EmitEvent)), "")
        for effect in effects:
            if isinstance(effect, RecordTransition):
                self._transition(effect, rollout.record, why)
            elif isinstance(effect, FireSwitch) and not rollout.accepted.adopted:
                self.activation.put(forward_order(rollout), replace=rollout.accepted.inherited)
            elif isinstance(effect, FireRollbackTo):
                self.activation.put(rollback_order(rollout, effect.closure))
            elif isinstance(effect, EmitEvent):
                self.tell_hooks(rollout.record, effect.event)
            elif isinstance(effect, ResetProbeCache):
                self.probes.put(ResetProbes(effect.rollout_id))
        self.kick_outbound()

    def _transition(self, effect: RecordTransition, record: RolloutRecord, why: str) -> None:
        log.log(
            logging.WARNING if effect.after in _LOOK_AT else logging.INFO,
            "%s: %s -> %s%s",
            effect.rollout_id,
            effect.before,
            effect.after,
            f": {why}" if why else "",
            extra={"rollout_id": effect.rollout_id, "seq": record.last_event_seq, "closure": record.target_closure},
        )
        self.on_transition(effect)
        if effect.after is State.FAILED and effect.before is not State.ACTIVATING:
            # What failed while activating, the activation worker has told already, with a better reason.
            self.quarantine(effect.rollout_id, record.target_closure, f"failed while {effect.before}")
        if effect.before is State.SOAKING:
            self.probes.put(StopProbes())
        if record.terminal:
            self.activation.put(Release(effect.rollout_id))

    def start_probes(self, rollout_id: str) -> None:
        """Probes of a rollout that soaked before this process began, or came back from being superseded."""
        self.probes.put(ResetProbes(rollout_id))

    def stop_probes(self) -> None:
        """The soaking rollout was superseded."""
        self.probes.put(StopProbes())

    def publish(self, host: Host, expected: str | None) -> None:
        """Put the rollouts on the board."""
        active = host.active
        view = RolloutsView(
            active_id=host.active_id,
            active_open=active is not None and not active.record.terminal,
            target=active.record.target_closure if active else None,
            expected=expected,
            reported={name: host.rollouts[name].record.last_event_seq for name in host.reported()},
            records=tuple(rollout.record for rollout in host.rollouts.values()),
        )
        self.board.publish_rollouts(view)


def reason_of(event: Event) -> str:
    """Why an event that ends or holds up a rollout came, on one line; empty for the others."""
    match event:
        case ActivationFailed():
            said = [line.strip() for line in event.stderr_tail.splitlines() if line.strip()]
            code = f"exit code {event.exit_code}" if event.exit_code >= 0 else ""
            return ", ".join(part for part in (clip(said[-1], REASON_LIMIT, "...") if said else "", code) if part)
        case Failed():
            probes = ", ".join(event.failing_probes) or "no probe"
            return f"{probes} failed for {event.sustained_duration_secs} s"
        case ActivationDeferred():
            return f"{event.component} can't be replaced live"
    return ""


def forward_order(rollout: Rollout, *, resume: bool = False) -> ActivateForward:
    """The order to bring a rollout's target to life."""
    record = rollout.record
    return ActivateForward(
        rollout_id=record.rollout_id,
        target=record.target_closure,
        prior=record.prior_closure,
        policy=str(rollout.accepted.policy),
        resume=resume,
        already_started=record.activation_started_at is not None,
        signed_at=rollout.accepted.manifest_signed_at,
    )


def rollback_order(rollout: Rollout, closure: str) -> RollBack:
    """The order to get back to ``closure``."""
    record = rollout.record
    return RollBack(
        rollout_id=record.rollout_id,
        target=closure,
        failed=record.target_closure,
        forward_fired=record.switch_fired,
        observed_at_failure=record.observed_at_failure,
        inherited=rollout.accepted.inherited,
    )
