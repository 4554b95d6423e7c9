"""Leaving for a release's own agent, and taking over from the agent before: a guard stands where no agent does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from typing import Protocol

from nixfleet_agent.activation.model import Completed, Deferred, Failed, Forward, ForwardOutcome
from nixfleet_agent.runtime.own_unit import OwnUnit, UnitChanged
from nixfleet_agent.threads.backoff import Backoff

log = logging.getLogger("nixfleet_agent.agent_change")

#: Seconds after which the guard of an agent that has not been left for is armed anew; its own time is longer.
RENEW_SECS = 60.0
#: Seconds between two looks whether systemd counts this process as ready.
READY_STEP_SECS = 0.5


class Pipeline(Protocol):
    """What is used of the activation pipeline."""

    def guard_successor(self, intent: Forward, agent: str) -> str | None: ...

    def awaits_successor(self) -> str | None: ...

    def successor_ready(self, rollout_id: str) -> bool: ...

    def disarm(self) -> None: ...


class AgentChange:
    """For the activation worker alone, whose the pipeline is.

    ``leave`` has the main thread end this process; ``ready`` is told the rollout that this process may end now.
    ``unit`` is None where no systemd starts the agent: then no release replaces it, and nothing here does anything.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        unit: OwnUnit | None,
        leave: Callable[[UnitChanged], object],
        ready: Callable[[str], object],
    ) -> None:
        self._pipeline = pipeline
        self._unit = unit
        self._leave = leave
        self._ready = ready
        self._guarded: Forward | None = None
        self._due = 0.0
        self._refused = False

    def came_to(self, outcome: ForwardOutcome, intent: Forward, now: float) -> None:
        """A release has come to its outcome: guard what runs."""
        match outcome:
            case Completed():
                self._switched(intent, now)
            case Failed(switch_fired=True):
                self.taken_back()
            case Failed() | Deferred():
                self._not_switched(now)

    def renew(self, now: float, still_open: Callable[[], Container[str]], *, idle: bool) -> None:
        """As long as this process lives, the time of the next one does not pass; also while a newer release comes.

        One that could not be armed is armed by an ``idle`` worker alone: else a newer switch's guard may stand there.
        """
        intent = self._guarded
        if self._unit is None or intent is None or now < self._due:
            return
        self._due = now + RENEW_SECS
        if self._pipeline.awaits_successor() != intent.rollout_id and not (idle and self._refused):
            return
        if intent.rollout_id in still_open():
            self._guard_while_here(intent, self._unit, now)
        else:
            self._guarded = None
            self._pipeline.disarm()

    def taken_back(self) -> None:
        """The release that brought the agent is left by a switch of this process, which has its own guard, or none."""
        self._guarded = None

    def hand_over(
        self,
        intent: Forward,
        interrupted: Callable[[], str | None],
        wait: Callable[[float], object],
        backoff: Backoff,
    ) -> None:
        """End this process for the next one, whose time begins now; not before that is guarded, or ``interrupted``."""
        backoff.reset()
        while self._unit is not None and interrupted() is None:
            why = self._guard(intent, self._unit)
            if why is None:
                self._guarded = None  # its time runs
                log.info("leaving for the release's own agent", extra={"rollout_id": intent.rollout_id})
                self._leave(UnitChanged(str(self._unit.ask() or self._unit.name)))
                return
            seconds = backoff.next()
            log.error("not leaving for the release's own agent, next try in %.0f s: %s", seconds, why)
            wait(seconds)

    def take_over(self, wait: Callable[[float], object], over: Callable[[], bool]) -> None:
        """In a new process: end the guard that waits for it, once systemd says that it is ready. Until ``over``."""
        if self._guarded is not None:
            return  # armed by this very process, whose worker began anew
        while (rollout_id := self._pipeline.awaits_successor()) is not None and not over():
            if (self._unit is None or self._unit.is_ready()) and self._pipeline.successor_ready(rollout_id):
                log.info("ready: this agent goes on with the soak", extra={"rollout_id": rollout_id})
                self._ready(rollout_id)
            else:
                wait(READY_STEP_SECS)

    def _switched(self, intent: Forward, now: float) -> None:
        """Where the switch may have changed the agent, a crash of this one would start that: guard it."""
        self._guarded = None
        if self._unit is not None and self._unit.differs():
            self._guard_while_here(intent, self._unit, now)

    def _not_switched(self, now: float) -> None:
        """What runs is guarded again, where that had ended with a switch that was turned away."""
        intent = self._guarded
        if self._unit is not None and intent is not None and self._pipeline.awaits_successor() is None:
            self._guard_while_here(intent, self._unit, now)

    def _guard_while_here(self, intent: Forward, unit: OwnUnit, now: float) -> None:
        self._due = now + RENEW_SECS
        why = self._guard(intent, unit)
        self._refused = why is not None
        if why is not None:
            log.warning("the release's own agent is not guarded: %s", why, extra={"rollout_id": intent.rollout_id})

    def _guard(self, intent: Forward, unit: OwnUnit) -> str | None:
        self._guarded = intent
        return self._pipeline.guard_successor(intent, unit.name)


def no_change(pipeline: Pipeline) -> AgentChange:
    """Where nothing replaces the agent that runs."""
    return AgentChange(pipeline, None, lambda changed: None, lambda rollout_id: None)
