"""Runs one hook: bounded in time and in what it says, ended with all that it started."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent.activation import processes
from nixfleet_agent.activation.errors import CommandError
from nixfleet_agent.activation.machine import Run
from nixfleet_agent.hooks.moments import Occasion
from nixfleet_agent.text import clip_tail, printable
from nixfleet_agent.threads.clock import Clock

#: How much of a hook's output is kept, in bytes: its end.
OUTPUT_LIMIT = 16 * 1024
#: How much of it makes the reason of a veto.
REASON_LIMIT = 300

log = logging.getLogger("nixfleet_agent.hooks")


@dataclass(frozen=True, slots=True)
class Ran:
    """How a hook ended; ``output`` is the end of both its outputs."""

    hook: str
    exit_code: int
    output: str

    @property
    def reason(self) -> str:
        """Its last line, for people."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        return printable(lines[-1] if lines else f"exit code {self.exit_code}", REASON_LIMIT)


@dataclass(frozen=True, slots=True)
class HookRunner:
    """``check`` may raise to end a hook early (shutdown); ``environment`` is what the agent's children get."""

    clock: Clock
    timeout: float
    environment: Mapping[str, str]
    start: Run = processes.run

    def run(self, hook: Path, occasion: Occasion, check: Callable[[], None]) -> Ran:
        """Run ``hook`` to its end; a program that can't start or does not end in time has failed."""
        environment = {**self.environment, **occasion.environment()}
        try:
            done = self.start([str(hook)], environment, clock=self.clock, timeout=self.timeout, check=check)
        except CommandError as error:
            return Ran(hook.name, -1, str(error))
        said = done.stdout + (b"\n" if done.stdout and done.stderr else b"") + done.stderr
        return Ran(hook.name, done.returncode, clip_tail(said, OUTPUT_LIMIT))
