"""Hosts without systemd, and containers: a session of its own, by a shell that leaves at once."""

from __future__ import annotations

import signal
from pathlib import Path

from nixfleet_agent.activation import host, processes
from nixfleet_agent.activation.backends.base import LAUNCH_SECS, SHELL
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import CommandError
from nixfleet_agent.activation.nix import said_by
from nixfleet_agent.activation.records import Identity, Record
from nixfleet_agent.activation.scripts import WRAPPER

#: From the friendly signal to the other one, for a script in the middle of something.
STOP_SECS = 10.0
#: Killed processes are gone within milliseconds, and a disarmed guard stands between a switch and its success.
_STEP_SECS = 0.005


class SetsidBackend:
    """The launching shell leads a new session and ends; the wrapper stays in it and belongs to init."""

    method = "setsid"

    def __init__(self, context: Context) -> None:
        self._context = context

    def command(self, system: Path, action: str) -> list[str]:
        return [str(system / "bin/switch-to-configuration"), action]

    def dry_run(self, system: Path) -> list[str] | None:
        return self.command(system, "dry-activate")

    def launch(self, record: Record, command: list[str], delay: float = 0) -> None:
        wrapper = record.path.parent / WRAPPER
        arguments = [SHELL, str(wrapper), "detach", str(record.path), f"{delay:g}", *command]
        # Not to be interrupted: the launcher's group is the switch's group.
        done = self._context.run(arguments, timeout=LAUNCH_SECS, check=_never)
        if done.returncode != 0:
            raise CommandError(f"{SHELL} {wrapper} failed ({done.returncode}): {said_by(done)}")
        if delay:
            self._await_waiting(record)

    def alive(self, record: Record) -> bool:
        identity = record.started
        return identity is not None and self._of_this_boot(record) and self._lives(identity)

    def stop(self, record: Record) -> None:
        identity = record.started
        if identity is not None and self._of_this_boot(record):
            self._end(identity)

    def cancel(self, record: Record) -> None:
        identity = record.waiting
        if identity is not None and self._of_this_boot(record):
            self._end(identity)

    def end_strays(self) -> None:
        """Without its record a process is nobody's."""

    def _await_waiting(self, record: Record) -> None:
        """A guard counts as armed once its process has said that it waits."""
        deadline = self._context.clock.monotonic() + LAUNCH_SECS
        while record.waiting is None and record.started is None:
            if self._context.clock.monotonic() >= deadline:
                raise CommandError(f"the delayed start of {record.path.name} did not begin within {LAUNCH_SECS:g} s")
            self._context.pause(_STEP_SECS, fired=True)

    def _of_this_boot(self, record: Record) -> bool:
        """By the agent's own word: in a container the wrapper may see another boot id than the agent does."""
        return host.same_boot(record.intent.boot, self._context.machine.boot_id())

    def _lives(self, identity: Identity) -> bool:
        """The wrapper itself, or, when only it was killed, what it ran."""
        found = host.process(identity.pid)
        if found is not None and found.start == identity.start:
            return True
        # The group's leader was the launcher, which left at once: one that lives is another group of the same number.
        return host.process(identity.group) is None and bool(host.group_members(identity.group))

    def _end(self, identity: Identity) -> None:
        clock = self._context.clock
        for number, patience in ((signal.SIGTERM, STOP_SECS), (signal.SIGKILL, STOP_SECS)):
            if not self._lives(identity):
                return
            processes.signal_group(identity.group, number)
            deadline = clock.monotonic() + patience
            while self._lives(identity) and clock.monotonic() < deadline:
                self._context.pause(_STEP_SECS, fired=True)
        if self._lives(identity):
            raise CommandError(f"process group {identity.group} does not end, not even by SIGKILL")


def _never() -> None:
    """The work at hand is not to be interrupted."""
