"""Whatever happens, in whatever order and with whatever gaps: the promises of the machine hold."""

from __future__ import annotations

import copy
import unittest
from dataclasses import fields, replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nixfleet_agent.state_machine import (
    KINDS,
    TRANSITIONS,
    EmitEvent,
    Event,
    FireRollbackTo,
    FireSwitch,
    Mode,
    Policy,
    ProbeStatus,
    RolloutRecord,
    State,
    SwitchMethod,
    TransitionError,
    step,
)
from nixfleet_agent.state_machine.events import Phase
from tests.state_machine.machine import NOW, PRIOR, ROLLBACK, T0, TARGET, THIRD, at, declared, record

CLOSURES = st.sampled_from([PRIOR, TARGET, TARGET, THIRD])
STAMPS = st.integers(0, 3000).map(at)
NAMES = st.sampled_from(["web", "db", "disk"])
MODES = st.sampled_from(Mode)
MAYBE_TEXT = st.none() | st.text(max_size=5)
PHASES = st.lists(st.builds(Phase, name=st.text(max_size=3), seconds=st.floats(0, 9)), max_size=2).map(tuple)
TOPOLOGIES = st.dictionaries(NAMES, MODES, max_size=3).map(
    lambda named: tuple(declared(name, mode) for name, mode in named.items())
)
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "DispatchAck": {"current_closure_at_dispatch": st.none() | CLOSURES, "received_at": STAMPS},
    "ActivationStarted": {"started_at": STAMPS, "switch_method": st.sampled_from(SwitchMethod)},
    "ActivationCompleted": {
        "observed_current_closure": CLOSURES,
        "exit_code": st.just(0),
        "completed_at": STAMPS,
        "phases": PHASES,
    },
    "ActivationFailed": {
        "exit_code": st.integers(-3, 200),
        "stderr_tail": st.text(max_size=5),
        "failed_at": STAMPS,
        "switch_fired": st.none() | st.booleans(),
        "observed_at_failure": st.none() | CLOSURES,
        "phases": PHASES,
    },
    "ActivationDeferred": {"component": st.text(max_size=5), "deferred_at": STAMPS, "boot_id": MAYBE_TEXT},
    "ProbeTopologyDeclared": {"probes": TOPOLOGIES, "declared_at": STAMPS},
    "ProbeObservedFirst": {"probe_name": NAMES, "mode": MODES, "observed_at": STAMPS},
    "ProbeResult": {
        "probe_name": NAMES,
        "mode": MODES,
        "status": st.sampled_from([ProbeStatus.PASS, ProbeStatus.PASS, ProbeStatus.FAIL]),
        "observed_at": STAMPS,
        "failure_reason": MAYBE_TEXT,
    },
    "ProbeFailureFirst": {"probe_name": NAMES, "mode": MODES, "first_failed_at": STAMPS},
    "Failed": {
        "failed_at": STAMPS,
        "sustained_duration_secs": st.integers(0, 900),
        "failing_probes": st.lists(NAMES, max_size=2).map(tuple),
        "policy_applied": st.sampled_from(Policy),
        "observed_at_failure": st.none() | CLOSURES,
    },
    "RollbackComplete": {"reverted_to_closure": CLOSURES, "exit_code": st.just(0), "completed_at": STAMPS},
    "Converged": {"converged_at": STAMPS, "current_closure": CLOSURES},
}


@st.composite
def happenings(draw: st.DrawFn, state: State, local: bool, last_seq: int) -> Event:
    """One event: mostly one that the state has an edge for, so that stories get far; often not."""
    legal = [shape.kind for shape in TRANSITIONS[state]]
    kinds = legal if legal and draw(st.integers(0, 3)) else list(KINDS)
    kind = draw(st.sampled_from(kinds))
    values = draw(st.fixed_dictionaries(FIELDS[kind]))
    seq = last_seq + draw(st.sampled_from([1, 1, 1, 2, 900, 0, -1]))
    build: Any = KINDS[kind].local if local else KINDS[kind].remote
    event: Event = build(seq=seq, **values)
    return event


