"""The promises inside ``step``: what is refused though the table has an edge, and what each event may touch."""

from __future__ import annotations

import unittest
from dataclasses import FrozenInstanceError, fields, replace
from types import MappingProxyType
from typing import Any

from nixfleet_agent.state_machine import (
    InvariantViolation,
    Mode,
    ProbeStatus,
    RolloutRecord,
    SeqRegression,
    State,
    TransitionError,
    step,
)
from tests.state_machine.machine import (
    HALT,
    NOW,
    PRIOR,
    ROLLBACK,
    TARGET,
    THIRD,
    at,
    declared,
    event,
    probed,
    record,
)

PASS, FAIL = ProbeStatus.PASS, ProbeStatus.FAIL


def probes(**named: Any) -> MappingProxyType[str, Any]:
    return MappingProxyType(named)


class ConvergedIsRefused(unittest.TestCase):
    def refused(self, before: RolloutRecord, because: str, *, remote: bool = True, **changes: Any) -> None:
        for local in (True, False) if remote else (True,):
            with self.subTest(local=local):
                with self.assertRaises(InvariantViolation) as caught:
                    step(before, event("Converged", local=local, **changes), NOW, ROLLBACK)
                self.assertIn(because, str(caught.exception))

    def taken(self, before: RolloutRecord, *, remote: bool = True, **changes: Any) -> None:
        for local in (True, False) if remote else (True,):
            with self.subTest(local=local):
                after, _ = step(before, event("Converged", local=local, **changes), NOW, ROLLBACK)
                self.assertIs(after.state, State.CONVERGED)
                self.assertEqual(after.current_closure, after.target_closure)

    def test_on_another_closure_than_the_target(self) -> None:
        self.refused(record(State.SOAKING), "not on its target", current_closure=THIRD)

    def test_one_microsecond_before_the_soak_is_over(self) -> None:
        self.refused(record(State.SOAKING), "before its soak was over", converged_at=at(999.999999))
        self.taken(record(State.SOAKING), converged_at=at(1000))

    def test_while_a_gate_has_no_result(self) -> None:
        self.refused(record(State.SOAKING, probes=probes()), "probe web has not passed")

    def test_while_the_latest_result_of_a_gate_is_a_failure(self) -> None:
        failing = probed(FAIL, last_pass_at=at(7))
        self.refused(record(State.SOAKING, probes=probes(web=failing)), "probe web has not passed")

    def test_while_one_of_two_gates_fails(self) -> None:
        topology = (declared("web"), declared("db"))
        before = record(State.SOAKING, topology=topology, probes=probes(web=probed(), db=probed(FAIL)))
        self.refused(before, "probe db has not passed")

    def test_before_the_topology_was_declared_on_the_host_itself(self) -> None:
        undeclared = record(State.SOAKING, topology=None)
        self.refused(undeclared, "before its probes were declared", remote=False)

    def test_a_mirror_cant_require_a_topology_that_an_older_agent_never_sent(self) -> None:
        undeclared = record(State.SOAKING, topology=None)
        after, _ = step(undeclared, event("Converged", local=False), NOW, ROLLBACK)
        self.assertIs(after.state, State.CONVERGED)

    def test_but_a_mirror_without_a_topology_still_sees_an_enforce_probe_fail(self) -> None:
        before = record(State.SOAKING, topology=None, probes=probes(web=probed(FAIL)))
        with self.assertRaises(InvariantViolation):
            step(before, event("Converged", local=False), NOW, ROLLBACK)

    def test_not_for_probes_that_only_observe_or_are_disabled(self) -> None:
        topology = (declared("a", Mode.OBSERVE), declared("b", Mode.DISABLED))
        self.taken(record(State.SOAKING, topology=topology, probes=probes(a=probed(FAIL, mode=Mode.OBSERVE))))
        without = record(State.SOAKING, topology=None, probes=probes(a=probed(FAIL, mode=Mode.OBSERVE)))
        step(without, event("Converged", local=False), NOW, ROLLBACK)

    def test_not_when_no_probe_is_declared_at_all(self) -> None:
        self.taken(record(State.SOAKING, topology=(), probes=probes()))

    def test_a_refusal_changes_nothing(self) -> None:
        before = record(State.SOAKING)
        with self.assertRaises(InvariantViolation):
            step(before, event("Converged", current_closure=THIRD), NOW, ROLLBACK)
        self.assertEqual(before, record(State.SOAKING))


