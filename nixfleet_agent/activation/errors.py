"""How a step of the pipeline ends early: it failed in a named phase, or something more important came."""

from __future__ import annotations

from nixfleet_agent.activation.model import EXIT_UNKNOWN
from nixfleet_agent.errors import AgentError


class ActivationError(AgentError):
    """A step of an activation or a rollback did not do its work."""


class PhaseFailed(ActivationError):
    """The step of name ``phase`` failed; ``exit_code`` and ``tail`` are what the host reports about it."""

    def __init__(self, phase: str, tail: str, exit_code: int = EXIT_UNKNOWN, observed: str | None = None) -> None:
        super().__init__(f"{phase}: {tail}")
        self.phase = phase
        self.tail = tail
        self.exit_code = exit_code
        self.observed = observed


class PhaseInterrupted(ActivationError):
    """``reason`` is ``shutdown`` or ``superseded``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class CommandError(ActivationError):
    """A program of the host could not be run, took too long, or failed; the message says which and how."""
