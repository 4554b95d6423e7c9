"""Rollbacks, and what a worker that died has left."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

from nixfleet_agent.activation.model import (
    Completed,
    Forward,
    Rollback,
    RollbackDeferred,
    RollbackDrift,
    RollbackFailed,
    RolledBack,
)
from nixfleet_agent.runtime.rollout.inputs import RollbackAttemptFailed
from nixfleet_agent.runtime.rollout.orders import Release
from nixfleet_agent.runtime.workers.activation import GIVEN_UP_RECHECK
from nixfleet_agent.state_machine.events import (
    LocalActivationCompleted,
    LocalRollbackCompleted,
)
from nixfleet_agent.threads.backoff import Backoff
from tests.runtime.harness import NEWER, PRIOR, TARGET, THIRD, until
from tests.runtime.workers.activation_case import BACK, FORWARD, Case, R, S, ScriptedPipeline, realises
from tests.support.clock import PATIENCE

AGAIN = RollbackFailed(4, "fire: no", "fire")


class Backwards(Case):
    def has_tried_more_than(self, times: int) -> bool:
        return len(self.pipeline.calls) > times

    def fail_once(self) -> None:
        self.assertEqual(self.told(), RollbackAttemptFailed(R, "fire"))
        self.clock.until_waiting()

    def test_only_its_success_is_told(self) -> None:
        self.start(BACK, RolledBack(PRIOR, 4))
        completed = self.event(LocalRollbackCompleted)
        self.assertEqual((completed.reverted_to_closure, completed.exit_code), (PRIOR, 4))
        self.idle()
        self.assertEqual(self.pipeline.calls, [("rollback", Rollback(R, PRIOR, TARGET, True, TARGET))])
        self.assertEqual(self.quarantined, [(R, TARGET, "rolled back")])
        self.assertIsNone(self.board.get("rollback"))

    def test_one_that_fails_is_shown_counted_and_tried_again_with_backoff(self) -> None:
        self.start(BACK, AGAIN, AGAIN, RolledBack(PRIOR, 0))
        for number in (1, 2):
            self.assertEqual(self.told(), RollbackAttemptFailed(R, "fire"))
            self.clock.until_waiting()
            shown: Any = self.board.get("rollback")
            said = {"rollout_id": R, "failures": number, "reason": "fire: no", "next_try_at": shown["next_try_at"]}
            self.assertEqual(shown, said)
            self.assertGreater(shown["next_try_at"], self.clock.now())
            self.assertFalse(self.board.get("switching"), "between two tries what runs is what runs")
            # In steps shorter than the shortest wait: the one that comes too late brings no third try with it.
            tried = partial(self.has_tried_more_than, number)
            until(tried, "another try", lambda: self.clock.advance(0.5))
        self.event(LocalRollbackCompleted)
        self.assertEqual(len(self.said), 2)
        self.assertEqual(self.board.counters()["rollback_failures", ()], 2)

    def test_an_operators_retry_cuts_the_wait_short_once(self) -> None:
        self.start(BACK, AGAIN, AGAIN)
        with mock.patch.object(Backoff, "next", return_value=3600.0):
            self.fail_once()
            self.control.ask_retry(R)
            self.clock.advance(1)
            self.fail_once()
            for _ in range(5):
                self.clock.until_waiting()
                self.clock.advance(1)
        self.clock.until_waiting()
        self.assertEqual(len(self.pipeline.calls), 2)

    def test_a_retry_that_was_asked_for_before_the_try_began_is_granted_by_it(self) -> None:
        self.worker._backoff = Backoff(32.0, 32.0)  # never so short a wait that it is over within the second below
        self.control.ask_retry(R)
        self.start(BACK, AGAIN)
        self.fail_once()
        self.clock.advance(1)
        self.clock.until_waiting()
        self.assertEqual(len(self.pipeline.calls), 1)

    def test_a_disk_without_room_for_a_record_is_given_the_reserve_once(self) -> None:
        full = RollbackFailed(-1, "state-dir: No space left on device", "state-dir")
        self.reserves += ["one", "made again by an event meanwhile"]
        self.start(BACK, full, full, RolledBack(PRIOR, 0))
        self.assertEqual(self.told(), RollbackAttemptFailed(R, "state-dir"))
        self.assertEqual((list(self.calls()), len(self.reserves)), (["rollback"] * 2, 1))
        self.clock.until_waiting()
        self.clock.advance(16)
        self.event(LocalRollbackCompleted)

    def test_given_up_it_does_nothing_until_it_is_asked_for_again(self) -> None:
        self.control.give_up(R)
        self.start(BACK, RolledBack(PRIOR, 0))
        self.assertEqual(self.told(), RollbackAttemptFailed(R, "given up"))
        self.clock.until_waiting()
        for _ in range(3):
            self.clock.advance(GIVEN_UP_RECHECK)
            self.clock.until_waiting()
        self.assertEqual(self.pipeline.calls, [])
        self.assertFalse(self.pipeline.guarded, "the guard would take the host back all the same")
        self.assertEqual(self.board.get("rollback"), {"rollout_id": R, "given_up": True})
        self.control.ask_retry(R)
        self.clock.advance(GIVEN_UP_RECHECK)
        self.event(LocalRollbackCompleted)

    def test_giving_up_ends_the_tries(self) -> None:
        self.start(BACK, AGAIN, AGAIN)
        with mock.patch.object(Backoff, "next", return_value=3600.0):
            self.fail_once()
        self.control.give_up(R)
        self.clock.advance(1)
        self.assertEqual(self.told(), RollbackAttemptFailed(R, "given up"))
        self.clock.until_waiting()
        self.assertEqual(len(self.pipeline.calls), 1)

    def test_a_newer_rollout_ends_the_wait_for_the_next_try(self) -> None:
        self.start(BACK, AGAIN, Completed(NEWER, 0, ()))
        self.fail_once()
        self.mailbox.put(Forward(S, NEWER, PRIOR, "halt"), replace=True)
        self.event(LocalActivationCompleted)
        self.assertEqual(list(self.calls()), ["rollback", "forward"])

    def test_a_newer_rollout_ends_one_that_was_given_up(self) -> None:
        self.control.give_up(R)
        self.start(BACK, Completed(NEWER, 0, ()))
        self.told()
        self.clock.until_waiting()
        self.mailbox.put(Forward(S, NEWER, PRIOR, "halt"), replace=True)
        self.event(LocalActivationCompleted)

    def test_an_operators_own_switch_is_said_once_and_stands_until_the_operator_undoes_it(self) -> None:
        drift = RollbackDrift(THIRD)
        self.start(BACK, drift, drift, drift, RolledBack(PRIOR, 0))
        self.assertEqual(self.told(), RollbackAttemptFailed(R, "an operator switched"))
        self.clock.until_waiting()
        self.assertEqual(self.board.get("rollback"), {"rollout_id": R, "drift": THIRD})
        self.assertFalse(self.board.get("switching"))
        until(lambda: len(self.pipeline.calls) == 3, "another look", lambda: self.clock.advance(1))
        self.clock.until_waiting()
        self.nothing_told()
        self.control.ask_retry(R)
        self.clock.advance(1)
        self.event(LocalRollbackCompleted)
        self.assertEqual(len(self.said), 1)

    def test_one_that_needs_a_reboot_is_said_once_and_looked_at_again(self) -> None:
        deferred = RollbackDeferred("dbus-implementation", "b00t")
        with self.assertLogs("nixfleet_agent.activation", "ERROR") as logs:
            self.start(BACK, deferred, deferred, RolledBack(PRIOR, 0))
            self.assertEqual(self.told(), RollbackAttemptFailed(R, "a reboot is needed"))
            self.clock.until_waiting()
            until(lambda: len(self.pipeline.calls) == 2, "another look", lambda: self.clock.advance(1))
        shown = {"rollout_id": R, "deferred": "dbus-implementation", "closure": PRIOR}
        self.assertEqual(self.board.get("rollback"), shown)
        self.assertEqual(len(logs.output), 1)
        self.assertIn(f"{PRIOR} boots next, and dbus-implementation can't be replaced live", logs.output[0])
        until(lambda: len(self.pipeline.calls) == 3, "another look", lambda: self.clock.advance(1))
        self.event(LocalRollbackCompleted)
        self.assertIsNone(self.board.get("rollback"))

    def test_of_one_that_never_fired_is_no_reason_for_quarantine_whatever_it_inherited(self) -> None:
        self.start(Rollback(S, PRIOR, NEWER, False, TARGET, inherited=True), RolledBack(PRIOR, 0))
        self.event(LocalRollbackCompleted)
        self.assertEqual(self.pipeline.calls, [("rollback", Rollback(S, PRIOR, NEWER, True, TARGET, inherited=True))])
        self.assertEqual(self.quarantined, [])

    def test_the_switch_records_tell_where_the_log_does_not(self) -> None:
        for fired in (True, False):
            with self.subTest(fired=fired):
                self.setUp()
                self.pipeline.fired = {R} if fired else set()
                self.start(Rollback(R, PRIOR, TARGET, None, None), RolledBack(PRIOR, 0))
                self.event(LocalRollbackCompleted)
                self.assertEqual(self.pipeline.calls[0][1].forward_fired, fired)
                self.stop()

    def test_shutdown_ends_every_wait(self) -> None:
        for name, script in (("failed", AGAIN), ("drift", RollbackDrift(THIRD)), ("running", realises)):
            with self.subTest(name):
                self.setUp()
                self.start(BACK, script)
                until(lambda: len(self.pipeline.calls) == 1, "the try")
                self.clock.until_waiting()
                self.stop()


class ADeadWorker(Case):
    def break_down(self, pipeline: ScriptedPipeline, on_started: Callable[[str], None]) -> object:
        on_started("setsid")
        raise RuntimeError("a defect")

    def died_once(self) -> None:
        assert self.thread is not None
        self.thread.join(PATIENCE)
        self.assertEqual([str(error) for error in self.died], ["a defect"])

    def test_takes_its_order_up_again_as_after_a_restart(self) -> None:
        self.start(FORWARD, self.break_down, Completed(TARGET, 0, ()))
        self.accept_start()
        self.died_once()
        self.assertFalse(self.board.get("switching"))
        self.run_worker()
        self.event(LocalActivationCompleted)
        again = replace(FORWARD, resume=True, already_started=True)
        self.assertEqual(self.pipeline.calls[1:], [("resume", again, True)], "its start was told already")

    def test_takes_up_a_rollback(self) -> None:
        self.start(BACK, self.break_down, RolledBack(PRIOR, 0))
        self.died_once()
        self.run_worker()
        self.event(LocalRollbackCompleted)
        self.assertEqual(list(self.calls()), ["rollback", "rollback"])

    def test_goes_on_with_the_newer_order_where_one_waits(self) -> None:
        self.start(BACK, self.break_down, Completed(NEWER, 0, ()))
        self.died_once()
        self.mailbox.put(Forward(S, NEWER, PRIOR, "halt"), replace=True)
        self.run_worker()
        self.event(LocalActivationCompleted)
        self.assertEqual(list(self.calls()), ["rollback", "forward"])

    def test_does_not_lose_a_rollback_to_the_release_of_another(self) -> None:
        self.start(BACK, self.break_down, RolledBack(PRIOR, 0))
        self.died_once()
        self.mailbox.put(Release(S))
        self.run_worker()
        self.event(LocalRollbackCompleted)
        until(lambda: S in self.pipeline.released, "the release")


if __name__ == "__main__":
    unittest.main()
