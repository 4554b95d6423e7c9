"""The machine itself: one table of edges, one change per event kind, and ``step``, which every event passes through.

What does not fit the table, and why:

* ``FireRollbackTo`` depends on the policy, on a known prior closure and on what was under way: a failure out of
  Deferred owes a rollback only once a boot was to bring the target, for the boot entry may still name it. Before that,
  whoever ends it has taken the entry back. ``rollback_owed`` in the record says how it came out.
* The same edge has two halves. A Local event emits and fires; its Remote mirror changes the record in the same way,
  but its events go to a log and nothing is fired.
* ``Converged`` is a promise and not just an edge: ``_require_converged`` checks it on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

from nixfleet_agent.state_machine import effects, events
from nixfleet_agent.state_machine.effects import Effect
from nixfleet_agent.state_machine.errors import IllegalForState, InvariantViolation, SeqRegression
from nixfleet_agent.state_machine.events import Event, Local
from nixfleet_agent.state_machine.record import ProbeRecord, RolloutRecord
from nixfleet_agent.state_machine.states import Policy, ProbeStatus, State


class Step(NamedTuple):
    """One step under way, as the makers of effects see it."""

    before: RolloutRecord
    after: RolloutRecord
    event: Event
    now: datetime

    @property
    def local(self) -> bool:
        return isinstance(self.event, Local)


def record(s: Step) -> Effect:
    """The change of state, for the log."""
    return effects.RecordTransition(s.after.rollout_id, s.before.state, s.after.state, s.now)


def emit(s: Step) -> Effect:
    """What happened, for the control plane; what came from there is only noted."""
    return (effects.EmitEvent if s.local else effects.AppendEventLog)(s.after.rollout_id, s.event)


def fire(s: Step) -> Effect | None:
    """The switch forward, where this host decided it."""
    return effects.FireSwitch(s.after.rollout_id, s.after.target_closure) if s.local else None


def reset(s: Step) -> Effect | None:
    """No probe's result of before counts any more."""
    return effects.ResetProbeCache(s.after.rollout_id) if s.local else None


def rollback(s: Step) -> Effect | None:
    """The switch back, where it is owed and there is a closure to go back to."""
    prior = s.after.prior_closure
    return effects.FireRollbackTo(s.after.rollout_id, prior) if s.local and s.after.rollback_owed and prior else None


def quarantine(s: Step) -> Effect | None:
    """A failure that the control plane has told: the closure is not accepted again."""
    return None if s.local else effects.InsertQuarantine(s.after.rollout_id, s.after.channel, s.after.target_closure)


@dataclass(frozen=True, slots=True)
class Edge:
    """Where an event leads, and the makers of its effects in order."""

    to: State
    effects: tuple[Callable[[Step], Effect | None], ...]


PENDING, ACTIVATING, DEFERRED, SOAKING = State.PENDING, State.ACTIVATING, State.DEFERRED, State.SOAKING
CONVERGED, FAILED, REVERTED = State.CONVERGED, State.FAILED, State.REVERTED
PASS = ProbeStatus.PASS

#: Every state, in life order. A pair that is not here raises ``IllegalForState`` and changes nothing.
TRANSITIONS: dict[State, dict[type[Event], Edge]] = {
    PENDING: {
        events.DispatchAck: Edge(ACTIVATING, (record, emit, fire)),
    },
    ACTIVATING: {
        events.ActivationStarted: Edge(ACTIVATING, (emit,)),
        events.ActivationCompleted: Edge(SOAKING, (reset, emit, record)),
        events.ActivationDeferred: Edge(DEFERRED, (emit, record)),
        events.ActivationFailed: Edge(FAILED, (emit, record, rollback)),
    },
    DEFERRED: {
        events.ActivationCompleted: Edge(SOAKING, (reset, emit, record)),
        events.ActivationFailed: Edge(FAILED, (emit, record, rollback)),
    },
    SOAKING: {
        events.ProbeTopologyDeclared: Edge(SOAKING, (emit,)),
        events.ProbeObservedFirst: Edge(SOAKING, (emit,)),
        events.ProbeResult: Edge(SOAKING, (emit,)),
        events.ProbeFailureFirst: Edge(SOAKING, (emit,)),
        events.Failed: Edge(FAILED, (emit, record, rollback)),
        events.Converged: Edge(CONVERGED, (emit, record)),
    },
    CONVERGED: {},
    FAILED: {
        events.RollbackComplete: Edge(REVERTED, (emit, record, quarantine)),
    },
    REVERTED: {},
}


