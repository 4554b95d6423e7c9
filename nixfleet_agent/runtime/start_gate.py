"""The gate of a soak whose release changes the agent: an agent that can't start fails the release, not the host."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from nixfleet_agent.activation.context import SHUTDOWN
from nixfleet_agent.activation.errors import PhaseInterrupted
from nixfleet_agent.probes.declarations import ProbeDecl
from nixfleet_agent.probes.runners import RunnerContext, RunnerOutcome, failed, passed
from nixfleet_agent.runtime.own_unit import OwnUnit, UnitStart
from nixfleet_agent.runtime.rollout.evaluate import AGENT_START
from nixfleet_agent.runtime.successor import Verdict, try_successor

log = logging.getLogger("nixfleet_agent.start_gate")

#: From one try to the next, in seconds: each starts a Python.
INTERVAL_SECS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStartDecl(ProbeDecl):
    """Always enforced, and declared by no file."""

    name: str = AGENT_START
    kind: str = "exec"


class StartGate:
    """``tried`` is told the rollout whose agent can start, before that is told as a pass."""

    def __init__(self, unit: OwnUnit, tried: Callable[[str], object]) -> None:
        self._unit = unit
        self._tried = tried
        self._untried: UnitStart | None = None

    def declaration(self, min_interval: float) -> AgentStartDecl | None:
        """None where the unit starts what it started this process with."""
        return AgentStartDecl(interval=max(INTERVAL_SECS, min_interval)) if self._unit.differs() else None

    def run(self, rollout_id: str, ctx: RunnerContext) -> RunnerOutcome:
        """One try; an agent that can't be tried passes, and is left for once the rollout has ended."""
        start = self._unit.ask()
        if start is None:
            return failed(f"systemd does not say what {self._unit.name} starts now")
        if start == self._untried or not self._unit.differs():
            return passed()

        def check() -> None:
            if ctx.cancel.is_set:
                raise PhaseInterrupted(SHUTDOWN)

        try:
            trial = try_successor(start, ctx.clock, check)
        except PhaseInterrupted:
            return failed("stopped")
        if trial.verdict is Verdict.BAD:
            return failed(trial.words)
        if trial.verdict is Verdict.UNTRIED:
            self._untried = start
            log.warning(
                "not tried: %s; the rollout does not wait for it", trial.words, extra={"rollout_id": rollout_id}
            )
        else:
            self._tried(rollout_id)
        return passed()
