"""What the control plane asks for, and what of it is done."""

from __future__ import annotations

import errno
import unittest
from dataclasses import replace
from datetime import timedelta
from typing import Any

from nixfleet_agent.activation.model import Forward
from nixfleet_agent.journal.entries import entry_of
from nixfleet_agent.proto.heartbeat import Snapshot
from nixfleet_agent.runtime.rollout.inputs import (
    Answer,
    BootstrapHost,
    ReplayRequested,
)
from nixfleet_agent.runtime.rollout.orders import Release, ResetProbes
from nixfleet_agent.state_machine import State
from tests.runtime.harness import HALT, NEWER, TARGET, THIRD, TestHost, bad_disk
from tests.runtime.rollout.reducer_case import FAIL, PASS, Case, R, S
from tests.state_machine.machine import T0, event


class Replay(Case):
    def deliver_all(self, rollout_id: str = R) -> None:
        while (path := self.host.journal.first(rollout_id)) is not None:
            self.host.journal.delivered(rollout_id, path)

    def setUp(self) -> None:
        super().setUp()
        self.host.soaking(R)
        self.deliver_all()

    def test_moves_what_was_asked_for_back_into_the_queue_lowest_first(self) -> None:
        self.host.put(ReplayRequested((R,), 3))
        self.host.settle()
        self.assertEqual(
            self.host.log(folder="outbound-queue"), [(3, "ActivationCompleted"), (4, "ProbeTopologyDeclared")]
        )
        first = self.host.journal.first(R)
        assert first is not None
        self.assertIn("ActivationCompleted", first.name)

    def test_never_posts_the_dispatch_itself(self) -> None:
        self.host.put(ReplayRequested((R,), 0))
        self.host.settle()
        self.assertEqual([seq for seq, _ in self.host.log(folder="outbound-queue")], [1, 2, 3, 4])
        self.assertEqual(self.host.log(folder=f"outbound-sent/{R}"), [(0, "Dispatch")])

    def test_at_most_once_a_minute_and_rollout(self) -> None:
        self.host.dispatch(S, NEWER)
        self.deliver_all(S)
        self.host.put(ReplayRequested((R,), 1))
        self.host.settle()
        self.deliver_all()
        self.host.clock.advance(59.9)
        self.host.put(ReplayRequested((R, S), 1))
        self.host.settle()
        self.assertEqual(self.host.log(folder="outbound-queue"), [])
        self.assertEqual(self.host.log(S, folder="outbound-queue"), [(1, "DispatchAck")])
        self.host.clock.advance(0.1)
        self.host.put(ReplayRequested((R,), 1))
        self.host.settle()
        self.assertEqual(len(self.host.log(folder="outbound-queue")), 4)

    def test_of_a_rollout_that_nobody_knows_does_nothing(self) -> None:
        self.host.put(ReplayRequested(("stable@99", R), 4))
        self.host.settle()
        self.assertEqual(self.host.log(folder="outbound-queue"), [(4, "ProbeTopologyDeclared")])

    def test_on_a_broken_disk_keeps_the_reducer_alive(self) -> None:
        with bad_disk() as disk:
            disk.break_down(errno.EIO)
            self.host.put(ReplayRequested((R,), 1))
            self.host.settle()
        self.assertEqual(len(self.host.log(folder=f"outbound-sent/{R}")), 5)


