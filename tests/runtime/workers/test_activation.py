"""The activation worker over a scripted pipeline: outcomes, interruptions, rollbacks that fail or wait, a crash."""

from __future__ import annotations

import logging
import threading
import unittest
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

from nixfleet_agent.activation.context import SHUTDOWN, SUPERSEDED, Context, Retrying, Waiting
from nixfleet_agent.activation.errors import PhaseInterrupted
from nixfleet_agent.activation.model import (
    Completed,
    Deferred,
    Failed,
    Forward,
    ForwardOutcome,
    Interrupted,
    Rollback,
    RollbackDeferred,
    RollbackDrift,
    RollbackFailed,
    RollbackOutcome,
    RolledBack,
)
from nixfleet_agent.errors import StorageError
from nixfleet_agent.operator.rollback_control import RollbackControl
from nixfleet_agent.runtime.agent_change import READY_STEP_SECS, AgentChange
from nixfleet_agent.runtime.own_unit import UnitChanged
from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.rollout.inputs import Answer, HostEvent, ReducerInput, RollbackAttemptFailed, SwitchStarting
from nixfleet_agent.runtime.rollout.orders import ActivationOrder, HandOver, Release, StandDown, outranks
from nixfleet_agent.runtime.workers import activation
from nixfleet_agent.runtime.workers.activation import GIVEN_UP_RECHECK, IDLE, ActivationWorker
from nixfleet_agent.state_machine import RolloutRecord, State
from nixfleet_agent.state_machine.events import (
    LocalActivationCompleted,
    LocalActivationDeferred,
    LocalActivationFailed,
    LocalActivationStarted,
    LocalRollbackCompleted,
    Phase,
)
from nixfleet_agent.telemetry.status import RolloutsView, StatusBoard
from nixfleet_agent.threads.backoff import Backoff
from nixfleet_agent.threads.mailbox import Mailbox
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.runtime.harness import NEWER, PRIOR, TARGET, THIRD, temporary, until
from tests.runtime.parts import config, services
from tests.support.clock import PATIENCE, FakeClock

R, S = "stable@aa", "stable@bb"
FORWARD = Forward(R, TARGET, PRIOR, "rollback-and-halt")
BACK = Rollback(R, PRIOR, TARGET, True, TARGET)
FAILED = Failed(11, "switch: no", "switch", True, TARGET)
UNFIRED = Failed(-1, "realise: no", "realise", False, TARGET)
AGAIN = RollbackFailed(4, "fire: no", "fire")

#: What one call does: it is given the pipeline and what the worker passed for ``on_started``.
Script = Callable[["ScriptedPipeline", Callable[[str], None]], Any]


