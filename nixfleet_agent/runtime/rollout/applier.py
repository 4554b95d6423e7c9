"""Carries out what a step asks for, once its event is durable: orders into mailboxes, kicks, log and status."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from nixfleet_agent.runtime.rollout.deeds import Ordered, Stepped
from nixfleet_agent.runtime.rollout.evaluate import AGENT_START, BOOT_FALLBACK, expected_of
from nixfleet_agent.runtime.rollout.orders import ActivationOrder, ProbeOrder, Release
from nixfleet_agent.runtime.rollout.rollouts import Host
from nixfleet_agent.runtime.rollout.succession import watched
from nixfleet_agent.state_machine import EmitEvent, Event, RecordTransition, RolloutRecord, State
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

    def carry_out(self, stepped: Stepped) -> None:
        """What is told of a step, and what it lets go of, once its event is durable; its orders are deeds apart."""
        record, effects = stepped.rollout.record, stepped.effects
        why = next((reason_of(effect.event) for effect in effects if isinstance(effect, EmitEvent)), "")
        for effect in effects:
            if isinstance(effect, RecordTransition):
                self._transition(effect, record, why)
            elif isinstance(effect, EmitEvent):
                self.tell_hooks(record, effect.event)
        self.kick_outbound()

    def order(self, ordered: Ordered) -> None:
        """Leave an order for the activation worker."""
        self.activation.put(ordered.order, replace=True)

    def probe(self, order: ProbeOrder) -> None:
        """Leave an order for the probe worker."""
        self.probes.put(order)

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
        tried = record.switch_fired is not False
        if effect.after is State.FAILED and effect.before is not State.ACTIVATING and tried:
            # What failed while activating, the activation worker has told already, with a better reason.
            self.quarantine(effect.rollout_id, record.target_closure, f"failed while {effect.before}")
        if record.terminal:
            self.activation.put(Release(effect.rollout_id))

    def publish(self, host: Host) -> None:
        """Put the rollouts on the board."""
        active = host.active
        view = RolloutsView(
            active_id=host.active_id,
            active_open=active is not None and not active.record.terminal,
            target=active.record.target_closure if active else None,
            expected=expected_of(host),
            watched=tuple(rollout.rollout_id for rollout in watched(host) if not rollout.record.terminal),
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
        case Failed(failing_probes=(probe,)) if probe == BOOT_FALLBACK:
            return f"{BOOT_FALLBACK}: the host came up with {event.observed_at_failure}"
        case Failed(failing_probes=(probe,), sustained_duration_secs=0) if probe == AGENT_START:
            return f"{AGENT_START}: the release's own agent was not ready in time: the guard took the host back"
        case Failed():
            probes = ", ".join(event.failing_probes) or "no probe"
            return f"{probes} failed for {event.sustained_duration_secs} s"
        case ActivationDeferred():
            return f"{event.component} can't be replaced live"
    return ""
