"""Activation worker: runs the pipeline for the latest order and reports how it came out; one switch at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime, timedelta

from nixfleet_agent.activation.context import SHUTDOWN, SUPERSEDED, Context, Retrying, Waiting
from nixfleet_agent.activation.errors import PhaseInterrupted
from nixfleet_agent.activation.model import (
    Completed,
    Failed,
    Forward,
    Interrupted,
    Rollback,
    RollbackDeferred,
    RollbackDrift,
    RollbackFailed,
    RolledBack,
)
from nixfleet_agent.activation.pipeline import Pipeline
from nixfleet_agent.errors import StorageError
from nixfleet_agent.prefetch.handover import Handover
from nixfleet_agent.proto.ids import channel_of
from nixfleet_agent.runtime.activation_status import ActivationStatus
from nixfleet_agent.runtime.agent_change import AgentChange, no_change
from nixfleet_agent.runtime.rollout.inputs import (
    Ack,
    Answer,
    HostEvent,
    ReducerInput,
    RollbackAttemptFailed,
    SwitchStarting,
)
from nixfleet_agent.runtime.rollout.orders import ActivationOrder, HandOver, Release, StandDown
from nixfleet_agent.runtime.rollout.outcomes import event_of
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.state_machine import SwitchMethod
from nixfleet_agent.state_machine.events import LocalActivationStarted
from nixfleet_agent.threads.worker import Worker

#: Longest sleep on an empty mailbox, in seconds.
IDLE = 60.0
#: Seconds between two looks at a rollback that was given up: an operator may want it after all.
GIVEN_UP_RECHECK = 5.0
#: Seconds between two looks whether a rollback is still held up: by an operator's own switch, or until a reboot.
DRIFT_RECHECK = 60.0
#: Longest without a sign of life besides the poll's own interval, in seconds: the launch of a switch is not cut short.
LONGEST_STEP = 120.0


class ActivationWorker(Worker):
    """``on_quarantine(rollout_id, closure, reason)`` is told of each closure that failed after its switch was fired.

    ``change`` makes what leaves for a release's own agent.
    """

    name = "activation"

    def __init__(
        self,
        services: Services,
        on_quarantine: Callable[[str, str, str], None],
        change: Callable[[Pipeline], AgentChange] = no_change,
    ) -> None:
        super().__init__(services.shutdown, services.clock)
        config = services.config.activation
        self.limit = max(self.limit, LONGEST_STEP + config.poll_interval_secs)
        self._mailbox, self._inputs = services.activation, services.inputs
        self._backoff = services.backoff()
        self._control = services.rollback
        self._on_quarantine = on_quarantine
        self._prefetch = services.prefetch
        self._still_open: Callable[[], Container[str]] = lambda: services.board.rollouts.undecided(
            services.read_current()
        )
        self._make_room = services.reserve.release
        self._window_of = services.cache.window_of
        self._order: ActivationOrder | None = None
        self._room_made = False
        self._status = ActivationStatus(services.board, services.clock)
        self._pipeline = Pipeline(
            Context(
                config,
                services.config.state_dir,
                services.clock,
                self._interrupted,
                self._wait,
                self.log,
                on_phase=self._status.phase,
                retrying=Retrying(services.backoff, self._note_wait, services.config.tuning.backoff_max),
                consent=services.veto(),
                machine=services.platform.machine,
                running_download=services.prefetch.take_over,
            )
        )

        self._change = change(self._pipeline)

    def run(self) -> None:
        """One order after the other; the mailbox holds only the latest.

        An order that this thread died of is still in hand when it is started again: it is taken up as after a
        restart of the process, unless a newer one waits.
        """
        self._change.take_over(self.shutdown.wait, lambda: self._interrupted() == SHUTDOWN)
        while not self.shutdown.is_set:
            self.alive()
            if self._order is None or self._interrupted() == SUPERSEDED:
                self._order = self._mailbox.take(IDLE)
            elif isinstance(self._order, Forward):
                self._order = replace(self._order, resume=True)
            self._status.begin()
            with _right_of_way(self._prefetch, self._order):
                match self._order:
                    case Forward() as order:
                        self._forward(order)
                    case Rollback() as order:
                        self._roll_back(order)
                    case Release(rollout_id):
                        _release(self._pipeline, rollout_id, self._still_open(), self.log)
                    case StandDown():
                        self._status.rolled_back()
                    case HandOver(intent):
                        self._change.hand_over(intent, self._interrupted, self._wait, self._backoff)
                    case None if not self.shutdown.is_set:
                        self._renew_guard(idle=True)
            self._order = None
            # Only now, when everything that somebody waits for is done.
            self._pipeline.keep_changes()

    # -- forward ------------------------------------------------------------------------------

    def _forward(self, order: Forward) -> None:
        intent = replace(order, fresh_until=_fresh_until(order, self._window_of(channel_of(order.rollout_id))))
        self._status.switching(order.resume and self._pipeline.forward_fired(order.rollout_id))
        try:
            if order.resume:
                outcome = self._pipeline.resume(intent, self._started, order.already_started, self._starting)
            else:
                outcome = self._pipeline.forward(intent, self._started, self._starting)
            self._change.came_to(outcome, intent, self.clock.monotonic())
            if isinstance(outcome, Completed):
                _note_units(outcome, self.log)
            if isinstance(outcome, Failed) and outcome.switch_fired:
                self._on_quarantine(order.rollout_id, order.target, outcome.phase)
            if not isinstance(outcome, Interrupted):
                self._tell(HostEvent(order.rollout_id, event_of(outcome, self.clock.now(), self._status.phases)))
        finally:
            self._note_wait(None)
            self._status.switching(False)

    def _started(self, method: str) -> None:
        """That it begins is durable before anything comes of it; raises PhaseInterrupted when it is not to go on."""
        order = _in_hand(self._order)
        if order.already_started:
            return  # before an earlier rollout had to be taken back first
        event = LocalActivationStarted(started_at=self.clock.now(), switch_method=SwitchMethod(method))
        self._ask(lambda ack: HostEvent(order.rollout_id, event, ack))
        self._order = replace(order, already_started=True)

    def _starting(self) -> None:
        """The switch may only be fired while no other rollout answers for what runs; raises as ``_started``."""
        order = _in_hand(self._order)
        self._ask(lambda ack: SwitchStarting(order.rollout_id, ack))
        self._status.switching(True)

    def _ask(self, make: Callable[[Ack], ReducerInput]) -> None:
        answered = self.shutdown.wakeup()
        ack = Ack(answered)
        self._tell(make(ack))
        try:
            while ack.value is None and not self.shutdown.is_set:
                self.alive()
                self.clock.wait(answered, IDLE)
        finally:
            self.shutdown.forget(answered)
        if ack.value is not Answer.ACCEPTED:
            raise PhaseInterrupted(SHUTDOWN if self.shutdown.is_set else SUPERSEDED)

    # -- back ---------------------------------------------------------------------------------

    def _roll_back(self, order: Rollback) -> None:
        """Until it succeeds or a newer rollout inherits it; an operator's switch or giving up only suspends it."""
        known = order.forward_fired
        fired = self._pipeline.forward_fired(order.rollout_id) if known is None else known
        if fired:
            self._on_quarantine(order.rollout_id, order.failed, "rolled back")
        intent = replace(order, forward_fired=fired or order.inherited)
        if intent.forward_fired:
            self._change.taken_back()
        self._backoff.reset()
        self._status.rollback_begins()
        self._room_made = False
        over = False
        while not over and not self.shutdown.is_set:
            over = self._stand_by(order) if self._control.given_up(order.rollout_id) else self._attempt(order, intent)

    def _stand_by(self, order: Rollback) -> bool:
        """An operator gave the rollback up: do nothing until one asks for it again; True when a newer order waits.

        The guard may still be armed, when the agent was down since the release failed.
        """
        self.log.warning("the rollback was given up by an operator", extra={"rollout_id": order.rollout_id})
        self._status.rollback(order.rollout_id, given_up=True)
        self._tell(RollbackAttemptFailed(order.rollout_id, "given up"))
        while self._control.given_up(order.rollout_id):
            self._pipeline.disarm()
            if self._interrupted() is not None:
                return True
            self._wait(GIVEN_UP_RECHECK)
        return False

    def _attempt(self, order: Rollback, intent: Rollback) -> bool:
        """One try; True when there is nothing left to try."""
        self._status.begin()
        fields = {"rollout_id": order.rollout_id, "closure": order.target}
        self._control.take_retry(order.rollout_id)
        self._status.switching(True)
        try:
            outcome = self._pipeline.rollback(intent)
        finally:
            self._status.switching(False)
        match outcome:
            case RolledBack() as done:
                self._status.rolled_back()
                self._tell(HostEvent(order.rollout_id, event_of(done, self.clock.now(), self._status.phases)))
                return True
            case RollbackFailed(phase="state-dir") if not self._room_made and self._make_room():
                # A release may leave too little for a switch's record although its own events fitted.
                self._room_made = True
                return False
            case RollbackFailed() as failed:
                return self._pause(order, self._attempt_failed(order, failed))
            case RollbackDrift(observed):
                if self._status.stands_still(order.rollout_id, drift=observed):
                    self._tell(RollbackAttemptFailed(order.rollout_id, "an operator switched"))
                    self.log.error("no rollback: an operator has switched this host to %s", observed, extra=fields)
                return self._pause(order, DRIFT_RECHECK)
            case RollbackDeferred(component):
                if self._status.stands_still(order.rollout_id, deferred=component, closure=order.target):
                    self._tell(RollbackAttemptFailed(order.rollout_id, "a reboot is needed"))
                    self.log.error(
                        "the rollback needs a reboot: %s boots next, and %s can't be replaced live",
                        *(order.target, component),
                        extra=fields,
                    )
                return self._pause(order, DRIFT_RECHECK)
        return True

    def _attempt_failed(self, order: Rollback, failed: RollbackFailed) -> float:
        """Tell everybody; the seconds until the next try."""
        seconds = self._backoff.next()
        _say_failed(self.log, order, failed, seconds)
        self._status.rollback_failed(order.rollout_id, failed, self._backoff.failures, seconds)
        self._tell(RollbackAttemptFailed(order.rollout_id, failed.phase))
        return seconds

    def _pause(self, order: Rollback, seconds: float) -> bool:
        """Wait before the next try, less when an operator asks for it; True when a newer order waits."""
        until = self.clock.monotonic() + seconds
        while (left := until - self.clock.monotonic()) > 0:
            self._wait(min(left, 1.0))
            if self._interrupted() is not None:
                return True
            if self._control.take_retry(order.rollout_id) or self._control.given_up(order.rollout_id):
                return False
        return False

    # -- what the pipeline asks of its surroundings --------------------------------------------

    def _interrupted(self) -> str | None:
        self.alive()
        if self.shutdown.is_set:
            return SHUTDOWN
        self._renew_guard(idle=False)
        waiting = self._mailbox.peek()
        return None if waiting is None or isinstance(waiting, Release) else SUPERSEDED

    def _renew_guard(self, *, idle: bool) -> None:
        self._change.renew(self.clock.monotonic(), self._still_open, idle=idle)

    def _wait(self, seconds: float) -> None:
        if isinstance(self._mailbox.peek(), Release):  # which waits for nothing
            self.shutdown.wait(seconds)
        else:
            self.clock.wait(self._mailbox.filled, seconds)

    def _note_wait(self, waiting: Waiting | None) -> None:
        self._status.waiting(None if self._order is None else self._order.rollout_id, waiting)

    def _tell(self, item: ReducerInput) -> None:
        self._inputs.put(item, self.alive)


