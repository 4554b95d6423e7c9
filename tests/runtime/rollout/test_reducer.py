"""The reducer: durable first, then acted on; one active rollout; repeats, late events and hints change nothing."""

from __future__ import annotations

import errno
import threading
import unittest
from dataclasses import replace
from datetime import timedelta
from typing import Any

from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.journal.entries import decode, entry_of
from nixfleet_agent.proto.heartbeat import Snapshot
from nixfleet_agent.runtime.rollout.evaluate import AGENT_START
from nixfleet_agent.runtime.rollout.event_writer import STASH
from nixfleet_agent.runtime.rollout.input_queue import CAPACITY
from nixfleet_agent.runtime.rollout.inputs import (
    Ack,
    Activate,
    AgentReady,
    Answer,
    BootstrapHost,
    HealthChecksReload,
    HostEvent,
    ManifestSetUpdated,
    ReplayRequested,
    RollbackAttemptFailed,
    SuccessorTried,
)
from nixfleet_agent.runtime.rollout.orders import HandOver, Release, ResetProbes, StopProbes
from nixfleet_agent.runtime.rollout.recovery import Guards
from nixfleet_agent.state_machine import ProbeStatus, State
from tests.runtime.harness import HALT, NEWER, PRIOR, TARGET, THIRD, TestHost, bad_disk, until
from tests.state_machine.machine import T0, event

R, S, T = "stable@aa", "stable@bb", "stable@cc"
PASS, FAIL = ProbeStatus.PASS, ProbeStatus.FAIL


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.host = TestHost(self)
        self.host.start()

    def probe(self, status: ProbeStatus, rollout_id: str = R, **changes: Any) -> Answer:
        return self.host.tell(rollout_id, "ProbeResult", status=status, **changes)

    def failed_by_probe(self) -> None:
        """R soaks and fails: its rollback is owed."""
        self.host.soaking(R)
        self.host.order()
        self.probe(FAIL)
        self.host.clock.advance(60)
        self.probe(FAIL)
        self.host.clock.advance(60)
        self.host.tick()
        self.assertIs(self.host.record().state, State.FAILED)


class AWholeRollout(Case):
    def test_converges_with_every_event_on_disk_in_order(self) -> None:
        host = self.host
        self.assertEqual(host.dispatch(R, TARGET), (Answer.ACCEPTED, ""))
        self.assertEqual(host.log(), [(0, "Dispatch"), (1, "DispatchAck")])
        self.assertEqual(
            host.order(), Forward(R, TARGET, PRIOR, "rollback-and-halt", resume=False, already_started=False)
        )
        self.assertIs(host.switching(R), Answer.ACCEPTED)
        host.current = TARGET
        host.tell(R, "ActivationCompleted", observed_current_closure=TARGET)
        self.assertEqual(host.probe_order(), ResetProbes(R))
        host.declare(R, "web")
        self.probe(PASS)
        host.clock.advance(299.9)
        host.tick()
        self.assertIs(host.record().state, State.SOAKING)
        host.clock.advance(0.1)
        host.tick()
        self.assertIs(host.record().state, State.CONVERGED)
        self.assertEqual([kind for _, kind in host.log()][-2:], ["ProbeResult", "Converged"])
        self.assertEqual([seq for seq, _ in host.log()], list(range(7)))
        self.assertEqual(host.order(), Release(R))
        self.assertEqual(host.probe_order(), StopProbes())
        self.assertEqual(
            [(t.before, t.after) for t in host.transitions],
            [
                (State.PENDING, State.ACTIVATING),
                (State.ACTIVATING, State.SOAKING),
                (State.SOAKING, State.CONVERGED),
            ],
        )
        self.assertFalse(host.view.active_open)

    def test_fails_and_goes_back(self) -> None:
        self.failed_by_probe()
        host = self.host
        self.assertEqual(host.order(), Rollback(R, PRIOR, TARGET, True, TARGET))
        self.assertEqual(host.probe_order(), StopProbes())
        host.current = PRIOR
        host.tell(R, "RollbackComplete", reverted_to_closure=PRIOR)
        self.assertIs(host.record().state, State.REVERTED)
        self.assertEqual([kind for _, kind in host.log()][-2:], ["Failed", "RollbackComplete"])
        self.assertEqual(host.order(), Release(R))

    def test_who_reads_warnings_only_learns_of_a_release_that_failed(self) -> None:
        with self.assertLogs("nixfleet_agent.reducer", "INFO") as heard:
            self.failed_by_probe()
            self.host.current = PRIOR
            self.host.tell(R, "RollbackComplete", reverted_to_closure=PRIOR)
        said = {r.getMessage().partition(": ")[2]: r.levelname for r in heard.records if " -> " in r.getMessage()}
        self.assertEqual(said["Activating -> Soaking"], "INFO")
        self.assertEqual(said["Soaking -> Failed: web failed for 120 s"], "WARNING")
        self.assertEqual(said["Failed -> Reverted"], "WARNING")

    def test_the_line_of_a_failed_activation_says_why(self) -> None:
        self.host.dispatch(R, TARGET)
        self.host.tell(R, "ActivationStarted")
        with self.assertLogs("nixfleet_agent.reducer", "WARNING") as heard:
            self.host.tell(R, "ActivationFailed", exit_code=4, stderr_tail="building\nerror: no space left\n\n")
        said = heard.records[0].getMessage()
        self.assertEqual(said, f"{R}: Activating -> Failed: error: no space left, exit code 4")

    def test_fails_with_the_policy_halt_and_stays(self) -> None:
        self.host.soaking(R, policy=HALT)
        self.host.order()
        for _ in range(2):
            self.probe(FAIL)
            self.host.clock.advance(60)
        self.host.tick()
        self.assertTrue(self.host.record().terminal)
        self.assertEqual(self.host.order(), Release(R))

    def test_each_event_is_kicked_off_to_the_control_plane(self) -> None:
        self.host.dispatch(R, TARGET)
        before = self.host.kicks
        self.host.switching(R)
        self.assertGreater(self.host.kicks, before)

    def test_an_illegal_event_is_refused_and_takes_no_seq(self) -> None:
        self.host.dispatch(R, TARGET)
        self.assertIs(self.probe(PASS), Answer.NOT_NOW)
        self.assertIs(self.host.tell(R, "RollbackComplete"), Answer.NOT_NOW)
        self.assertEqual(self.host.log(), [(0, "Dispatch"), (1, "DispatchAck")])
        self.assertIs(self.host.switching(R), Answer.ACCEPTED)
        self.assertEqual(self.host.log()[-1], (2, "ActivationStarted"))

    def test_what_the_pipeline_measured_stays_on_the_host(self) -> None:
        self.host.dispatch(R, TARGET)
        self.host.tell(R, "ActivationDeferred", component="kernel", boot_id="boot-1")
        [name] = [n for n in self.host.names("outbound-queue") if "Deferred" in n]
        entry = decode((self.host.state_dir / "outbound-queue" / name).read_bytes())
        self.assertEqual(entry.local, {"bootId": "boot-1"})
        self.assertNotIn("bootId", entry.event)


