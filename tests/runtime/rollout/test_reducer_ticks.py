"""What comes with time, with an old log, with a full disk, and with an agent that the release brings."""

from __future__ import annotations

import errno
import unittest
from typing import Any

from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.runtime.rollout.evaluate import AGENT_START
from nixfleet_agent.runtime.rollout.inputs import (
    AgentReady,
    Answer,
    HealthChecksReload,
    HostEvent,
    ManifestSetUpdated,
    SuccessorTried,
)
from nixfleet_agent.runtime.rollout.orders import HandOver, ResetProbes
from nixfleet_agent.runtime.rollout.recovery import Guards
from nixfleet_agent.state_machine import State
from tests.runtime.harness import HALT, NEWER, PRIOR, TARGET, THIRD, bad_disk
from tests.runtime.rollout.reducer_case import FAIL, PASS, Case, R, S


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
