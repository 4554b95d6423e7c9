"""What a platform has to offer so that a switch can run apart from the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from nixfleet_agent.activation.records import Record

SHELL = "/bin/sh"
#: Starting a detached process is quick; a service manager that takes longer is not going to.
LAUNCH_SECS = 30.0


class Backend(Protocol):
    """Starts, watches and stops the wrapper of a record, detached from the agent."""

    method: str
    """The ``switchMethod`` that is reported."""

    def command(self, system: Path, action: str) -> list[str]:
        """The system's own switch script with its action (``switch`` or ``boot``)."""

    def dry_run(self, system: Path) -> list[str] | None:
        """The command that tells what a switch would do, and changes nothing; None where there is none."""

    def launch(self, record: Record, command: list[str], delay: float = 0) -> None:
        """Run ``command`` under the record's wrapper, ``delay`` seconds from now.

        Returns once the platform has taken it over; ``record.started`` says when it runs.

        Raises:
            CommandError: it was not taken over.
        """

    def alive(self, record: Record) -> bool:
        """Whether the record's switch, once started, has not ended yet."""

    def stop(self, record: Record) -> None:
        """End a started switch and see its end.

        Raises:
            CommandError: it can't be ended.
            PhaseInterrupted: shutdown.
        """

    def cancel(self, record: Record) -> None:
        """End the wait of a delayed launch that has been withdrawn.

        Raises:
            CommandError: the platform refused; the withdrawn record still can't start.
        """

    def end_strays(self) -> None:
        """End the switches of ours that run although no record says so, where the platform knows them.

        Raises:
            CommandError: one can't be ended.
            PhaseInterrupted: shutdown.
        """