class ADispatchThatWaited(Case):
    """Something before it could not be written for a while, and what was verified for it is not true for ever."""

    def test_is_not_accepted_once_its_time_is_over(self) -> None:
        late = self.host.clock.monotonic() - 0.001
        answer, reason = self.host.asked(lambda ack: Activate(self.host.acceptance(R, TARGET), ack, late))
        self.assertIs(answer, Answer.NOT_NOW)
        self.assertIn("verified again", reason)
        self.assertEqual(self.host.log(), [])
        in_time = self.host.clock.monotonic()
        answer, _ = self.host.asked(lambda ack: Activate(self.host.acceptance(R, TARGET), ack, in_time))
        self.assertIs(answer, Answer.ACCEPTED)


class WriteFirstThenAct(Case):
    def retry(self, disk: Any) -> None:
        tried = disk.refusals
        self.host.let_it_retry(lambda: disk.refusals > tried, "another try")

    def test_nothing_is_fired_while_the_disk_refuses_the_event(self) -> None:
        for number in (errno.ENOSPC, errno.EIO, errno.EROFS):
            with self.subTest(errno=errno.errorcode[number]), bad_disk() as disk:
                host = TestHost(self)
                host.start()
                disk.break_down(number, lambda step, path: "DispatchAck" in path.name and step == "create")
                answer = host.asked(lambda ack, h=host: Activate(h.acceptance(R, TARGET), ack))
                self.assertEqual(answer, (Answer.ACCEPTED, ""))
                disk.until_refused(1)
                self.assertIsNone(host.activation.peek())
                self.assertEqual(host.transitions, [])
                self.assertEqual(host.log(), [(0, "Dispatch")])
                until(lambda h=host: "DispatchAck" in str(h.board.get("journal_error")), "the trouble is in sight")
                disk.mend()
                host.let_it_retry(lambda h=host: h.activation.peek() is not None, "the switch is fired")
                self.assertIsInstance(host.order(), Forward)
                self.assertEqual(host.log(), [(0, "Dispatch"), (1, "DispatchAck")])
                host.settle()
                self.assertIsNone(host.board.get("journal_error"))
                host.stop()

    def test_the_retry_has_the_same_seq_and_the_same_bytes(self) -> None:
        # The last step fails: the file is in place, but nobody may act on it, for it may not survive a power cut.
        self.host.dispatch(R, TARGET)
        self.host.order()
        queue = self.host.state_dir / "outbound-queue"
        with bad_disk() as disk:
            disk.break_down(errno.EIO, lambda step, path: step == "fsync-dir")
            self.host.put(HostEvent(R, self.host.event("ActivationFailed", switch_fired=False)))
            disk.until_refused(1)
            [name] = [n for n in self.host.names("outbound-queue") if "ActivationFailed" in n]
            first = (queue / name).read_bytes()
            self.assertIsNone(self.host.activation.peek())
            self.assertFalse(self.host.journal.is_queued(R, 2))
            self.retry(disk)
            disk.mend()
            self.host.let_it_retry(lambda: self.host.activation.peek() is not None, "the rollback is fired")
        self.host.settle()
        self.assertEqual((queue / name).read_bytes(), first)
        self.assertEqual([n for n in self.host.names("outbound-queue") if n.startswith(f"{2:020}")], [name])
        self.assertIsInstance(self.host.order(), Rollback)
        self.assertTrue(self.host.journal.is_queued(R, 2))

    def test_a_dispatch_that_cant_be_stored_is_not_accepted(self) -> None:
        with bad_disk() as disk:
            disk.break_down(errno.ENOSPC)
            answer, reason = self.host.dispatch(R, TARGET)
        self.assertIs(answer, Answer.NOT_NOW)
        self.assertIn("can't", reason)
        self.assertIsNone(self.host.activation.peek())
        self.assertIsNone(self.host.view.active_id)
        self.assertEqual(self.host.dispatch(R, TARGET)[0], Answer.ACCEPTED)

    def test_shutdown_ends_the_wait_and_nothing_acts_on_what_was_not_written(self) -> None:
        self.host.dispatch(R, TARGET)
        self.host.order()
        with bad_disk() as disk:
            disk.break_down(errno.EROFS)
            ack = Ack(threading.Event())
            self.host.put(HostEvent(R, self.host.event("ActivationFailed"), ack))
            disk.until_refused(1)
            self.host.stop()
        self.assertIs(ack.value, Answer.NOT_NOW)
        self.assertIsNone(self.host.activation.peek())
        self.assertEqual(self.host.log(), [(0, "Dispatch"), (1, "DispatchAck")])

    def test_inputs_keep_their_order_through_a_refusing_disk(self) -> None:
        self.host.soaking(R)
        with bad_disk() as disk:
            disk.break_down(errno.EIO)
            self.host.put(HostEvent(R, self.host.event("ProbeObservedFirst")))
            disk.until_refused(1)
            for name in ("one", "two", "three"):
                self.host.put(HostEvent(R, self.host.event("ProbeResult", probe_name=name)))
            self.retry(disk)
            disk.mend()
            self.host.let_it_retry(lambda: self.host.board.get("journal_error") is None, "the disk is well again")
        self.host.settle()
        entries = self.host.journal.read(R)[-4:]
        self.assertEqual(
            [entry.event["probeName"] for entry in entries],
            ["web", "one", "two", "three"],
        )

    def test_more_inputs_than_can_be_stashed_slow_the_workers_down_and_are_not_lost(self) -> None:
        self.host.soaking(R)
        count = STASH + CAPACITY + 10
        with bad_disk() as disk:
            disk.break_down(errno.EIO)
            self.host.put(HostEvent(R, self.host.event("ProbeObservedFirst")))
            disk.until_refused(1)
            events = [self.host.event("ProbeObservedFirst", probe_name=f"p{number}") for number in range(count)]
            feeder = threading.Thread(target=lambda: [self.host.put(HostEvent(R, event)) for event in events])
            feeder.start()
            self.host.clock.until_waiting(1)  # the stash is full: inputs are no longer taken, only time is waited for
            until(lambda: self.host.inputs.depth() == CAPACITY, "the queue is full")
            disk.mend()
            self.host.let_it_retry(lambda: not feeder.is_alive(), "every worker gets rid of its input")
            feeder.join()
        self.host.settle()
        self.assertIsNone(self.host.board.get("journal_error"))
        named = [entry.event.get("probeName") for entry in self.host.journal.read(R)]
        self.assertEqual(named[-count:], [f"p{number}" for number in range(count)])


