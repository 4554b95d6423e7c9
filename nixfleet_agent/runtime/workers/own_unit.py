"""Notices that the agent's own unit now starts something else, so that an idle agent can make room for it.

What a rollout brings is handed over in its soak; this is for what an operator's own switch has changed, for a rollback,
and for agents that are too old to be handed over to.
"""

from __future__ import annotations

from collections.abc import Callable

from nixfleet_agent.activation.context import SHUTDOWN
from nixfleet_agent.activation.errors import PhaseInterrupted
from nixfleet_agent.runtime.own_unit import OwnUnit, UnitChanged
from nixfleet_agent.runtime.successor import Verdict, try_successor
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.threads.timers import Timer
from nixfleet_agent.threads.worker import Worker

#: How often the unit is looked at, in seconds; each look starts a process.
INTERVAL_SECS = 300.0


class OwnUnitWorker(Worker):
    """Asks what the unit starts; ``idle`` says whether the agent may end now, ``tell`` has it end."""

    name = "own_unit"
    limit = 2 * INTERVAL_SECS

    def __init__(
        self,
        shutdown: ShutdownToken,
        clock: Clock,
        unit: OwnUnit,
        idle: Callable[[], bool],
        tell: Callable[[UnitChanged], None],
    ) -> None:
        super().__init__(shutdown, clock)
        self._unit = unit
        self._idle = idle
        self._tell = tell
        self._refused = ""

    def run(self) -> None:
        timer = Timer(INTERVAL_SECS, self.clock, self.shutdown)
        while timer.wait():
            self.alive()
            try:
                self._look()
            except PhaseInterrupted:
                return

    def _look(self) -> None:
        start = self._unit.changed()
        if start is None or not self._idle():
            return
        trial = try_successor(start, self.clock, self._only_shutdown)
        if trial.verdict is not Verdict.BAD:
            if self._idle():  # still: a try may take a minute, and a rollout may have come meanwhile
                self._tell(UnitChanged(str(start)))
        elif trial.words != self._refused:
            self._refused = trial.words
            self.log.error("%s starts an agent that can't start: this one stays. %s", self._unit.name, trial.words)

    def _only_shutdown(self) -> None:
        self.alive()
        if self.shutdown.is_set:
            raise PhaseInterrupted(SHUTDOWN)