def step(state: RolloutRecord, event: Event, now: datetime, policy: Policy) -> tuple[RolloutRecord, tuple[Effect, ...]]:
    """Apply one event; the record after it, and what is to be done, in order.

    ``now`` stamps the transition; every other time comes from the event. ``state`` is never changed.

    Raises:
        SeqRegression, IllegalForState, InvariantViolation: as ``advance`` does.
    """
    after = advance(state, event, policy)
    under_way = Step(state, after, event, now)
    makers = TRANSITIONS[state.state][events.KINDS[event.kind].shape].effects
    return after, tuple(effect for make in makers if (effect := make(under_way)) is not None)


def advance(state: RolloutRecord, event: Event, policy: Policy) -> RolloutRecord:
    """The record after one event, for whoever folds a log and has nothing to do about it.

    Raises:
        SeqRegression: the event's ``seq`` is not above the last one taken.
        IllegalForState: the state has no edge for it.
        InvariantViolation: the edge would break a promise (see ``_require_converged``).
    """
    if event.seq <= state.last_event_seq:
        raise SeqRegression(f"{state.rollout_id}: seq {event.seq} of {event.kind} is not above {state.last_event_seq}")
    shape = events.KINDS[event.kind].shape
    edge = TRANSITIONS[state.state].get(shape)
    if edge is None:
        raise IllegalForState(f"{state.rollout_id}: {event.kind} is not legal in {state.state}")
    changes = _CHANGES[shape](state, event, policy)
    return state.changed({**changes, "state": edge.to, "last_event_seq": event.seq})


#: Fields of the record that an event replaces, by name.
Changes = dict[str, Any]


def _acked(state: RolloutRecord, event: events.DispatchAck, policy: Policy) -> Changes:
    prior = event.current_closure_at_dispatch
    return {"dispatch_acked_at": event.received_at, "current_closure_at_dispatch": prior, "current_closure": prior}


def _started(state: RolloutRecord, event: events.ActivationStarted, policy: Policy) -> Changes:
    return {"activation_started_at": event.started_at}


def _completed(state: RolloutRecord, event: events.ActivationCompleted, policy: Policy) -> Changes:
    """Results of an earlier closure can't satisfy this one's gates, and its signed soak counts from here."""
    try:
        floor = event.completed_at + timedelta(minutes=state.soak_floor)
    except OverflowError as error:
        raise InvariantViolation(f"{state.rollout_id}: a soak of {state.soak_floor} minutes never ends") from error
    return {
        "activation_completed_at": event.completed_at,
        "current_closure": event.observed_current_closure,
        "soak_due_at": max(state.soak_due_at or floor, floor),
        "probes": MappingProxyType({}),
        "topology": None,
        "probe_observed_first_at": None,
        "probe_failure_first_at": None,
    }


def _deferred(state: RolloutRecord, event: events.ActivationDeferred, policy: Policy) -> Changes:
    return {
        "deferred_at": event.deferred_at,
        "deferred_boot_id": event.boot_id,
        "deferred_component": event.component,
    }


def _activation_failed(state: RolloutRecord, event: events.ActivationFailed, policy: Policy) -> Changes:
    undo = state.state is ACTIVATING or event.boot_fallback is True
    return {
        "activation_failed_at": event.failed_at,
        "failed_at": event.failed_at,
        "policy_applied": policy,
        "rollback_owed": undo and policy is Policy.ROLLBACK_AND_HALT and state.prior_closure is not None,
        "switch_fired": event.switch_fired,
        "observed_at_failure": event.observed_at_failure,
    }