class TheReserve(Case):
    def full(self, disk: Any) -> None:
        """No room for any event as long as the reserve is there."""
        reserve = self.host.state_dir / "reserve"
        disk.break_down(errno.ENOSPC, lambda step, path: step == "create" and reserve.exists())

    def test_a_failure_gets_through_on_a_full_disk(self) -> None:
        self.host.dispatch(R, TARGET)
        self.host.order()
        with bad_disk() as disk:
            self.full(disk)
            self.host.tell(R, "ActivationFailed", switch_fired=True)
        self.assertIsInstance(self.host.order(), Rollback)
        self.assertEqual(self.host.log()[-1], (2, "ActivationFailed"))
        self.assertIsNone(self.host.board.get("journal_error"))

    def test_the_end_of_a_switch_that_filled_the_disk_gets_through(self) -> None:
        """The probes that find the release out begin with it."""
        self.host.dispatch(R, TARGET)
        self.host.switching(R)
        with bad_disk() as disk:
            self.full(disk)
            self.host.tell(R, "ActivationCompleted", observed_current_closure=TARGET)
        self.assertIs(self.host.record().state, State.SOAKING)

    def test_a_failure_behind_a_pass_that_is_stuck_gets_it_through_too(self) -> None:
        self.host.soaking(R)
        self.host.order()
        with bad_disk() as disk:
            self.full(disk)
            self.host.put(HostEvent(R, self.host.event("ProbeResult", status=PASS)))
            disk.until_refused(1)
            self.assertTrue((self.host.state_dir / "reserve").exists(), "a pass may not use it")
            self.probe(FAIL)
        self.assertEqual([kind for _, kind in self.host.log()][-2:], ["ProbeResult", "ProbeResult"])
        self.assertIs(self.host.record().probes["web"].status, FAIL)

    def test_it_is_made_again_once_there_is_room(self) -> None:
        self.host.soaking(R)
        reserve = self.host.state_dir / "reserve"
        with bad_disk() as disk:
            self.full(disk)
            self.probe(FAIL)
            self.assertTrue(reserve.exists(), "the write after it went through makes it anew")
            self.assertEqual(reserve.stat().st_size, 1 << 20)
            self.assertEqual(disk.refusals, 1)

    def test_another_error_than_a_full_disk_leaves_it_alone(self) -> None:
        self.host.dispatch(R, TARGET)
        with bad_disk() as disk:
            disk.break_down(errno.EIO)
            self.host.put(HostEvent(R, self.host.event("ActivationFailed")))
            disk.until_refused(1)
            self.assertTrue((self.host.state_dir / "reserve").exists())
            self.host.stop()