class Hints(Case):
    def snapshot(self, rollout_id: str = R, **changes: Any) -> Snapshot:
        values: dict[str, Any] = {
            "rollout_id": rollout_id,
            "hostname": "web-01",
            "channel": "stable",
            "state": State.SOAKING,
            "target_closure": TARGET,
            "last_event_seq": 14,
            "dispatched_at": self.host.clock.now(),
            "soak_due_at": self.host.clock.now() + timedelta(seconds=600),
        }
        return Snapshot(**{**values, **changes})

    def hint(self, snapshot: Snapshot, *, vouched: bool = False, **changes: Any) -> None:
        acceptance = self.host.acceptance(snapshot.rollout_id, TARGET, **changes) if vouched else None
        self.host.put(BootstrapHost(snapshot, acceptance))
        self.host.settle()

    def test_of_a_known_rollout_may_raise_the_seq_and_nothing_else(self) -> None:
        self.host.soaking(R)
        before = self.host.record()
        self.hint(self.snapshot(state=State.CONVERGED, target_closure=NEWER, last_event_seq=40))
        after = self.host.record()
        self.assertEqual(after.last_event_seq, 40)
        self.assertEqual(replace(after, last_event_seq=before.last_event_seq), before)
        self.probe(PASS)
        self.assertEqual(self.host.log()[-1], (41, "ProbeResult"))

    def test_that_ends_before_our_log_asks_for_what_comes_after_it(self) -> None:
        self.host.soaking(R)
        while (path := self.host.journal.first(R)) is not None:
            self.host.journal.delivered(R, path)
        before = self.host.record()
        self.hint(self.snapshot(last_event_seq=2))
        self.assertEqual([seq for seq, _ in self.host.log(folder="outbound-queue")], [3, 4])
        self.assertEqual(self.host.record(), before)

    def test_that_ends_before_the_log_of_a_finished_rollout_asks_too(self) -> None:
        self.host.soaking(R)
        self.host.dispatch(S, NEWER)
        while (path := self.host.journal.first(R)) is not None:
            self.host.journal.delivered(R, path)
        self.hint(self.snapshot(state=State.PENDING, last_event_seq=0))
        self.assertEqual([seq for seq, _ in self.host.log(folder="outbound-queue")], [1, 2, 3, 4])

    def test_of_what_is_still_on_its_way_does_not_hold_up_the_next_request(self) -> None:
        self.host.soaking(R)
        self.hint(self.snapshot(last_event_seq=3))
        while (path := self.host.journal.first(R)) is not None:
            self.host.journal.delivered(R, path)
        self.hint(self.snapshot(last_event_seq=3))
        self.assertEqual([seq for seq, _ in self.host.log(folder="outbound-queue")], [4])

    def test_that_ends_where_our_log_ends_asks_for_nothing(self) -> None:
        self.host.soaking(R)
        while (path := self.host.journal.first(R)) is not None:
            self.host.journal.delivered(R, path)
        self.hint(self.snapshot(last_event_seq=4))
        self.assertEqual(self.host.log(folder="outbound-queue"), [])

    def test_by_at_most_a_thousand(self) -> None:
        self.host.soaking(R)
        last = self.host.record().last_event_seq
        for _ in range(5):  # above the last one on disk, and not above what the hint before said
            self.hint(self.snapshot(last_event_seq=2**53 - 1))
            self.assertEqual(self.host.record().last_event_seq, last + 1000)
        self.probe(PASS)
        self.assertEqual(self.host.log()[-1], (last + 1001, "ProbeResult"))

    def test_never_lowers_it_and_leaves_a_finished_rollout_alone(self) -> None:
        self.host.soaking(R, policy=HALT)
        last = self.host.record().last_event_seq
        self.hint(self.snapshot(last_event_seq=1))
        self.assertEqual(self.host.record().last_event_seq, last)
        for _ in range(2):
            self.probe(FAIL)
            self.host.clock.advance(60)
        self.host.tick()
        ended = self.host.record().last_event_seq
        self.hint(self.snapshot(last_event_seq=500))
        self.assertEqual(self.host.record().last_event_seq, ended)

    def test_an_unknown_rollout_that_nobody_vouches_for_is_ignored(self) -> None:
        self.host.current = TARGET
        self.hint(self.snapshot())
        self.assertIsNone(self.host.view.active_id)
        self.assertEqual(self.host.names("outbound-sent"), [])

    def test_what_another_agent_left_undelivered_goes_first_and_keeps_its_numbers(self) -> None:
        """The queue of the Rust agent has events, and no accepted Dispatch: the rollout is not known for that."""
        self.host.current = TARGET
        for seq, kind in ((15, "ProbeObservedFirst"), (16, "ProbeResult")):
            self.host.journal.append(entry_of(event(kind, seq), "web-01", R, T0))
        self.hint(self.snapshot(), vouched=True)
        self.assertIsNone(self.host.view.active_id, "they may end the rollout")
        while (path := self.host.journal.first(R)) is not None:
            self.host.journal.delivered(R, path)
        self.hint(self.snapshot(), vouched=True)
        self.assertEqual(self.host.journal.read(R)[0].event["adoptedSeq"], 16)
        self.host.tick()
        self.host.declare(R, "web")
        self.assertEqual(self.host.log()[-1][0], 17)
        self.host.restart(TARGET)
        self.assertEqual((self.host.view.active_id, self.host.record().last_event_seq), (R, 17))

    def test_a_vouched_rollout_whose_target_runs_is_adopted_and_converges(self) -> None:
        self.host.current = TARGET
        self.hint(self.snapshot(), vouched=True, soak_due_at=self.host.clock.now() + timedelta(seconds=600))
        self.assertEqual(self.host.view.active_id, R)
        self.assertIsNone(self.host.order(), "an adopted rollout fires no switch")
        seq0 = self.host.journal.read(R)[0].event
        self.assertEqual((seq0["acceptance"], seq0["adoptedState"], seq0["adoptedSeq"]), (0, "Soaking", 14))
        self.assertNotIn("priorClosure", seq0)
        self.host.tick()
        self.assertEqual(self.host.probe_order(), ResetProbes(R))
        self.host.declare(R, "web")
        self.probe(PASS)
        self.assertEqual(self.host.log()[-1], (16, "ProbeResult"))
        self.host.clock.advance(599)
        self.host.tick()
        self.assertIs(self.host.record().state, State.SOAKING)
        self.host.clock.advance(1)
        self.host.tick()
        self.assertIs(self.host.record().state, State.CONVERGED)

    def test_an_adopted_one_that_fails_rolls_nothing_back(self) -> None:
        self.host.current = TARGET
        self.hint(self.snapshot(), vouched=True)
        self.host.tick()
        self.host.declare(R, "web")
        for _ in range(2):
            self.probe(FAIL)
            self.host.clock.advance(60)
        self.host.tick()
        self.assertIs(self.host.record().state, State.FAILED)
        self.assertFalse(self.host.record().rollback_owed)
        self.assertEqual(self.host.order(), Release(R))

    def test_one_that_waited_or_was_under_way_there_goes_on_here_without_a_switch(self) -> None:
        for number, (state, kinds) in enumerate(
            (
                (State.PENDING, ["DispatchAck", "ActivationCompleted"]),
                (State.ACTIVATING, ["ActivationCompleted"]),
                (State.DEFERRED, ["ActivationCompleted"]),
            )
        ):
            with self.subTest(state=state):
                host = TestHost(self)
                self.host = host
                host.start(TARGET)
                self.hint(self.snapshot(state=state, last_event_seq=number), vouched=True)
                self.assertIsNone(host.activation.peek())
                host.tick()
                self.assertEqual([kind for _, kind in host.log()][1:], kinds)
                self.assertIs(host.record().state, State.SOAKING)
                host.restart(TARGET)
                self.assertEqual(host.view.active_id, R)
                self.assertIs(host.record().state, State.SOAKING)
                host.stop()

    def test_one_that_was_under_way_there_fires_nothing_after_a_restart_either(self) -> None:
        self.host.current = TARGET
        self.hint(self.snapshot(state=State.ACTIVATING), vouched=True)
        for current in (THIRD, None):
            self.host.restart(current)
            self.assertIs(self.host.record().state, State.ACTIVATING)
            self.assertIsNone(self.host.activation.peek())
        self.host.restart(TARGET)
        self.assertIs(self.host.record().state, State.SOAKING)
        self.assertIsNone(self.host.activation.peek())

    def test_it_is_not_adopted_where_something_else_runs_or_it_is_over_or_one_was_accepted(self) -> None:
        self.hint(self.snapshot(), vouched=True)
        self.assertIsNone(self.host.view.active_id, "its target does not run")
        self.host.current = TARGET
        for state in (State.CONVERGED, State.FAILED, State.REVERTED):
            self.hint(self.snapshot(state=state), vouched=True)
            self.assertIsNone(self.host.view.active_id)
        self.host.dispatch(S, TARGET)
        self.hint(self.snapshot(), vouched=True)
        self.assertEqual(self.host.view.active_id, S)
        self.assertEqual(self.host.log(R), [])

    def test_an_accepted_one_outranks_an_adopted_one_after_a_restart_too(self) -> None:
        self.host.current = TARGET
        self.hint(self.snapshot(), vouched=True)
        self.assertIs(self.host.dispatch(S, NEWER)[0], Answer.ACCEPTED)
        self.assertEqual(self.host.order(), Forward(S, NEWER, TARGET, "rollback-and-halt"))
        self.host.restart(TARGET)
        self.assertEqual(self.host.view.active_id, S)

    def test_one_that_cant_be_stored_is_not_adopted(self) -> None:
        self.host.current = TARGET
        with bad_disk() as disk:
            disk.break_down(errno.ENOSPC)
            self.hint(self.snapshot(), vouched=True)
        self.assertIsNone(self.host.view.active_id)
        self.hint(self.snapshot(), vouched=True)
        self.assertEqual(self.host.view.active_id, R)

    def test_a_pruned_rollout_never_looks_new_again(self) -> None:
        self.host.soaking(R)
        self.host.stop()
        self.host.journal.prune(R, self.host.clock.now())
        for path in (self.host.state_dir / "outbound-queue").iterdir():
            path.unlink()
        self.host.start(TARGET)
        self.hint(self.snapshot(), vouched=True)
        self.assertIsNone(self.host.view.active_id)
        self.assertIs(self.host.dispatch(R, TARGET)[0], Answer.REPEAT)


