"""What is asked of the host around a reboot: who blocks it, who is logged in; a warning to them, and the reboot itself.

Each question is bounded. A host without systemd's login manager has no blockers, and its users are those of who(1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nixfleet_agent.activation import processes
from nixfleet_agent.activation.errors import CommandError
from nixfleet_agent.activation.machine import Run
from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.text import clip, printable
from nixfleet_agent.threads.clock import Clock

_TIMEOUT_SECS = 20.0
_WORDS_LIMIT = 300
#: org.freedesktop.login1(5): an array of (what, who, why, mode, uid, pid).
_INHIBITORS = (
    *("busctl", "call", "--json=short", "org.freedesktop.login1", "/org/freedesktop/login1"),
    *("org.freedesktop.login1.Manager", "ListInhibitors"),
)
_BLOCKING = {"block", "block-weak"}
#: Sessions that are nobody's who would lose work (pam_systemd(8)).
_NO_USER = {"manager", "manager-early", "greeter", "lock-screen", "background", "background-light"}


@dataclass(frozen=True, slots=True)
class RebootHost:
    """``check`` may raise to end what runs (shutdown); ``environment`` is what the agent's children get."""

    clock: Clock
    environment: Mapping[str, str]
    check: Callable[[], None]
    start: Run = processes.run

    def blockers(self) -> tuple[str, ...]:
        """Who blocks a shutdown, each as ``who (why)``."""
        said = self._ask(_INHIBITORS)
        return parse_inhibitors(said) if said is not None else ()

    def users(self) -> tuple[str, ...]:
        """Who is logged in, each once."""
        said = self._ask(("loginctl", "list-sessions", "--no-legend", "--no-pager"))
        if said is not None:
            return parse_sessions(said)
        said = self._ask(("who",))
        return tuple(sorted({line.split()[0] for line in (said or "").splitlines() if line.split()}))

    def warn(self, text: str) -> str | None:
        """Tell everybody who is logged in; why it could not be told."""
        return self._do(("wall", printable(text, _WORDS_LIMIT)))

    def reboot(self) -> str | None:
        """Ask for an orderly reboot; why it was refused."""
        return self._do(("systemctl", "reboot"))

    def _ask(self, arguments: Sequence[str]) -> str | None:
        """What it says; None where it is not there, or can't say."""
        try:
            done = self._run(arguments)
        except CommandError:
            return None
        return done.stdout.decode(errors="replace") if done.returncode == 0 else None

    def _do(self, arguments: Sequence[str]) -> str | None:
        try:
            done = self._run(arguments)
        except CommandError as error:
            return str(error)
        said = printable(" ".join((done.stderr or done.stdout).decode(errors="replace").split()), _WORDS_LIMIT)
        return None if done.returncode == 0 else said or f"{arguments[0]} ended with {done.returncode}"

    def _run(self, arguments: Sequence[str]) -> processes.Finished:
        return self.start(arguments, self.environment, clock=self.clock, timeout=_TIMEOUT_SECS, check=self.check)


def parse_inhibitors(said: str) -> tuple[str, ...]:
    """Those that block a shutdown, of busctl's answer; an answer of another form blocks nothing."""
    try:
        (rows,) = loads_strict(said.encode())["data"]
        blocking = [row for row in rows if "shutdown" in row[0].split(":") and row[3] in _BLOCKING]
        return tuple(clip(printable(f"{row[1]} ({row[2]})"), _WORDS_LIMIT) for row in blocking)
    except (ProtoError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return ()


def parse_sessions(said: str) -> tuple[str, ...]:
    """The users of loginctl's sessions: session, uid, user, and columns that differ between versions."""
    rows = (line.split() for line in said.splitlines())
    return tuple(sorted({row[2] for row in rows if len(row) > 2 and not _NO_USER.intersection(row[3:])}))
