"""How a step of the pipeline ends early: it failed in a named phase, or something more important came."""

from __future__ import annotations

from nixfleet_agent.activation.failures import Failure
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
    """A program of the host could not be run, took too long, or failed; the message says which and how.

    ``text`` is what the program said, where that is more than the message; ``failure`` its class, where the caller
    knows it. ``exit_code`` and ``phase`` are what the host reports should it come to that.
    """

    def __init__(
        self,
        message: str,
        *,
        text: str | None = None,
        failure: Failure | None = None,
        exit_code: int = EXIT_UNKNOWN,
        phase: str | None = None,
    ) -> None:
        super().__init__(message)
        self.text = message if text is None else text
        self.failure = failure
        self.exit_code = exit_code
        self.phase = phase

    def after(self, tries: int, reason: str) -> CommandError:
        """The same, at the end of ``tries``."""
        message = str(self) if tries == 1 else f"{self}\n(given up after {tries} tries: {reason})"
        return CommandError(message, text=self.text, failure=self.failure, exit_code=self.exit_code, phase=self.phase)
