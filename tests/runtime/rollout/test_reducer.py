"""The reducer: durable first, then acted on; one active rollout; repeats, late events and hints change nothing."""

from __future__ import annotations

import errno
import threading
import unittest
from typing import Any

from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.journal.entries import decode
from nixfleet_agent.runtime.rollout.event_writer import STASH
from nixfleet_agent.runtime.rollout.input_queue import CAPACITY
from nixfleet_agent.runtime.rollout.inputs import (
    Ack,
    Activate,
    Answer,
    HostEvent,
)
from nixfleet_agent.runtime.rollout.orders import Release, ResetProbes, StopProbes
from nixfleet_agent.state_machine import State
from tests.runtime.harness import HALT, PRIOR, TARGET, TestHost, bad_disk, until
from tests.runtime.rollout.reducer_case import FAIL, PASS, Case, R


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


if __name__ == "__main__":
    unittest.main()