class ScriptedPipeline:
    """The production interface; each call takes the next script, or answers with the value in its place."""

    made: ScriptedPipeline

    def __init__(
        self,
        context: Context,
    ) -> None:
        self.retrying: Retrying = context.retrying
        self.interrupted, self.wait, self.on_phase = context.interrupted, context.wait, context.on_phase
        self.script: list[Script | object] = []
        self.calls: list[tuple[Any, ...]] = []
        self.released: list[str] = []
        self.held: set[str] = set()
        self.fired: set[str] = set()
        self.told_when_kept: list[int] = []
        self.guarded = True
        self.waiting_for: str | None = None
        self.refusals: list[str] = []
        self.stubborn = 0
        self.under_way = 0
        ScriptedPipeline.made = self

    def forward(
        self, intent: Forward, on_started: Callable[[str], None], on_switch: Callable[[], None]
    ) -> ForwardOutcome:
        outcome: ForwardOutcome = self._call(("forward", intent), self._both(on_started, on_switch))
        return outcome

    def resume(
        self, intent: Forward, on_started: Callable[[str], None], already_started: bool, on_switch: Callable[[], None]
    ) -> ForwardOutcome:
        outcome: ForwardOutcome = self._call(("resume", intent, already_started), self._both(on_started, on_switch))
        return outcome

    @staticmethod
    def _both(on_started: Callable[[str], None], on_switch: Callable[[], None]) -> Callable[[str], None]:
        def starts(method: str) -> None:
            on_started(method)
            on_switch()

        return starts

    def rollback(self, intent: Rollback) -> RollbackOutcome:
        outcome: RollbackOutcome = self._call(("rollback", intent), lambda method: None)
        return outcome

    def disarm(self) -> None:
        self.guarded, self.waiting_for = False, None

    def awaits_successor(self) -> str | None:
        return self.waiting_for

    def successor_ready(self, rollout_id: str) -> bool:
        """``stubborn``: so often the guard can't be disarmed."""
        if self.stubborn:
            self.stubborn -= 1
            return False
        self.waiting_for = None
        return True

    def guard_successor(self, intent: Forward, agent: str) -> str | None:
        self.calls.append(("guard", intent.rollout_id, agent))
        if self.refusals:
            return self.refusals.pop(0)
        self.waiting_for = intent.rollout_id
        return None

    def release(self, rollout_id: str) -> None:
        if isinstance(refusal := self.script.pop(0) if self.script else None, Exception):
            raise refusal
        self.released.append(rollout_id)
        self.held.discard(rollout_id)

    def holding(self) -> set[str]:
        return set(self.held)

    def keep_changes(self) -> None:
        self.told_when_kept.append(len(self.calls))

    def forward_fired(self, rollout_id: str) -> bool:
        return rollout_id in self.fired

    def _call(self, call: tuple[Any, ...], on_started: Callable[[str], None]) -> Any:
        self.under_way += 1
        assert self.under_way == 1, "two switches at once"
        self.calls.append(call)
        try:
            does = self.script.pop(0)
            try:
                return does(self, on_started) if callable(does) else does
            except PhaseInterrupted as interruption:
                return Interrupted(interruption.reason)
        finally:
            self.under_way -= 1


def starts(outcome: object) -> Script:
    """Announces its switch, and comes to ``outcome``."""

    def does(pipeline: ScriptedPipeline, on_started: Callable[[str], None]) -> object:
        on_started("setsid")
        pipeline.on_phase("fire", 0.1234)
        return outcome

    return does


def realises(pipeline: ScriptedPipeline, on_started: Callable[[str], None]) -> object:
    """Works until it is interrupted, as a long download does."""
    while (reason := pipeline.interrupted()) is None:
        pipeline.wait(2.0)
    raise PhaseInterrupted(reason)


class Reserves:
    """Stands for a disk's reserve: each entry is one that can be given up."""

    def __init__(self, left: list[str]) -> None:
        self.left = left

    def release(self) -> bool:
        """Give one up; whether there was any."""
        return bool(self.left and self.left.pop())


class Unit:
    """Stands for the service that starts the agent; ``another`` is what it starts now, where that is another one."""

    name = "nixfleet-agent.service"

    def __init__(self) -> None:
        self.another: str | None = None
        self.ready = False
        self.looks = 0

    def changed(self) -> str | None:
        return self.another

    ask = changed

    def is_ready(self) -> bool:
        self.looks += 1
        return self.ready


class Windows:
    """Stands for the cache of signed artifacts: how old those of each channel may be."""

    def window_of(self, channel: str) -> timedelta | None:
        return {"stable": timedelta(hours=2)}.get(channel)


