"""An activation worker with a pipeline that does as it is told."""

from __future__ import annotations

import logging
import threading
import unittest
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

from nixfleet_agent.activation.context import Context, Retrying
from nixfleet_agent.activation.errors import PhaseInterrupted
from nixfleet_agent.activation.model import (
    Failed,
    Forward,
    ForwardOutcome,
    Interrupted,
    Rollback,
    RollbackOutcome,
)
from nixfleet_agent.operator.rollback_control import RollbackControl
from nixfleet_agent.runtime.agent_change import AgentChange
from nixfleet_agent.runtime.own_unit import UnitChanged
from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.rollout.inputs import Answer, HostEvent, ReducerInput, SwitchStarting
from nixfleet_agent.runtime.rollout.orders import ActivationOrder, outranks
from nixfleet_agent.runtime.workers import activation
from nixfleet_agent.runtime.workers.activation import ActivationWorker
from nixfleet_agent.state_machine.events import (
    LocalActivationStarted,
)
from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.threads.mailbox import Mailbox
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.runtime.harness import PRIOR, TARGET, temporary, until
from tests.runtime.parts import config, services
from tests.support.clock import PATIENCE, FakeClock

R, S = "stable@aa", "stable@bb"


FORWARD = Forward(R, TARGET, PRIOR, "rollback-and-halt")


BACK = Rollback(R, PRIOR, TARGET, True, TARGET)


FAILED = Failed(11, "switch: no", "switch", True, TARGET)


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
    """Stands for the service that starts the agent; ``another`` is what it starts now, where that is another one.

    A ``silent`` systemd does not say.
    """

    name = "nixfleet-agent.service"

    def __init__(self) -> None:
        self.another: str | None = None
        self.silent = False
        self.ready = False
        self.looks = 0

    def ask(self) -> str | None:
        return None if self.silent else self.another

    def differs(self) -> bool:
        return self.silent or self.another is not None

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
