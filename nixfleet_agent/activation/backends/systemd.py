"""NixOS: a transient unit, which survives the agent's end, and a transient timer for the guard."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from nixfleet_agent.activation import host
from nixfleet_agent.activation.backends.base import LAUNCH_SECS, SHELL
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import CommandError
from nixfleet_agent.activation.nix import said_by
from nixfleet_agent.activation.records import SWITCH_UNITS, Record
from nixfleet_agent.activation.scripts import WRAPPER
from nixfleet_agent.text import printable

#: From SIGTERM to SIGKILL for a unit that is stopped.
STOP_SECS = 10
_SYSTEMCTL_SECS = 60.0
_STEP_SECS = 0.05
_ACTIVE = frozenset({"active", "activating", "deactivating", "reloading"})
#: Set by systemd for the agent's own unit; a transient unit gets its own.
_UNIT_VARIABLES = frozenset(
    {"INVOCATION_ID", "JOURNAL_STREAM", "MANAGERPID", "MAINPID", "SYSTEMD_EXEC_PID", "MEMORY_PRESSURE_WATCH"}
    | {"MEMORY_PRESSURE_WRITE", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "LOGS_DIRECTORY"}
    | {"CACHE_DIRECTORY", "CONFIGURATION_DIRECTORY"}
)
#: What systemd takes for a variable. One that it does not (a function exported by bash, bytes that are no text) would
#: have it refuse the whole unit, so that no release and no rollback could ever start.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NO_CHARACTERS = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_VALUE = re.compile(f"[^\\0-\\x08\\x0b-\\x1f\\x7f\\ud800-\\udfff\\ufdd0-\\ufdef{_NO_CHARACTERS}]*")


class SystemdBackend:
    """One unit name per direction; the unit is not collected, so that ``systemctl status`` shows how it ended."""

    method = "systemd-run"

    def __init__(self, context: Context) -> None:
        self._context = context

    def command(self, system: Path, action: str) -> list[str]:
        return [str(system / "bin/switch-to-configuration"), action]

    def dry_run(self, system: Path) -> list[str] | None:
        return self.command(system, "dry-activate")

    def launch(self, record: Record, command: list[str], delay: float = 0) -> None:
        unit = record.intent.unit
        self._clear(unit, timed=bool(delay))
        wrapper = [SHELL, str(record.path.parent / WRAPPER), "run", str(record.path), "0", *command]
        timer = [f"--on-active={delay:g}s", "--timer-property=AccuracySec=1s"] if delay else []
        # Names only: systemd-run takes the values from its environment, not from a command line that all can read.
        arguments = [
            "systemd-run",
            f"--unit={unit}",
            "--quiet",
            "--no-ask-password",
            f"--description=nixfleet-agent: {record.intent.direction} to {record.intent.target}",
            f"--property=TimeoutStopSec={STOP_SECS}",
            *timer,
            *(f"--setenv={name}" for name in self._variables()),
            "--",
            *wrapper,
        ]
        # A shutdown may leave before the answer: the record, not systemd-run, decides whether it has started.
        done = self._context.run(arguments, timeout=LAUNCH_SECS, check=self._only_shutdown)
        if done.returncode != 0:
            raise CommandError(f"systemd-run --unit={unit} failed ({done.returncode}): {said_by(done)}")

    def alive(self, record: Record) -> bool:
        identity = record.started
        if identity is None or not host.same_boot(record.intent.boot, self._context.machine.boot_id()):
            return False
        found = self._context.machine.process(identity.pid)
        return found is not None and found.start == identity.start

    def stop(self, record: Record) -> None:
        try:
            self._systemctl("stop", f"{record.intent.unit}.service")
        except CommandError:
            if self.alive(record):
                raise
        clock = self._context.clock
        deadline = clock.monotonic() + STOP_SECS
        while self.alive(record):  # stopped by systemd, but still in the kernel's table
            if clock.monotonic() >= deadline:
                raise CommandError(f"{record.intent.unit}.service does not end, not even by SIGKILL")
            self._context.pause(_STEP_SECS, fired=True)

    def cancel(self, record: Record) -> None:
        self._systemctl("stop", f"{record.intent.unit}.timer")

    def _variables(self) -> list[str]:
        """Names of the agent's variables that the unit gets."""
        given = {name: value for name, value in self._context.environment.items() if name not in _UNIT_VARIABLES}
        taken = [name for name, value in given.items() if _NAME.fullmatch(name) and _VALUE.fullmatch(value)]
        if left_out := sorted(given.keys() - set(taken)):
            self._context.log.info(
                "systemd does not take these variables for a unit: %s", printable(" ".join(left_out), 300)
            )
        return taken

    def end_strays(self) -> None:
        """A wiped state folder leaves such a unit, and so does a wrapper that was killed: its script may go on."""
        self._end_active([f"{unit}.service" for unit in SWITCH_UNITS])

    def _clear(self, unit: str, *, timed: bool) -> None:
        """Free the unit's name, which may have failed, and end what runs of ours although no record says so."""
        own = [f"{unit}.timer", f"{unit}.service"] if timed else [f"{unit}.service"]
        if timed:
            self._end_active(own)
        else:
            self.end_strays()
        for name in own:
            self._context.run(["systemctl", "reset-failed", name], timeout=_SYSTEMCTL_SECS, check=self._only_shutdown)

    def _end_active(self, names: Iterable[str]) -> None:
        for name in names:
            if self._state(name) in _ACTIVE:
                self._stop_unless_gone(name)

    def _stop_unless_gone(self, name: str) -> None:
        """A unit that ends by itself, a moment before it would be stopped, is not loaded any more: nothing to stop."""
        try:
            self._systemctl("stop", name)
        except CommandError:
            if self._state(name) in _ACTIVE:
                raise

    def _state(self, name: str) -> str:
        done = self._context.run(["systemctl", "is-active", name], timeout=_SYSTEMCTL_SECS, check=self._only_shutdown)
        return done.stdout.decode("utf-8", "replace").strip()

    def _systemctl(self, verb: str, name: str) -> None:
        done = self._context.run(["systemctl", verb, name], timeout=_SYSTEMCTL_SECS, check=self._only_shutdown)
        if done.returncode != 0:
            raise CommandError(f"systemctl {verb} {name} failed ({done.returncode}): {said_by(done)}")

    def _only_shutdown(self) -> None:
        self._context.check(fired=True)