class Case(unittest.TestCase):
    """``said`` is what the worker logged at warning or above."""

    def setUp(self) -> None:
        self.said: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.said.append(record.getMessage())  # type: ignore[method-assign]
        log = logging.getLogger("nixfleet_agent.activation")
        log.addHandler(handler)
        log.propagate = False
        self.addCleanup(setattr, log, "propagate", True)
        self.addCleanup(log.removeHandler, handler)
        self.clock = FakeClock()
        self.shutdown = ShutdownToken(self.clock)
        self.inputs = InputQueue(self.shutdown)
        self.board = StatusBoard()
        self.mailbox: Mailbox[ActivationOrder] = Mailbox(self.clock, self.shutdown, outranks)
        self.control = RollbackControl(temporary(self))
        self.quarantined: list[tuple[str, str, str]] = []
        self.reserves: list[str] = []
        self.left: list[UnitChanged] = []
        self.ready: list[str] = []
        self.unit: Any = Unit()
        with mock.patch.object(activation, "Pipeline", ScriptedPipeline):
            self.worker = ActivationWorker(
                services(
                    config=config(backoff_initial=16.0, backoff_max=16.0),
                    shutdown=self.shutdown,
                    clock=self.clock,
                    activation=self.mailbox,
                    inputs=self.inputs,
                    board=self.board,
                    rollback=self.control,
                    read_current=lambda: None,
                    reserve=Reserves(self.reserves),
                    cache=Windows(),
                ),
                lambda *words: self.quarantined.append(words),
                lambda pipeline: AgentChange(pipeline, self.unit, self.left.append, self.ready.append),
            )
        self.pipeline = ScriptedPipeline.made
        self.thread: threading.Thread | None = None
        self.died: list[BaseException] = []
        self.addCleanup(self.stop)

    def start(self, order: ActivationOrder, *script: object) -> None:
        """Leave the order, and start the worker on it."""
        self.pipeline.script = list(script)
        self.mailbox.put(order)
        self.run_worker()

    def run_worker(self) -> None:
        self.thread = threading.Thread(target=self._run, name="activation")
        self.thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except RuntimeError as error:
            self.died.append(error)

    def stop(self) -> None:
        self.shutdown.set()
        if self.thread is not None:
            self.thread.join(PATIENCE)
            self.assertFalse(self.thread.is_alive(), "the worker does not end")

    def told(self) -> ReducerInput:
        """The next thing that the worker tells the reducer."""
        item = self.inputs.get(PATIENCE)
        assert item is not None, "the worker tells nothing"
        return item

    def event(self, kind: type[Any]) -> Any:
        item = self.told()
        assert isinstance(item, HostEvent) and isinstance(item.event, kind), item
        return item.event

    def accept_start(
        self, answer: Answer = Answer.ACCEPTED, switch: Answer = Answer.ACCEPTED
    ) -> LocalActivationStarted:
        """The reducer's part: the announcement is durable, or refused; and then the switch may begin, or may not."""
        item = self.told()
        assert isinstance(item, HostEvent) and isinstance(item.event, LocalActivationStarted), item
        assert item.ack is not None
        item.ack.reply(answer)
        if answer is Answer.ACCEPTED:
            begins = self.told()
            assert isinstance(begins, SwitchStarting), begins
            begins.ack.reply(switch)
        return item.event

    def idle(self) -> None:
        """Until the worker waits for its next order."""
        until(lambda: self.mailbox.peek() is None and self.pipeline.under_way == 0, "an idle worker")
        self.clock.until_waiting()

    def nothing_told(self) -> None:
        self.assertIsNone(self.inputs.get(0))

    def calls(self) -> Iterator[str]:
        return (call[0] for call in self.pipeline.calls)


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


class StandsDown(Case):
    def test_a_rollback_that_stands_still_ends_without_a_word_when_it_is_wanted_no_more(self) -> None:
        self.start(BACK, RollbackDrift(NEWER), RollbackDrift(NEWER))
        until(lambda: self.board.get("rollback") == {"rollout_id": R, "drift": NEWER}, "the rollback that stands still")
        self.mailbox.put(StandDown(R), replace=True)
        until(lambda: self.board.get("rollback") is None, "the end of the rollback")
        self.idle()
        self.assertEqual(list(self.calls()), ["rollback"])


class Releases(Case):
    def test_what_is_over_or_superseded_is_let_go_of_and_what_is_open_is_not(self) -> None:
        self.pipeline.held = {R, S, "stable@cc"}
        soaks = RolloutRecord(
            rollout_id=S,
            hostname="web-01",
            channel="stable",
            target_closure=TARGET,
            dispatched_at=self.clock.now(),
            state=State.SOAKING,
        )
        self.board.publish_rollouts(RolloutsView(R, True, records=(soaks,)))
        self.start(Release(R))
        until(lambda: self.pipeline.held == {S}, "the release")
        self.idle()
        self.assertEqual(set(self.pipeline.released), {R, "stable@cc"})

    def test_a_disk_that_refuses_is_said_and_stops_nobody(self) -> None:
        self.start(Release(R), StorageError("read-only"))
        until(lambda: self.pipeline.script == [], "the release")
        self.idle()
        self.assertIn("read-only", self.said[0])

    def test_shutdown_while_a_guard_is_awaited_leaves_it_to_the_next_start(self) -> None:
        self.pipeline.held = {R}
        self.start(Release(R), PhaseInterrupted(SHUTDOWN))
        until(lambda: self.pipeline.script == [], "the release")
        self.idle()
        self.assertEqual(self.pipeline.released, [])