class Story(unittest.TestCase):
    """What every step is held to, whichever half it runs on."""

    def told(self, data: st.DataObject, *, local: bool) -> None:
        policy = data.draw(st.sampled_from(Policy))
        now = record(State.PENDING, last_event_seq=0, soak_floor=data.draw(st.integers(0, 60)))
        rollbacks = switches = 0
        for _ in range(data.draw(st.integers(1, 12))):
            event = data.draw(happenings(now.state, local, now.last_event_seq))
            kept, kept_event = copy.copy(now), copy.copy(event)
            probes_before = dict(now.probes)
            try:
                after, effects = step(now, event, NOW, policy)
            except TransitionError:
                after, effects = now, ()
            self.assertEqual((now, event, dict(now.probes)), (kept, kept_event, probes_before), "the input was changed")
            self.keeps_its_promises(now, after, policy if local else None)
            for effect in effects:
                self.assertEqual(effect.rollout_id, now.rollout_id)
                if isinstance(effect, FireRollbackTo):
                    rollbacks += 1
                    self.assertIs(policy, ROLLBACK)
                    self.assertIs(after.state, State.FAILED)
                    self.assertEqual(effect.closure, after.prior_closure)
                    self.assertNotEqual(effect.closure, after.target_closure)
                if isinstance(effect, FireSwitch):
                    switches += 1
                    self.assertEqual(effect.target_closure, after.target_closure)
            emitted = [effect.event for effect in effects if isinstance(effect, EmitEvent)]
            self.assertEqual(emitted, [event] if local and after is not now else [])
            now = after
        self.assertLessEqual(rollbacks, 1)
        self.assertLessEqual(switches, 1)
        if not local:
            self.assertEqual((rollbacks, switches), (0, 0), "a mirror fires nothing")

    def keeps_its_promises(self, before: RolloutRecord, after: RolloutRecord, policy: Policy | None) -> None:
        if after is not before:
            self.assertGreater(after.last_event_seq, before.last_event_seq)
            self.assertIn(after.state, {edge.to for edge in TRANSITIONS[before.state].values()})
        if after.state is State.CONVERGED:
            self.assertEqual(after.current_closure, after.target_closure)
            assert after.converged_at is not None and after.soak_due_at is not None
            self.assertGreaterEqual(after.converged_at, after.soak_due_at)
            for name in after.gates:
                self.assertIs(after.probes[name].status, ProbeStatus.PASS)
            if policy is not None:
                self.assertIsNotNone(after.topology)
        if after.state is State.REVERTED:
            self.assertEqual(after.current_closure, after.reverted_to)
        if after.rollback_owed:
            self.assertIs(after.state, State.FAILED)
            self.assertIs(after.policy_applied, ROLLBACK)
            self.assertIsNotNone(after.prior_closure)
        if after.state is State.SOAKING:
            assert after.activation_completed_at is not None and after.soak_due_at is not None
            floor = after.activation_completed_at + timedelta(minutes=after.soak_floor)
            self.assertGreaterEqual(after.soak_due_at, floor)
        for field in ("rollout_id", "hostname", "target_closure", "soak_floor", "dispatched_at"):
            self.assertEqual(getattr(after, field), getattr(before, field))


class AnySequence(Story):
    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_keeps_the_promises_on_the_host(self, data: st.DataObject) -> None:
        self.told(data, local=True)

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_keeps_the_promises_on_the_mirror(self, data: st.DataObject) -> None:
        self.told(data, local=False)

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_leads_both_halves_to_equal_records(self, data: st.DataObject) -> None:
        policy = data.draw(st.sampled_from(Policy))
        host = mirror = record(State.PENDING, last_event_seq=0)
        for _ in range(data.draw(st.integers(1, 12))):
            event = data.draw(happenings(host.state, True, host.last_event_seq))
            try:
                host, effects = step(host, event, NOW, policy)
            except TransitionError:
                continue
            for effect in effects:
                if isinstance(effect, EmitEvent):
                    mirror, _ = step(mirror, as_remote(effect.event), NOW, policy)
            self.assertEqual(mirror, host)

    @settings(max_examples=80, deadline=None)
    @given(st.data())
    def test_told_twice_or_with_repeats_comes_out_the_same(self, data: st.DataObject) -> None:
        now = record(State.PENDING, last_event_seq=0)
        story: list[Event] = []
        for _ in range(data.draw(st.integers(1, 10))):
            event = data.draw(happenings(now.state, False, now.last_event_seq))
            try:
                now, _ = step(now, event, NOW, ROLLBACK)
                story.append(event)
            except TransitionError:
                continue
        again = record(State.PENDING, last_event_seq=0)
        for number, event in enumerate(story):
            for repeat in (*story[max(0, number - 2) : number], event, event):
                try:
                    again, _ = step(again, repeat, NOW, ROLLBACK)
                except TransitionError:
                    continue
        self.assertEqual(again, now)


def as_remote(event: Event) -> Event:
    build: Any = KINDS[event.kind].remote
    made: Event = build(**{field.name: getattr(event, field.name) for field in fields(event)})
    return made


class WallTime(unittest.TestCase):
    @given(st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1)))
    def test_now_stamps_the_transition_and_nothing_in_the_record(self, naive: datetime) -> None:
        event: Any = KINDS["DispatchAck"].local
        happened = event(seq=51, current_closure_at_dispatch=PRIOR, received_at=at(1))
        now = naive.replace(tzinfo=T0.tzinfo)
        first, _ = step(record(State.PENDING), happened, now, ROLLBACK)
        second, _ = step(record(State.PENDING), happened, T0, ROLLBACK)
        self.assertEqual(first, replace(second))


if __name__ == "__main__":
    unittest.main()