class ActivationCompleted(unittest.TestCase):
    def test_no_result_of_an_earlier_closure_can_satisfy_a_gate(self) -> None:
        for state in (State.ACTIVATING, State.DEFERRED):
            for local in (True, False):
                with self.subTest(state=state, local=local):
                    before = record(
                        state,
                        probes=probes(web=probed()),
                        topology=(declared("web"),),
                        probe_observed_first_at=at(1),
                        probe_failure_first_at=at(2),
                    )
                    after, _ = step(before, event("ActivationCompleted", local=local), NOW, ROLLBACK)
                    self.assertEqual(dict(after.probes), {})
                    self.assertIsNone(after.topology)
                    self.assertIsNone(after.probe_observed_first_at)
                    self.assertIsNone(after.probe_failure_first_at)

    def test_the_signed_soak_counts_from_when_the_closure_runs(self) -> None:
        for due, floor, completed, expected in (
            (at(1000), 5, at(100), at(1000)),  # the dispatch asks for longer
            (at(1000), 5, at(900), at(1200)),  # a slow activation does not eat the signed soak
            (at(1000), 0, at(2000), at(2000)),
            (None, 5, at(100), at(400)),
        ):
            with self.subTest(due=due, floor=floor, completed=completed):
                before = record(State.ACTIVATING, soak_due_at=due, soak_floor=floor)
                after, _ = step(before, event("ActivationCompleted", completed_at=completed), NOW, ROLLBACK)
                self.assertEqual(after.soak_due_at, expected)

    def test_a_soak_that_ends_after_the_last_year_is_refused_and_kills_nobody(self) -> None:
        before = record(State.ACTIVATING, soak_floor=2**53 - 1)
        with self.assertRaises(InvariantViolation):
            step(before, event("ActivationCompleted"), NOW, ROLLBACK)


class Probes(unittest.TestCase):
    def result(self, before: RolloutRecord, status: ProbeStatus, second: float, seq: int, **changes: Any) -> Any:
        happened = event("ProbeResult", seq, status=status, observed_at=at(second), **changes)
        after, _ = step(before, happened, NOW, ROLLBACK)
        return after

    def test_a_probe_that_flaps_never_counts_as_failing_continuously(self) -> None:
        now = record(State.SOAKING)
        story = ((FAIL, 20, 1, 20), (FAIL, 30, 2, 20), (PASS, 40, 0, None), (FAIL, 50, 1, 50), (FAIL, 60, 2, 50))
        for seq, (status, second, in_row, since) in enumerate(story, 100):
            now = self.result(now, status, second, seq)
            web = now.probes["web"]
            self.assertEqual(web.failures_in_row, in_row)
            self.assertEqual(web.failing_since, None if since is None else at(since))
            self.assertEqual(web.last_observed_at, at(second))
        self.assertEqual(now.probes["web"].last_pass_at, at(40))

    def test_a_failure_keeps_its_reason_and_a_pass_takes_it_back(self) -> None:
        failed = self.result(record(State.SOAKING), FAIL, 20, 100, failure_reason="status 500")
        self.assertEqual(failed.probes["web"].failure_reason, "status 500")
        self.assertIsNone(self.result(failed, PASS, 30, 101).probes["web"].failure_reason)

    def test_a_result_of_a_probe_that_is_not_declared_leaves_none(self) -> None:
        before = record(State.SOAKING)
        after = self.result(before, PASS, 20, 100, probe_name="ghost")
        self.assertEqual(after, replace(before, last_event_seq=100))

    def test_before_a_topology_a_result_is_kept(self) -> None:
        after = self.result(record(State.SOAKING, topology=None, probes=probes()), PASS, 20, 100)
        self.assertEqual(set(after.probes), {"web"})

    def test_a_new_topology_replaces_the_last_and_drops_results_that_it_does_not_name(self) -> None:
        before = record(State.SOAKING, probes=probes(web=probed(), disk=probed(mode=Mode.OBSERVE)))
        happened = event("ProbeTopologyDeclared", probes=(declared("disk", Mode.OBSERVE), declared("db")))
        after, _ = step(before, happened, NOW, ROLLBACK)
        self.assertEqual(set(after.probes), {"disk"})
        self.assertEqual(after.gates, ("db",))

    def test_the_first_observation_and_the_first_failure_keep_their_first_value(self) -> None:
        now = record(State.SOAKING)
        for seq, second in ((100, 20), (102, 30)):
            now, _ = step(now, event("ProbeObservedFirst", seq, observed_at=at(second)), NOW, ROLLBACK)
            now, _ = step(now, event("ProbeFailureFirst", seq + 1, first_failed_at=at(second + 1)), NOW, ROLLBACK)
        self.assertEqual((now.probe_observed_first_at, now.probe_failure_first_at), (at(20), at(21)))

    def test_gates_are_the_declared_enforce_probes_sorted(self) -> None:
        topology = (declared("web"), declared("disk", Mode.OBSERVE), declared("a"), declared("x", Mode.DISABLED))
        self.assertEqual(record(State.SOAKING, topology=topology).gates, ("a", "web"))


