"""Every state meets every event, on both halves: the exact record and the exact effects, or a refusal and no change."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from nixfleet_agent.state_machine import (
    KINDS,
    TRANSITIONS,
    AppendEventLog,
    Effect,
    EmitEvent,
    Event,
    FireRollbackTo,
    FireSwitch,
    IllegalForState,
    InsertQuarantine,
    RecordTransition,
    ResetProbeCache,
    RolloutRecord,
    State,
    TransitionError,
    step,
)
from tests.state_machine.machine import HALT, NOW, PRIOR, ROLLBACK, ROLLOUT, TARGET, THIRD, at, event, probed, record

EMPTY: MappingProxyType[str, Any] = MappingProxyType({})
PENDING, ACTIVATING, DEFERRED, SOAKING = State.PENDING, State.ACTIVATING, State.DEFERRED, State.SOAKING
CONVERGED, FAILED, REVERTED = State.CONVERGED, State.FAILED, State.REVERTED

Maker = Callable[[RolloutRecord, RolloutRecord, Event], Effect]


def moved(before: RolloutRecord, after: RolloutRecord, _: Event) -> Effect:
    return RecordTransition(ROLLOUT, before.state, after.state, NOW)


def emitted(before: RolloutRecord, after: RolloutRecord, happened: Event) -> Effect:
    return EmitEvent(ROLLOUT, happened)


def logged(before: RolloutRecord, after: RolloutRecord, happened: Event) -> Effect:
    return AppendEventLog(ROLLOUT, happened)


def constant(effect: Effect) -> Maker:
    return lambda before, after, happened: effect


FIRE = constant(FireSwitch(ROLLOUT, TARGET))
RESET = constant(ResetProbeCache(ROLLOUT))
BACK = constant(FireRollbackTo(ROLLOUT, PRIOR))
QUARANTINE = constant(InsertQuarantine(ROLLOUT, "stable", TARGET))

_COMPLETED: dict[str, Any] = {
    "activation_completed_at": at(3),
    "current_closure": TARGET,
    "soak_due_at": at(1000),
    "probes": EMPTY,
    "topology": None,
    "probe_observed_first_at": None,
    "probe_failure_first_at": None,
}
_ACTIVATION_FAILED: dict[str, Any] = {
    "activation_failed_at": at(4),
    "failed_at": at(4),
    "policy_applied": ROLLBACK,
    "switch_fired": True,
    "observed_at_failure": THIRD,
}

#: (from, kind) -> (to, what changes in the record, effects of the Local half, effects of the Remote half)
EDGES: dict[tuple[State, str], tuple[State, dict[str, Any], tuple[Maker, ...], tuple[Maker, ...]]] = {
    (PENDING, "DispatchAck"): (ACTIVATING, {"dispatch_acked_at": at(1)}, (moved, emitted, FIRE), (moved, logged)),
    (ACTIVATING, "ActivationStarted"): (ACTIVATING, {"activation_started_at": at(2)}, (emitted,), (logged,)),
    (ACTIVATING, "ActivationCompleted"): (SOAKING, _COMPLETED, (RESET, emitted, moved), (logged, moved)),
    (ACTIVATING, "ActivationDeferred"): (
        DEFERRED,
        {"deferred_at": at(5), "deferred_boot_id": "boot-1", "deferred_component": "kernel"},
        (emitted, moved),
        (logged, moved),
    ),
    (ACTIVATING, "ActivationFailed"): (
        FAILED,
        _ACTIVATION_FAILED | {"rollback_owed": True},
        (emitted, moved, BACK),
        (logged, moved),
    ),
    (DEFERRED, "ActivationCompleted"): (SOAKING, _COMPLETED, (RESET, emitted, moved), (logged, moved)),
    (DEFERRED, "ActivationFailed"): (FAILED, _ACTIVATION_FAILED, (emitted, moved), (logged, moved)),
    (SOAKING, "ProbeTopologyDeclared"): (SOAKING, {"topology": (), "probes": EMPTY}, (emitted,), (logged,)),
    (SOAKING, "ProbeObservedFirst"): (SOAKING, {"probe_observed_first_at": at(7)}, (emitted,), (logged,)),
    (SOAKING, "ProbeResult"): (
        SOAKING,
        {"probes": MappingProxyType({"web": probed(last_pass_at=at(8))})},
        (emitted,),
        (logged,),
    ),
    (SOAKING, "ProbeFailureFirst"): (SOAKING, {"probe_failure_first_at": at(9)}, (emitted,), (logged,)),
    (SOAKING, "Failed"): (
        FAILED,
        {
            "failed_at": at(10),
            "policy_applied": ROLLBACK,
            "rollback_owed": True,
            "switch_fired": True,
            "observed_at_failure": TARGET,
        },
        (emitted, moved, BACK),
        (logged, moved),
    ),
    (SOAKING, "Converged"): (CONVERGED, {"converged_at": at(5000)}, (emitted, moved), (logged, moved)),
    (FAILED, "RollbackComplete"): (
        REVERTED,
        {"reverted_at": at(11), "reverted_to": PRIOR, "current_closure": PRIOR, "rollback_owed": False},
        (emitted, moved),
        (logged, moved, QUARANTINE),
    ),
}


class EveryStateMeetsEveryEvent(unittest.TestCase):
    def pairs(self) -> list[tuple[State, str, bool]]:
        return [(state, kind, local) for state in State for kind in KINDS for local in (True, False)]

    def test_a_listed_pair_leads_to_exactly_this_record_with_exactly_these_effects(self) -> None:
        hit = set()
        for state, kind, local in self.pairs():
            if (state, kind) not in EDGES:
                continue
            with self.subTest(state=state, kind=kind, local=local):
                to, changes, local_effects, remote_effects = EDGES[state, kind]
                before, happened = record(state), event(kind, local=local)
                after, effects = step(before, happened, NOW, ROLLBACK)
                self.assertEqual(after, replace(record(state), state=to, last_event_seq=100, **changes))
                makers = local_effects if local else remote_effects
                self.assertEqual(effects, tuple(make(before, after, happened) for make in makers))
                self.assertEqual(before, record(state), "the record that went in was changed")
                hit.add((state, kind))
        self.assertEqual(hit, set(EDGES))

    def test_every_other_pair_is_refused_and_changes_nothing(self) -> None:
        refused = 0
        for state, kind, local in self.pairs():
            if (state, kind) in EDGES:
                continue
            with self.subTest(state=state, kind=kind, local=local):
                before = record(state)
                with self.assertRaises(IllegalForState) as caught:
                    step(before, event(kind, local=local), NOW, ROLLBACK)
                self.assertIsInstance(caught.exception, TransitionError)
                self.assertIn(kind, str(caught.exception))
                self.assertIn(state.value, str(caught.exception))
                self.assertEqual(before, record(state))
                refused += 1
        self.assertEqual(refused, 2 * (len(State) * len(KINDS) - len(EDGES)))

    def test_the_table_names_every_state_and_no_edge_beyond_these(self) -> None:
        self.assertEqual(list(TRANSITIONS), list(State))
        named = {(state, shape.kind): edge.to for state, edges in TRANSITIONS.items() for shape, edge in edges.items()}
        self.assertEqual(named, {pair: to for pair, (to, *_) in EDGES.items()})

    def test_every_state_can_be_reached_from_the_first(self) -> None:
        reached = {PENDING}
        while more := {edge.to for state in reached for edge in TRANSITIONS[state].values()} - reached:
            reached |= more
        self.assertEqual(reached, set(State))

    def test_every_kind_has_three_classes_of_its_own(self) -> None:
        classes = [c for kind in KINDS.values() for c in (kind.shape, kind.local, kind.remote)]
        self.assertEqual(len(set(classes)), 3 * 12)
        for name, kind in KINDS.items():
            self.assertTrue(issubclass(kind.local, kind.shape) and issubclass(kind.remote, kind.shape))
            self.assertEqual((kind.shape.kind, kind.local.kind, kind.remote.kind), (name, name, name))

    def test_the_stamp_of_an_event_is_its_own_time(self) -> None:
        stamps = {kind: event(kind).at for kind in KINDS}
        expected = dict(zip(KINDS, (at(s) for s in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 5000)), strict=True))
        self.assertEqual(stamps, expected)


class WhenARollbackIsFired(unittest.TestCase):
    """Only with the policy, only to a known prior, only where something live was changed."""

    def effects_of(self, state: State, kind: str, **changes: Any) -> tuple[type[Effect], ...]:
        policy = changes.pop("policy", ROLLBACK)
        fields = {"policy_applied": policy} if kind == "Failed" else {}
        before = record(state, **changes)
        after, effects = step(before, event(kind, **fields), NOW, policy)
        self.assertEqual(after.rollback_owed, FireRollbackTo in map(type, effects))
        self.assertEqual(after.terminal, not after.rollback_owed)
        self.assertEqual(after.policy_applied, policy)
        return tuple(map(type, effects))

    def test_both_failures_fire_it(self) -> None:
        for state, kind in ((ACTIVATING, "ActivationFailed"), (SOAKING, "Failed")):
            with self.subTest(kind=kind):
                self.assertEqual(self.effects_of(state, kind), (EmitEvent, RecordTransition, FireRollbackTo))

    def test_not_with_the_policy_halt(self) -> None:
        for state, kind in ((ACTIVATING, "ActivationFailed"), (SOAKING, "Failed")):
            with self.subTest(kind=kind):
                self.assertEqual(self.effects_of(state, kind, policy=HALT), (EmitEvent, RecordTransition))

    def test_not_without_a_prior_closure(self) -> None:
        for prior in (None, TARGET):
            for state, kind in ((ACTIVATING, "ActivationFailed"), (SOAKING, "Failed")):
                with self.subTest(kind=kind, prior=prior):
                    effects = self.effects_of(state, kind, current_closure_at_dispatch=prior)
                    self.assertEqual(effects, (EmitEvent, RecordTransition))

    def test_not_out_of_deferred_because_nothing_live_was_changed(self) -> None:
        self.assertEqual(self.effects_of(DEFERRED, "ActivationFailed"), (EmitEvent, RecordTransition))

    def test_a_failure_that_owes_nothing_is_the_end_of_the_rollout(self) -> None:
        owed, settled = record(FAILED), record(FAILED, rollback_owed=False)
        self.assertEqual((owed.terminal, settled.terminal), (False, True))
        terminal = {state for state in State if record(state).terminal}
        self.assertEqual(terminal, {CONVERGED, REVERTED})


if __name__ == "__main__":
    unittest.main()
