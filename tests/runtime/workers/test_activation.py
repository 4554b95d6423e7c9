"""The activation worker over a scripted pipeline: outcomes, interruptions, rollbacks that fail or wait, a crash."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from nixfleet_agent.activation.context import SUPERSEDED, Waiting
from nixfleet_agent.activation.model import (
    Completed,
    Deferred,
    Failed,
    Forward,
)
from nixfleet_agent.runtime.rollout.inputs import Answer, HostEvent, SwitchStarting
from nixfleet_agent.runtime.rollout.orders import Release
from nixfleet_agent.state_machine.events import (
    LocalActivationCompleted,
    LocalActivationDeferred,
    LocalActivationFailed,
    Phase,
)
from tests.runtime.harness import NEWER, PRIOR, TARGET, until
from tests.runtime.workers.activation_case import FAILED, FORWARD, Case, R, S, ScriptedPipeline, realises, starts


class Forwards(Case):
    def test_the_start_is_told_first_and_the_success_with_its_phases(self) -> None:
        self.start(FORWARD, starts(Completed(TARGET, 4, ("web.service",))))
        self.assertEqual(str(self.accept_start().switch_method), "setsid")
        completed = self.event(LocalActivationCompleted)
        self.assertEqual((completed.observed_current_closure, completed.exit_code), (TARGET, 4))
        self.assertEqual(completed.phases, (Phase(name="fire", seconds=0.123),))
        self.assertIn("web.service", self.said[0])
        self.idle()
        self.assertEqual(self.pipeline.calls, [("forward", Forward(R, TARGET, PRIOR, "rollback-and-halt"))])
        self.assertEqual(self.pipeline.told_when_kept, [1], "what it changed is kept once the outcome is told")
        self.assertEqual(self.quarantined, [])

    def test_what_it_waits_for_is_shown_and_counted_until_it_is_over(self) -> None:
        shown: list[Any] = []

        def waits(pipeline: ScriptedPipeline, on_started: Callable[[str], None]) -> object:
            pipeline.retrying.on_wait(Waiting(TARGET, "server", "a cache's server fails", 3, 7.0))
            shown.append(self.board.get("waiting"))
            return Failed(-1, "realise: gone", "realise", False, PRIOR)

        self.start(FORWARD, waits)
        self.event(LocalActivationFailed)
        self.idle()
        self.assertEqual((shown[0]["rollout_id"], shown[0]["reason"]), (R, "a cache's server fails"))
        self.assertEqual((shown[0]["tries"], shown[0]["next_try_at"]), (3, self.clock.now() + timedelta(seconds=7)))
        self.assertIsNone(self.board.get("waiting"))
        self.assertEqual(self.board.counters()[("realise_retries", (("reason", "server"),))], 1)

    def test_a_try_is_limited_by_the_age_that_a_release_of_its_channel_may_have(self) -> None:
        signed_at = self.clock.now()
        self.start(replace(FORWARD, signed_at=signed_at), Completed(TARGET, 0, ()))
        self.event(LocalActivationCompleted)
        self.assertEqual(self.pipeline.calls[0][1].fresh_until, signed_at + timedelta(hours=2))

    def test_what_runs_is_half_a_switch_from_the_start_until_the_outcome(self) -> None:
        seen = []

        def switches(pipeline: ScriptedPipeline, on_started: Callable[[str], None]) -> object:
            seen.append(self.board.get("switching"))
            on_started("setsid")
            seen.append(self.board.get("switching"))
            return Completed(TARGET, 0, ())

        self.start(FORWARD, switches)
        self.accept_start()
        self.event(LocalActivationCompleted)
        self.idle()
        self.assertEqual([*seen, self.board.get("switching")], [False, True, False])

    def test_a_failure_after_the_switch_was_fired_is_told_and_in_quarantine(self) -> None:
        self.start(FORWARD, starts(FAILED))
        self.accept_start()
        failed = self.event(LocalActivationFailed)
        self.assertEqual((failed.exit_code, failed.stderr_tail, failed.switch_fired), (11, "switch: no", True))
        self.assertEqual(failed.observed_at_failure, TARGET)
        self.assertEqual(self.quarantined, [(R, TARGET, "switch")])

    def test_a_failure_before_it_is_told_and_not_in_quarantine(self) -> None:
        self.start(FORWARD, Failed(-1, "realise: gone", "realise", False, PRIOR))
        self.assertIs(self.event(LocalActivationFailed).switch_fired, False)
        self.assertEqual(self.quarantined, [])

    def test_a_deferred_release_names_the_component_and_the_boot(self) -> None:
        self.start(FORWARD, Deferred("kernel", "boot-1"))
        deferred = self.event(LocalActivationDeferred)
        self.assertEqual((deferred.component, deferred.boot_id), ("kernel", "boot-1"))

    def test_a_start_that_is_not_accepted_fires_nothing_and_tells_nothing(self) -> None:
        self.start(FORWARD, starts(Completed(TARGET, 0, ())))
        self.accept_start(Answer.NOT_NOW)
        self.idle()
        self.nothing_told()
        self.assertFalse(self.board.get("switching"))

    def test_a_switch_is_not_fired_while_another_rollout_answers_for_what_runs(self) -> None:
        self.start(FORWARD, starts(Completed(TARGET, 0, ())))
        self.accept_start(switch=Answer.NOT_NOW)
        self.idle()
        self.nothing_told()
        self.assertFalse(self.board.get("switching"))

    def test_a_shutdown_while_the_start_is_not_durable_fires_nothing(self) -> None:
        self.start(FORWARD, starts(Completed(TARGET, 0, ())))
        self.assertIsInstance(self.told(), HostEvent)
        self.stop()
        self.nothing_told()

    def test_a_start_that_takes_hours_to_be_durable_shows_life(self) -> None:
        self.start(FORWARD, starts(Completed(TARGET, 0, ())))
        item = self.told()
        for _ in range(5):
            self.clock.until_waiting()
            self.clock.advance(60)
            until(lambda: self.worker.silent_for() == 0, "a sign of life")
        assert isinstance(item, HostEvent) and item.ack is not None
        item.ack.reply(Answer.ACCEPTED)
        begins = self.told()
        assert isinstance(begins, SwitchStarting)
        begins.ack.reply(Answer.ACCEPTED)
        self.event(LocalActivationCompleted)

    def test_after_a_restart_it_is_taken_up_and_not_begun(self) -> None:
        order = Forward(R, TARGET, PRIOR, "halt", resume=True, already_started=True)
        self.start(order, Completed(TARGET, 0, ()))
        self.event(LocalActivationCompleted)
        self.assertEqual(self.pipeline.calls, [("resume", order, True)])

    def test_a_newer_order_interrupts_it_at_once_and_is_next(self) -> None:
        self.start(FORWARD, realises, starts(Completed(NEWER, 0, ())))
        self.clock.until_waiting()
        self.mailbox.put(Forward(S, NEWER, PRIOR, "halt"))
        self.accept_start()
        self.assertEqual(self.event(LocalActivationCompleted).observed_current_closure, NEWER)
        self.assertEqual([call[1].rollout_id for call in self.pipeline.calls], [R, S])

    def test_a_finished_rollouts_release_interrupts_nothing_and_does_not_make_it_spin(self) -> None:
        self.start(FORWARD, realises)
        self.clock.until_waiting()
        self.mailbox.put(Release(S))
        self.clock.advance(2)
        self.clock.until_waiting()
        self.assertEqual(self.pipeline.under_way, 1)
        self.assertIsNone(self.pipeline.interrupted())

    def test_shutdown_interrupts_it_and_tells_nothing(self) -> None:
        self.start(FORWARD, realises)
        self.clock.until_waiting()
        self.stop()
        self.nothing_told()

    def test_a_late_outcome_of_a_superseded_rollout_comes_before_the_next_begins(self) -> None:
        def awaits(pipeline: ScriptedPipeline, on_started: Callable[[str], None]) -> object:
            on_started("setsid")
            self.mailbox.put(Forward(S, NEWER, PRIOR, "halt"))
            self.assertEqual(pipeline.interrupted(), SUPERSEDED)
            return FAILED

        self.start(FORWARD, awaits, Completed(NEWER, 0, ()))
        self.accept_start()
        self.event(LocalActivationFailed)
        self.event(LocalActivationCompleted)
        self.assertEqual(list(self.calls()), ["forward", "forward"])
        self.assertEqual(self.quarantined, [(R, TARGET, "switch")])


if __name__ == "__main__":
    unittest.main()