def _topology(state: RolloutRecord, event: events.ProbeTopologyDeclared, policy: Policy) -> Changes:
    names = {probe.probe_name for probe in event.probes}
    kept = {name: probe for name, probe in state.probes.items() if name in names}
    return {"topology": event.probes, "probes": MappingProxyType(kept)}


def _observed_first(state: RolloutRecord, event: events.ProbeObservedFirst, policy: Policy) -> Changes:
    return {"probe_observed_first_at": state.probe_observed_first_at or event.observed_at}


def _failure_first(state: RolloutRecord, event: events.ProbeFailureFirst, policy: Policy) -> Changes:
    return {"probe_failure_first_at": state.probe_failure_first_at or event.first_failed_at}


def _result(state: RolloutRecord, event: events.ProbeResult, policy: Policy) -> Changes:
    """A probe that the topology does not name leaves no result; a pass ends a row of failures."""
    if state.topology is not None and event.probe_name not in [p.probe_name for p in state.topology]:
        return {}
    last = state.probes.get(event.probe_name)
    passed = event.status is PASS
    probe = ProbeRecord(
        status=event.status,
        mode=event.mode,
        last_observed_at=event.observed_at,
        last_pass_at=event.observed_at if passed else last.last_pass_at if last else None,
        failing_since=None if passed else (last.failing_since if last else None) or event.observed_at,
        failures_in_row=0 if passed else 1 + (last.failures_in_row if last else 0),
        failure_reason=event.failure_reason,
    )
    return {"probes": MappingProxyType({**state.probes, event.probe_name: probe})}


def _failed(state: RolloutRecord, event: events.Failed, policy: Policy) -> Changes:
    if isinstance(event, Local) and event.policy_applied is not policy:
        raise InvariantViolation(f"{state.rollout_id}: failed by {event.policy_applied}, the signed policy is {policy}")
    return {
        "failed_at": event.failed_at,
        "policy_applied": event.policy_applied,
        "rollback_owed": event.policy_applied is Policy.ROLLBACK_AND_HALT and state.prior_closure is not None,
        "switch_fired": True,
        "observed_at_failure": event.observed_at_failure,
    }


def _rolled_back(state: RolloutRecord, event: events.RollbackComplete, policy: Policy) -> Changes:
    return {
        "reverted_at": event.completed_at,
        "reverted_to": event.reverted_to_closure,
        "current_closure": event.reverted_to_closure,
        "rollback_owed": False,
    }


def _converged(state: RolloutRecord, event: events.Converged, policy: Policy) -> Changes:
    _require_converged(state, event)
    return {"converged_at": event.converged_at, "current_closure": event.current_closure}


def _require_converged(state: RolloutRecord, event: events.Converged) -> None:
    """The target runs, it soaked, and each gate's latest result of this activation is a pass.

    A mirror can't ask for a topology: an older agent never sent one.
    """
    if event.current_closure != state.target_closure:
        raise InvariantViolation(f"{state.rollout_id}: converged on {event.current_closure}, not on its target")
    if state.soak_due_at is not None and event.converged_at < state.soak_due_at:
        raise InvariantViolation(f"{state.rollout_id}: converged before its soak was over")
    if state.topology is None and isinstance(event, Local):
        raise InvariantViolation(f"{state.rollout_id}: converged before its probes were declared")
    for name in state.gates:
        probe = state.probes.get(name)
        if probe is None or probe.status is not PASS:
            raise InvariantViolation(f"{state.rollout_id}: converged while probe {name} has not passed")


_CHANGES: dict[type[Event], Callable[..., Changes]] = {
    events.DispatchAck: _acked,
    events.ActivationStarted: _started,
    events.ActivationCompleted: _completed,
    events.ActivationDeferred: _deferred,
    events.ActivationFailed: _activation_failed,
    events.ProbeTopologyDeclared: _topology,
    events.ProbeObservedFirst: _observed_first,
    events.ProbeFailureFirst: _failure_first,
    events.ProbeResult: _result,
    events.Failed: _failed,
    events.RollbackComplete: _rolled_back,
    events.Converged: _converged,
}