def _fresh_until(order: Forward, window: timedelta | None) -> datetime | None:
    return None if window is None or order.signed_at is None else order.signed_at + window


def _right_of_way(handover: Handover, order: ActivationOrder | None) -> AbstractContextManager[None]:
    """Nothing is prefetched while an order is carried out, except for what the order itself needs."""
    match order:
        case Forward():
            return handover.at_work(order.target)
        case Rollback():
            return handover.at_work(None)
    return nullcontext()


def _in_hand(order: ActivationOrder | None) -> Forward:
    if not isinstance(order, Forward):
        raise RuntimeError("a switch was announced without a forward order in hand")
    return order


def _note_units(outcome: Completed, log: logging.Logger) -> None:
    if outcome.failed_units:
        log.warning("units failed to start: %s", ", ".join(outcome.failed_units))


def _say_failed(log: logging.Logger, order: Rollback, failed: RollbackFailed, seconds: float) -> None:
    log.error(
        "rollback to %s failed (%s), next try in %.0f s: %s",
        order.target,
        failed.phase,
        seconds,
        failed.stderr_tail,
        extra={"rollout_id": order.rollout_id, "closure": order.target},
    )


def _release(pipeline: Pipeline, rollout_id: str, still_open: Container[str], log: logging.Logger) -> None:
    """Let go of what a finished rollout held, and of what any other left behind that is over or superseded."""
    for held in {rollout_id, *pipeline.holding()}:
        if held == rollout_id or held not in still_open:
            try:
                pipeline.release(held)
            except PhaseInterrupted:
                return  # shutdown; the next start's first release comes back to it
            except StorageError as error:
                log.warning("could not release what %s held: %s", held, error)