class TheNewestRolloutWins(Case):
    def test_a_newer_one_supersedes_and_what_runs_is_watched_until_its_switch(self) -> None:
        self.host.soaking(R)
        self.host.order()
        self.host.probe_order()
        self.assertEqual(self.host.dispatch(S, NEWER)[0], Answer.ACCEPTED)
        self.assertEqual(self.host.order(), Forward(S, NEWER, PRIOR, "rollback-and-halt"))
        self.assertIsNone(self.host.probe_order(), "its probes go on")
        self.assertIs(self.host.tell(R, "ProbeResult"), Answer.ACCEPTED)
        self.assertIs(self.host.switching(S), Answer.ACCEPTED)
        self.assertEqual(self.host.probe_order(), StopProbes())
        before = self.host.log(R)
        for kind in ("ProbeResult", "Failed", "Converged", "ActivationCompleted"):
            self.assertIs(self.host.tell(R, kind), Answer.NOT_NOW)
        self.host.clock.advance(3600)
        self.host.tick()
        self.assertEqual(self.host.log(R), before)
        self.assertIs(self.host.record(R).state, State.SOAKING)
        self.assertIsNone(self.host.activation.peek())
        self.assertEqual(set(self.host.view.reported), {R, S})

    def test_it_waits_while_nobody_can_tell_what_runs_and_goes_on_once_somebody_can(self) -> None:
        self.host.current = None
        for _ in range(2):
            self.assertEqual(self.host.dispatch(R, TARGET), (Answer.NOT_NOW, "it can't be read which closure runs"))
        self.assertEqual(self.host.log(R), [], "nothing is said that has no currentClosureAtDispatch")
        self.assertIsNone(self.host.activation.peek())
        self.host.current = PRIOR
        self.assertEqual(self.host.dispatch(R, TARGET), (Answer.ACCEPTED, ""))
        self.assertEqual(self.host.record(R).current_closure_at_dispatch, PRIOR)
        self.assertEqual(self.host.order(), Forward(R, TARGET, PRIOR, "rollback-and-halt"))

    def test_a_rollout_runs_once(self) -> None:
        self.host.soaking(R)
        self.host.order()
        for target in (TARGET, NEWER):
            answer, reason = self.host.dispatch(R, target)
            self.assertIs(answer, Answer.REPEAT)
            self.assertIn("new commit", reason)
        self.assertIsNone(self.host.activation.peek())
        self.host.dispatch(S, NEWER)
        self.assertIs(self.host.dispatch(R, TARGET)[0], Answer.REPEAT)
        self.host.restart(NEWER)
        self.assertIs(self.host.dispatch(R, TARGET)[0], Answer.REPEAT)

    def test_it_interrupts_an_activation_that_has_not_ended(self) -> None:
        self.host.dispatch(R, TARGET)
        self.host.dispatch(S, NEWER)
        self.assertEqual(self.host.order(), Forward(S, NEWER, PRIOR, "rollback-and-halt"))

    def test_its_acceptance_number_is_the_highest_and_survives_a_restart(self) -> None:
        for rollout, target in ((R, TARGET), (S, NEWER), (T, THIRD)):
            self.host.dispatch(rollout, target)
        numbers = [self.host.journal.read(rollout)[0].event["acceptance"] for rollout in (R, S, T)]
        self.assertEqual(numbers, [1, 2, 3])
        self.host.restart(PRIOR)
        self.assertEqual(self.host.view.active_id, T)
        self.host.dispatch("stable@dd", TARGET)
        self.assertEqual(self.host.journal.read("stable@dd")[0].event["acceptance"], 4)