class ProbeRepeats(Case):
    def results(self) -> int:
        return sum(kind == "ProbeResult" for _, kind in self.host.log())

    def deliver_all(self) -> None:
        while (path := self.host.journal.first(R)) is not None:
            self.host.journal.delivered(R, path)

    def setUp(self) -> None:
        super().setUp()
        self.host.soaking(R, soak_floor=600)
        self.probe(PASS)

    def test_an_unchanged_one_goes_no_further(self) -> None:
        self.deliver_all()
        seq = self.host.record().last_event_seq
        for _ in range(5):
            self.host.clock.advance(10)
            self.assertIs(self.probe(PASS), Answer.NOT_NOW)
        self.assertEqual((self.results(), self.host.record().last_event_seq), (1, seq))
        self.host.clock.advance(10)
        self.probe(PASS)
        self.assertEqual(self.results(), 2)

    def test_while_one_is_queued_no_time_makes_it_worth_an_event(self) -> None:
        for _ in range(50):
            self.host.clock.advance(600)
            self.probe(PASS)
        self.assertEqual(self.results(), 1)

    def test_every_change_is_one(self) -> None:
        self.probe(FAIL, failure_reason="a")
        self.probe(FAIL, failure_reason="b")
        self.probe(FAIL, failure_reason="b")
        self.probe(PASS)
        self.assertEqual(self.results(), 4)

    def test_a_repeat_still_counts_as_a_second_failure_in_a_row(self) -> None:
        self.probe(FAIL)
        self.host.clock.advance(60)
        self.probe(FAIL)
        self.host.clock.advance(60)
        self.host.tick()
        self.assertIs(self.host.record().state, State.FAILED)

    def test_a_new_topology_asks_for_each_result_anew(self) -> None:
        # Declared away and back again, the record has no result of the probe, whatever was journaled before.
        self.host.declare(R)
        self.host.declare(R, "web")
        self.assertIs(self.probe(PASS), Answer.ACCEPTED)
        self.assertIs(self.host.record().probes["web"].status, PASS)
        self.host.clock.advance(36_000)
        self.host.tick()
        self.assertIs(self.host.record().state, State.CONVERGED)


if __name__ == "__main__":
    unittest.main()
