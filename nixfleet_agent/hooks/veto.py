"""The hooks before a switch: each of them may keep it waiting, with a reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nixfleet_agent.activation.model import Forward
from nixfleet_agent.hooks.folder import find
from nixfleet_agent.hooks.moments import BEFORE_SWITCH, Occasion
from nixfleet_agent.hooks.runner import HookRunner

log = logging.getLogger("nixfleet_agent.hooks")


@dataclass(slots=True)
class Veto:
    """Asked by the activation worker alone, in its thread."""

    folder: Path
    runner: HookRunner
    _said: tuple[str, ...] = field(default=(), init=False)

    def __call__(self, intent: Forward, check: Callable[[], None]) -> str | None:
        """The first refusal, as ``hook: its last line``; a program that root should not run is not asked."""
        found = find(self.folder, BEFORE_SWITCH)
        if found.problems != self._said:
            self._said = found.problems
            for problem in found.problems:
                log.error("%s", problem)
        occasion = Occasion(BEFORE_SWITCH, intent.rollout_id, 0, intent.target, intent.prior, {})
        for hook in found.hooks:
            ran = self.runner.run(hook, occasion, check)
            if ran.exit_code != 0:
                return f"the hook {ran.hook} refuses it: {ran.reason}"
        return None