class WhileARollbackIsOwed(Case):
    def setUp(self) -> None:
        super().setUp()
        self.failed_by_probe()

    def test_a_dispatch_is_kept_until_the_rollback_came_through(self) -> None:
        answer, reason = self.host.dispatch(S, NEWER)
        self.assertIs(answer, Answer.NOT_NOW)
        self.assertIn(R, reason)
        self.assertIsInstance(self.host.order(), Rollback)
        self.assertEqual(self.host.log(S), [])
        self.host.current = PRIOR
        self.host.tell(R, "RollbackComplete", reverted_to_closure=PRIOR)
        self.host.order()
        self.assertIs(self.host.dispatch(S, NEWER)[0], Answer.ACCEPTED)
        self.assertEqual(self.host.order(), Forward(S, NEWER, PRIOR, "rollback-and-halt"))

    def test_after_one_failed_attempt_the_newer_one_inherits_the_way_back(self) -> None:
        self.host.put(RollbackAttemptFailed(R, "fire"))
        self.assertIs(self.host.dispatch(S, NEWER)[0], Answer.ACCEPTED)
        # The rollback's own order still waits, and gives way only because what it owes is inherited.
        self.assertEqual(self.host.order(), Forward(S, NEWER, PRIOR, "rollback-and-halt"))
        self.assertEqual(self.host.journal.read(S)[0].event["priorClosure"], PRIOR)
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        order = self.host.order()
        self.assertEqual(order, Rollback(S, PRIOR, NEWER, False, TARGET, inherited=True))

    def test_an_inherited_way_back_is_still_known_after_a_restart(self) -> None:
        self.host.put(RollbackAttemptFailed(R, "fire"))
        self.host.dispatch(S, NEWER)
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.host.restart(TARGET)
        self.assertEqual(self.host.order(), Rollback(S, PRIOR, NEWER, False, TARGET, inherited=True))

    def test_the_heir_of_an_heir_that_never_switched_inherits_too(self) -> None:
        self.host.put(RollbackAttemptFailed(R, "fire"))
        self.host.dispatch(S, NEWER)
        self.assertIs(self.host.dispatch(T, THIRD)[0], Answer.ACCEPTED)
        self.assertEqual(self.host.order(), Forward(T, THIRD, PRIOR, "rollback-and-halt"))

    def test_an_attempt_of_another_rollout_changes_nothing(self) -> None:
        self.host.put(RollbackAttemptFailed(S, "fire"))
        self.assertIs(self.host.dispatch(T, NEWER)[0], Answer.NOT_NOW)

    def test_no_forward_order_replaces_the_rollback(self) -> None:
        self.host.dispatch(S, NEWER)
        self.assertIsInstance(self.host.activation.peek(), Rollback)