class AnotherAgent(Case):
    """A release that changes the agent: guarded from its switch on, left for, and taken over from."""

    GUARD = ("guard", R, "nixfleet-agent.service")

    def setUp(self) -> None:
        super().setUp()
        self.opens(R)

    def opens(self, *rollouts: str) -> None:
        """Those are open, and no other."""
        self.board.publish_rollouts(RolloutsView(rollouts[-1], active_open=True, watched=rollouts))

    def guards(self) -> int:
        return self.pipeline.calls.count(self.GUARD)

    def switched(self) -> None:
        self.unit.another = "/nix/b/bin/nixfleet-agent run"
        self.start(FORWARD, starts(Completed(TARGET, 0, ())))
        self.accept_start()
        self.event(LocalActivationCompleted)

    def test_its_start_is_guarded_before_the_success_is_told_and_as_long_as_this_one_lives(self) -> None:
        self.switched()
        self.assertEqual((self.guards(), self.left), (1, []))
        for turn in (2, 3):
            self.clock.until_waiting()
            self.clock.advance(IDLE)
            until(lambda turn=turn: self.guards() == turn, "a renewed guard")

    def test_a_shutdown_renews_nothing(self) -> None:
        self.switched()
        self.clock.until_waiting()
        self.stop()
        self.assertEqual(self.guards(), 1)

    def test_one_that_stays_the_same_is_not(self) -> None:
        self.start(FORWARD, starts(Completed(TARGET, 0, ())))
        self.accept_start()
        self.event(LocalActivationCompleted)
        self.clock.until_waiting()
        self.clock.advance(IDLE)
        self.clock.until_waiting()
        self.assertEqual(self.guards(), 0)

    def test_what_was_disarmed_since_is_not_renewed(self) -> None:
        self.switched()
        self.clock.until_waiting()
        self.pipeline.disarm()
        self.clock.advance(IDLE)
        self.clock.until_waiting()
        self.assertEqual(self.guards(), 1)

    def test_one_that_could_not_be_armed_is_tried_again(self) -> None:
        self.pipeline.refusals = ["no space"]
        self.switched()
        self.assertEqual((self.guards(), self.pipeline.waiting_for), (1, None))
        self.clock.until_waiting()
        self.clock.advance(IDLE)
        until(lambda: self.pipeline.waiting_for == R, "a guard after all")

    def test_but_not_in_the_middle_of_a_newer_switch_whose_guard_that_would_end(self) -> None:
        self.pipeline.refusals = ["no space"]
        self.newer(FAILED, self.a_minute_later)
        self.event(LocalActivationFailed)
        self.assertEqual(self.guards(), 1)

    def newer(self, outcome: object, *before: Callable[[], object]) -> None:
        """A newer release is on its way; ``before`` it comes to its outcome, something else happens."""

        def does(pipeline: ScriptedPipeline, on_started: Callable[[str], None]) -> object:
            for each in before:
                each()
            return outcome

        self.switched()
        self.idle()
        self.pipeline.script = [does]
        self.mailbox.put(replace(FORWARD, rollout_id=S))

    def a_minute_later(self) -> None:
        self.clock.advance(IDLE)
        self.pipeline.interrupted()

    def test_while_a_newer_release_comes_it_stays_guarded(self) -> None:
        self.opens(R, S)
        self.newer(UNFIRED, self.a_minute_later, self.pipeline.interrupted, self.a_minute_later)
        self.event(LocalActivationFailed)
        self.assertEqual((self.guards(), self.pipeline.waiting_for), (3, R))

    def test_but_not_once_it_is_over(self) -> None:
        self.opens(R)
        self.newer(UNFIRED, lambda: self.opens(S), self.a_minute_later)
        self.event(LocalActivationFailed)
        self.assertEqual((self.guards(), self.pipeline.waiting_for), (1, None))

    def test_a_newer_switch_that_was_turned_away_has_it_guarded_again(self) -> None:
        self.newer(UNFIRED, self.pipeline.disarm)
        self.event(LocalActivationFailed)
        self.assertEqual((self.guards(), self.pipeline.waiting_for), (2, R))

    def test_and_one_that_takes_a_reboot_after_all(self) -> None:
        self.newer(Deferred("kernel", "boot-1"), self.pipeline.disarm)
        self.event(LocalActivationDeferred)
        self.assertEqual((self.guards(), self.pipeline.waiting_for), (2, R))

    def test_what_a_newer_release_owes_without_a_switch_leaves_the_guard(self) -> None:
        self.opens(R, S)
        self.newer(UNFIRED)
        self.event(LocalActivationFailed)
        self.pipeline.script = [RolledBack(TARGET, 0)]
        self.mailbox.put(Rollback(S, PRIOR, THIRD, False, TARGET))
        self.event(LocalRollbackCompleted)
        self.idle()
        self.clock.advance(IDLE)
        until(lambda: self.guards() == 2, "a renewed guard")

    def test_a_newer_switch_that_was_fired_has_its_own(self) -> None:
        self.opens(R, S)
        self.newer(FAILED, self.pipeline.disarm)
        self.event(LocalActivationFailed)
        self.pipeline.waiting_for = R  # nothing of this process any more
        self.idle()
        self.clock.advance(IDLE)
        self.idle()
        self.assertEqual(self.guards(), 1)

    def test_it_is_left_for_only_when_its_time_is_guarded(self) -> None:
        self.unit.another = "/nix/b/bin/nixfleet-agent run"
        self.pipeline.refusals = ["no space"]
        self.start(HandOver(FORWARD))
        self.clock.until_waiting()
        self.assertEqual((self.guards(), self.left), (1, []))
        self.clock.advance(16)
        until(lambda: self.left, "that it leaves")
        self.assertEqual((self.guards(), self.left), (2, [UnitChanged(self.unit.another)]))

    def test_a_newer_order_comes_first(self) -> None:
        self.pipeline.refusals = ["no space"] * 9
        self.start(HandOver(FORWARD))
        self.clock.until_waiting()
        self.mailbox.put(Release(S))
        self.mailbox.put(BACK, replace=True)
        self.pipeline.script = [RolledBack(PRIOR, 0)]
        self.event(LocalRollbackCompleted)
        self.assertEqual(self.left, [])

    def test_the_new_one_ends_the_guard_when_systemd_counts_it_as_ready_and_takes_no_order_before(self) -> None:
        self.pipeline.waiting_for = R
        self.pipeline.script = [RolledBack(PRIOR, 0)]
        self.mailbox.put(BACK)
        self.run_worker()
        for turn in (1, 2):
            self.clock.until_waiting()
            self.assertEqual((self.unit.looks, self.pipeline.waiting_for, self.pipeline.calls), (turn, R, []))
            self.unit.ready = turn == 2
            self.clock.advance(READY_STEP_SECS)
        self.event(LocalRollbackCompleted)

    def test_it_tells_that_it_is_ready_once_the_guard_is_disarmed(self) -> None:
        self.pipeline.waiting_for, self.pipeline.stubborn, self.unit.ready = R, 1, True
        self.run_worker()
        self.clock.until_waiting()
        self.assertEqual(self.ready, [])
        self.clock.advance(READY_STEP_SECS)
        until(lambda: self.ready == [R], "that it is ready")

    def test_one_that_the_guard_came_before_is_not_ready(self) -> None:
        self.pipeline.waiting_for = R
        self.run_worker()
        self.clock.until_waiting()
        self.pipeline.waiting_for, self.unit.ready = None, True
        self.clock.advance(READY_STEP_SECS)
        self.clock.until_waiting()
        self.assertEqual(self.ready, [])

    def test_a_shutdown_before_that_leaves_the_guard(self) -> None:
        self.pipeline.waiting_for = R
        self.run_worker()
        self.clock.until_waiting()
        self.stop()
        self.assertEqual(self.pipeline.waiting_for, R)


if __name__ == "__main__":
    unittest.main()