class ThePolicyIsTheSignedOne(unittest.TestCase):
    def test_a_failure_by_another_policy_is_refused_on_the_host_itself(self) -> None:
        for signed, applied in ((HALT, ROLLBACK), (ROLLBACK, HALT)):
            with self.subTest(signed=signed), self.assertRaises(InvariantViolation):
                step(record(State.SOAKING), event("Failed", policy_applied=applied), NOW, signed)

    def test_a_mirror_records_what_the_host_says_it_applied(self) -> None:
        after, _ = step(record(State.SOAKING), event("Failed", local=False, policy_applied=HALT), NOW, ROLLBACK)
        self.assertEqual((after.policy_applied, after.rollback_owed), (HALT, False))


class Seq(unittest.TestCase):
    def test_a_seq_that_is_not_above_the_last_is_refused_in_every_state(self) -> None:
        for state in State:
            for seq in (49, 50, 0, -1):
                for local in (True, False):
                    with self.subTest(state=state, seq=seq, local=local):
                        before = record(state)
                        with self.assertRaises(SeqRegression):
                            step(before, event("ProbeResult", seq, local=local), NOW, ROLLBACK)
                        self.assertEqual(before, record(state))

    def test_it_is_judged_before_anything_else(self) -> None:
        with self.assertRaises(SeqRegression):
            step(record(State.CONVERGED), event("DispatchAck", 50), NOW, ROLLBACK)

    def test_a_gap_is_taken(self) -> None:
        after, _ = step(record(State.PENDING), event("DispatchAck", 51 + 7000), NOW, ROLLBACK)
        self.assertEqual(after.last_event_seq, 7051)

    def test_a_refused_event_uses_no_seq(self) -> None:
        before = record(State.SOAKING)
        with self.assertRaises(TransitionError):
            step(before, event("Converged", 51, current_closure=THIRD), NOW, ROLLBACK)
        after, _ = step(before, event("Converged", 51), NOW, ROLLBACK)
        self.assertEqual(after.last_event_seq, 51)


class TheRecord(unittest.TestCase):
    def test_prior_equal_to_the_target_or_absent_is_no_known_prior(self) -> None:
        for prior, known in ((PRIOR, PRIOR), (TARGET, None), (None, None)):
            self.assertEqual(record(State.ACTIVATING, current_closure_at_dispatch=prior).prior_closure, known)

    def test_nothing_in_it_can_be_changed_in_place(self) -> None:
        now = record(State.SOAKING)
        with self.assertRaises(FrozenInstanceError):
            now.state = State.CONVERGED  # type: ignore[misc]
        with self.assertRaises(TypeError):
            now.probes["web"] = probed()  # type: ignore[index]
        with self.assertRaises(TypeError):
            step(now, event("ProbeResult"), NOW, ROLLBACK)[0].probes["web"] = probed()  # type: ignore[index]
        self.assertFalse(any(isinstance(getattr(now, f.name), (list, dict, set)) for f in fields(now)))

    def test_effects_are_frozen(self) -> None:
        for state, kind in (
            (State.PENDING, "DispatchAck"),
            (State.SOAKING, "Failed"),
            (State.FAILED, "RollbackComplete"),
        ):
            for local in (True, False):
                for effect in step(record(state), event(kind, local=local), NOW, ROLLBACK)[1]:
                    with self.subTest(effect=effect), self.assertRaises(FrozenInstanceError):
                        effect.rollout_id = "x@0"  # type: ignore[misc]


if __name__ == "__main__":
    unittest.main()