class HandBack(Case):
    def test_a_rollout_that_never_fired_hands_back_to_the_one_that_soaked(self) -> None:
        self.host.soaking(R, soak_floor=30)
        self.probe(PASS)
        self.host.order()
        self.host.probe_order()
        self.host.dispatch(S, NEWER, policy=HALT)
        self.host.order()
        self.host.clock.advance(600)
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.assertEqual(self.host.view.active_id, R)
        self.host.tick()
        self.assertIsNone(self.host.probe_order(), "its probes never stopped")
        self.host.clock.advance(1100)
        self.host.tick()
        self.assertIs(self.host.record(R).state, State.SOAKING, "the soak is not over")
        self.host.clock.advance(100)
        self.host.tick()
        self.assertIs(self.host.record(R).state, State.CONVERGED)

    def test_with_a_rollback_owed_it_hands_back_once_that_is_done(self) -> None:
        self.host.soaking(R)
        self.host.dispatch(S, NEWER)
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.assertEqual(self.host.view.active_id, S)
        self.assertEqual(self.host.order(), Rollback(S, PRIOR, NEWER, False, TARGET))
        self.host.tell(S, "RollbackComplete", reverted_to_closure=TARGET)
        self.assertEqual(self.host.view.active_id, R)

    def test_a_switch_that_began_is_followed_to_its_end_before_its_successor(self) -> None:
        """Otherwise its release would run here with nobody to watch it."""
        self.host.dispatch(R, TARGET)
        self.host.switching(R)
        self.host.order()
        self.host.dispatch(S, NEWER, policy=HALT)
        self.assertIsNone(self.host.order(), "the worker still has the first one's")
        self.assertIs(self.host.switching(S), Answer.NOT_NOW)
        self.host.restart(PRIOR)
        order = self.host.order()
        assert isinstance(order, Forward)
        self.assertEqual((order.rollout_id, order.resume, order.already_started), (R, True, True))
        self.host.current = TARGET
        self.host.tell(R, "ActivationCompleted", observed_current_closure=TARGET)
        self.assertEqual(self.host.probe_order(), ResetProbes(R))
        self.assertEqual(self.host.order(), Forward(S, NEWER, PRIOR, "halt"))
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.assertEqual(self.host.view.active_id, R)
        self.assertIs(self.host.record(R).state, State.SOAKING)

    def test_the_same_host_comes_out_of_a_restart(self) -> None:
        self.host.soaking(R)
        self.host.dispatch(S, NEWER, policy=HALT)
        self.host.tell(S, "ActivationFailed", switch_fired=False, observed_at_failure=TARGET)
        self.host.restart(TARGET)
        self.assertEqual(self.host.view.active_id, R)
        self.assertEqual(self.host.probe_order(), ResetProbes(R))

    def test_not_after_a_switch_and_not_to_what_does_not_run(self) -> None:
        for fired, current in ((True, TARGET), (None, TARGET), (False, THIRD)):
            with self.subTest(fired=fired, current=current):
                host = TestHost(self)
                host.start()
                host.soaking(R)
                host.dispatch(S, NEWER, policy=HALT)
                host.current = current
                host.tell(S, "ActivationFailed", switch_fired=fired, observed_at_failure=current)
                self.assertEqual(host.view.active_id, S)
                host.stop()


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


class Ticks(Case):
    def test_drift_is_reported_once_and_never_acted_on(self) -> None:
        self.host.soaking(R)
        self.probe(PASS)
        self.host.order()
        with self.assertLogs("nixfleet_agent.reducer", "WARNING") as logs:
            for _ in range(3):
                self.host.clock.advance(600)
                self.host.tick(THIRD)
        self.assertEqual(sum("drift" in line for line in logs.output), 1)
        self.assertEqual(self.host.board.get("drift"), THIRD)
        self.assertIs(self.host.record().state, State.SOAKING)
        self.assertIsNone(self.host.activation.peek())
        self.host.tick(TARGET)
        self.assertIsNone(self.host.board.get("drift"))
        self.assertIs(self.host.record().state, State.SOAKING, "what probes saw of another closure does not count")
        self.host.declare(R, "web")
        self.probe(PASS)
        self.host.tick()
        self.assertIs(self.host.record().state, State.CONVERGED)

    def test_a_closure_that_cant_be_read_is_no_drift_and_decides_nothing(self) -> None:
        self.host.soaking(R)
        self.probe(PASS)
        self.host.clock.advance(600)
        self.host.tick(None)
        self.assertIsNone(self.host.board.get("drift"))
        self.assertIs(self.host.record().state, State.SOAKING)

    def test_a_clock_set_back_still_lets_a_soak_end_and_stamps_it_legally(self) -> None:
        self.host.soaking(R)
        self.probe(PASS)
        self.host.clock.step(-7200)
        self.host.clock.advance(300)
        self.host.tick()
        record = self.host.record()
        self.assertIs(record.state, State.CONVERGED)
        self.assertEqual(record.converged_at, record.soak_due_at)

    def test_a_clock_set_forward_ends_no_soak_and_fires_no_rollback(self) -> None:
        self.host.soaking(R)
        self.host.order()
        self.probe(FAIL)
        self.host.clock.step(86_400)
        self.probe(FAIL)
        self.host.clock.advance(119)
        self.host.tick()
        self.assertIs(self.host.record().state, State.SOAKING)
        self.host.clock.advance(1)
        self.host.tick()
        self.assertIs(self.host.record().state, State.FAILED)

    def test_a_deferred_rollout_completes_when_its_target_runs(self) -> None:
        self.host.dispatch(R, TARGET)
        self.host.tell(R, "ActivationDeferred", boot_id="boot-1")
        self.host.tick()
        self.assertIs(self.host.record().state, State.DEFERRED)
        self.host.tick(TARGET)
        self.assertIs(self.host.record().state, State.SOAKING)
        self.assertEqual(self.host.probe_order(), ResetProbes(R))

    def test_probe_declarations_are_read_again_where_something_soaks(self) -> None:
        self.host.put(HealthChecksReload())
        self.host.dispatch(R, TARGET)
        self.host.put(HealthChecksReload())
        self.host.settle()
        self.assertIsNone(self.host.probe_order())
        self.host.tell(R, "ActivationCompleted", observed_current_closure=TARGET)
        self.host.probe_order()
        self.host.put(HealthChecksReload())
        self.host.settle()
        self.assertEqual(self.host.probe_order(), ResetProbes(R))

    def test_the_manifest_set_is_shown_and_decides_nothing(self) -> None:
        updated = ManifestSetUpdated("f" * 64, self.host.clock.now(), (R,))
        self.host.put(updated)
        self.host.settle()
        self.assertEqual(self.host.board.get("manifests"), updated)
        self.assertIsNone(self.host.view.active_id)


class OldLogs(Case):
    def test_are_pruned_when_they_are_old_delivered_and_not_among_the_newest(self) -> None:
        for number in range(23):
            rollout = f"stable@{number:x}"
            self.host.dispatch(rollout, TARGET, policy=HALT)
            if number == 0:
                continue  # the oldest stays undelivered
            while (path := self.host.journal.first(rollout)) is not None:
                self.host.journal.delivered(rollout, path)
        self.host.tell("stable@16", "ActivationFailed", switch_fired=True)
        self.assertEqual(len(self.host.names("outbound-sent")), 23, "none is seven days old")
        self.host.clock.advance(7 * 86_400 + 1)
        self.host.dispatch("stable@ff", NEWER, policy=HALT)
        self.host.tell("stable@ff", "ActivationFailed", switch_fired=True)
        left = set(self.host.names("outbound-sent"))
        gone = {f"stable@{number:x}" for number in range(1, 4)}
        self.assertEqual({name.removesuffix(".tombstone") for name in left if name.endswith(".tombstone")}, gone)
        self.assertEqual(len(left), 24)
        for rollout in gone:
            self.assertFalse((self.host.state_dir / "outbound-sent" / rollout).exists())
            self.assertIs(self.host.dispatch(rollout, TARGET)[0], Answer.REPEAT)

    def test_that_cant_be_pruned_stay_and_stop_nobody(self) -> None:
        for number in range(22):
            rollout = f"stable@{number:x}"
            self.host.dispatch(rollout, TARGET, policy=HALT)
            while (path := self.host.journal.first(rollout)) is not None:
                self.host.journal.delivered(rollout, path)
        self.host.clock.advance(7 * 86_400 + 1)
        with bad_disk() as disk:
            disk.break_down(errno.EIO, lambda step, path: path.name.endswith(".tombstone"))
            self.host.tell("stable@15", "ActivationFailed", switch_fired=True)
        self.assertIs(self.host.record("stable@15").state, State.FAILED)
        self.assertEqual(len(self.host.names("outbound-sent")), 22)


class ItsOwnAgent(Case):
    """The release changes the agent, whose own is to go on with the soak."""

    WORDS = f"the guard has taken the host back to {PRIOR}: it was not ready in time"

    def soaking(self) -> None:
        self.host.soaking(R)
        self.host.declare(R, "web", AGENT_START)
        self.probe(PASS)
        self.host.order()

    def tried(self, rollout_id: str = R) -> None:
        self.host.put(SuccessorTried(rollout_id))
        self.host.settle()

    def test_it_is_handed_over_to_once_and_this_agent_does_not_end_the_soak(self) -> None:
        self.soaking()
        self.tried()
        order = self.host.order()
        assert isinstance(order, HandOver)
        self.assertEqual((order.rollout_id, order.intent.target, order.intent.prior), (R, TARGET, PRIOR))
        self.assertTrue(order.intent.takes_back)
        self.tried()
        self.assertIsNone(self.host.order())
        self.probe(PASS, probe_name=AGENT_START)
        self.host.clock.advance(3600)
        self.host.tick()
        self.assertIs(self.host.record().state, State.SOAKING)

    def test_the_next_process_ends_it(self) -> None:
        self.soaking()
        self.tried()
        self.probe(PASS, probe_name=AGENT_START)
        self.host.clock.advance(3600)
        self.host.restart(TARGET)
        self.host.tick()
        self.assertIs(self.host.record().state, State.SOAKING, "its own probes have not been declared yet")
        self.host.declare(R, "web")
        self.probe(PASS)
        self.host.clock.advance(3600)
        self.host.tick()
        self.assertIs(self.host.record().state, State.CONVERGED)

    def test_but_not_before_it_is_ready(self) -> None:
        self.host.soaking(R)
        self.host.guards = Guards(awaited=R)
        self.host.restart(TARGET)
        self.host.tick()
        self.host.declare(R, "web")
        self.probe(PASS)
        self.host.clock.advance(3600)
        self.host.tick()
        self.assertIs(self.host.record().state, State.SOAKING)
        self.assertIsNone(self.host.order())
        self.host.put(AgentReady(R))
        self.host.tick()
        self.assertIs(self.host.record().state, State.CONVERGED)

    def test_one_that_can_not_start_fails_the_release_with_its_words(self) -> None:
        self.soaking()
        for _ in range(3):
            self.probe(FAIL, probe_name=AGENT_START, failure_reason="no module named ssl")
            self.probe(PASS)
            self.host.clock.advance(60)
        self.host.tick()
        record = self.host.record()
        self.assertEqual(
            (record.state, record.probes[AGENT_START].failure_reason), (State.FAILED, "no module named ssl")
        )
        self.assertIsInstance(self.host.order(), Rollback)

    def test_without_a_result_of_the_gate_nothing_converges(self) -> None:
        self.soaking()
        self.host.clock.advance(3600)
        self.host.tick()
        self.assertIs(self.host.record().state, State.SOAKING)

    def test_one_that_could_not_be_tried_is_no_obstacle(self) -> None:
        self.soaking()
        self.probe(PASS, probe_name=AGENT_START)
        self.host.clock.advance(3600)
        self.probe(PASS)
        self.host.tick()
        self.assertIs(self.host.record().state, State.CONVERGED)

    def test_a_rollout_that_does_not_soak_is_not_handed_over(self) -> None:
        self.tried()
        self.host.dispatch(R, TARGET)
        self.host.order()
        self.tried()
        self.assertIsNone(self.host.order())
        self.assertFalse(self.host.reducer.host.rollouts[R].hands_over)

    def test_the_order_of_a_newer_release_is_not_replaced(self) -> None:
        self.soaking()
        self.host.dispatch(S, THIRD)
        self.tried()
        order = self.host.order()
        assert isinstance(order, Forward)
        self.assertEqual(order.rollout_id, S)

    def test_it_is_handed_over_to_once_the_newer_one_waits_for_a_reboot(self) -> None:
        self.soaking()
        self.host.dispatch(S, THIRD)
        self.tried()
        self.host.order()
        self.host.tell(S, "ActivationStarted")
        self.host.tell(S, "ActivationDeferred")
        order = self.host.order()
        assert isinstance(order, HandOver), order
        self.assertEqual(order.rollout_id, R)

    def test_also_when_the_newer_one_came_while_this_agent_was_about_to_leave(self) -> None:
        self.soaking()
        self.tried()
        self.assertIsInstance(self.host.order(), HandOver)
        self.host.dispatch(S, THIRD)
        self.assertIsInstance(self.host.order(), Forward)
        self.host.tell(S, "ActivationStarted")
        self.host.tell(S, "ActivationDeferred")
        self.assertIsInstance(self.host.order(), HandOver)

    def test_one_that_was_not_tried_is_not_left_for_because_a_newer_one_waits_for_a_reboot(self) -> None:
        self.soaking()
        self.host.dispatch(S, THIRD)
        self.host.order()
        self.host.tell(S, "ActivationStarted")
        self.host.tell(S, "ActivationDeferred")
        self.assertIsNone(self.host.order())

    def test_but_it_is_handed_over_to_when_the_newer_one_came_to_nothing(self) -> None:
        self.soaking()
        self.host.dispatch(S, THIRD)
        self.tried()
        self.host.order()
        self.host.tell(S, "ActivationStarted")
        self.host.tell(S, "ActivationFailed", switch_fired=False)
        self.host.tell(S, "RollbackComplete")
        self.host.tick()
        order = self.host.order()
        assert isinstance(order, HandOver), order
        self.assertEqual(order.rollout_id, R)

    def test_what_the_guard_took_back_meanwhile_is_told_as_that_and_reverted(self) -> None:
        self.soaking()
        self.tried()
        self.probe(PASS, probe_name=AGENT_START)
        self.host.guards = Guards({R: self.WORDS})
        self.host.restart(PRIOR)
        self.host.tick()
        record = self.host.record()
        self.assertEqual((record.state, record.rollback_owed), (State.FAILED, True))
        told = [entry.event for entry in self.host.journal.read(R)][-2:]
        self.assertEqual((told[0]["kind"], told[0]["failureReason"]), ("ProbeResult", self.WORDS))
        self.assertEqual((told[1]["kind"], told[1]["failingProbes"]), ("Failed", [AGENT_START]))
        self.assertIsInstance(self.host.order(), Rollback)
        self.assertIn((R, TARGET), self.host.quarantined)

    def test_also_when_the_agent_crashed_before_its_gate_was_declared_and_the_host_is_not_back(self) -> None:
        self.host.soaking(R)
        self.host.guards = Guards({R: self.WORDS})
        self.host.restart(TARGET)
        self.host.tick()
        self.host.tick()
        self.assertIs(self.host.record().state, State.FAILED)


if __name__ == "__main__":
    unittest.main()
