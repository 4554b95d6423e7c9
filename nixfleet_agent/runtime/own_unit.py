"""The service that runs this agent: what it starts now, whether that is another agent, and whether this one is ready.

No switch restarts the agent, which watches the switch. So systemd may long know a unit that starts another program,
with other arguments or another environment, before the agent that runs makes room for it.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent.activation import processes
from nixfleet_agent.activation.errors import CommandError
from nixfleet_agent.config.schema import CONFIG_VARIABLE
from nixfleet_agent.config.sources import DEFAULT_FILE
from nixfleet_agent.text import printable
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.trouble import Trouble

log = logging.getLogger("nixfleet_agent.own_unit")

_ASK_TIMEOUT_SECS = 10.0
#: What an answer may take once the agent stops: a switch that has just ended still asks whether it brought another one.
_LAST_ANSWER_SECS = 0.5
_ANSWER_LIMIT = 1024 * 1024
_WORDS_LIMIT = 300
_COMMAND = re.compile(r"path=(.*?) ; argv\[\]=(.*?) ;")
_OPTIONAL = " (ignore_errors=yes)"
_ASKED = ("ExecStart", "Environment", "EnvironmentFiles")


@dataclass(frozen=True, slots=True)
class UnitChanged:
    """Sent to the main thread: the unit starts ``command`` now, and this process is to make room for it."""

    command: str


@dataclass(frozen=True, slots=True)
class UnitStart:
    """What a unit starts: its command, its variables, and the files of more variables (path, may be missing).

    ``places`` is where the links to the program, the configuration and these files lead: in a system of NixOS each
    leads into the store, so another content is another place. A file that is edited where it lies changes nothing.
    """

    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[Path, bool], ...] = ()
    places: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(self.command)


class OwnUnit:
    """Asks systemd about the service ``name``, of which this process, ``pid``, is the main one. Any thread may ask.

    ``stopping`` says whether the agent ends, so that no question keeps it.
    """

    def __init__(self, name: str, pid: int, clock: Clock, stopping: Callable[[], bool]) -> None:
        self.name = name
        self._pid = str(pid)
        self._clock = clock
        self._stopping = stopping
        self._trouble = Trouble(log, f"can't ask systemd about {name}")
        self._started = self.ask()

    @classmethod
    def of_this_process(cls, clock: Clock, stopping: Callable[[], bool]) -> OwnUnit | None:
        """None under another init system, or in a terminal."""
        name = own_unit(os.environ, os.getpid())
        return None if name is None else cls(name, os.getpid(), clock, stopping)

    def ask(self) -> UnitStart | None:
        """What the unit starts now; None when systemd does not say."""
        said = self._show(*_ASKED)
        return None if said is None else parse(said)

    def differs(self) -> bool:
        """Whether the unit starts something else than it started this process with, as far as systemd says."""
        return self._started is not None and self.ask() != self._started

    def changed(self) -> UnitStart | None:
        """What the unit starts now, where that is something else; None also when systemd does not say."""
        start = self.ask()
        # The first answer is what started this process: it is asked for at the start.
        self._started = self._started or start
        return None if start == self._started else start

    def is_ready(self) -> bool:
        """Whether systemd counts this very process as up, so that it has heard READY from it."""
        said = self._show("ActiveState", "MainPID") or ""
        return set(said.split()) == {"ActiveState=active", f"MainPID={self._pid}"}

    def _show(self, *properties: str) -> str | None:
        arguments = ["systemctl", "show", *(f"--property={name}" for name in properties), "--", self.name]
        began = self._clock.monotonic()

        def check() -> None:
            if self._stopping() and self._clock.monotonic() - began > _LAST_ANSWER_SECS:
                raise CommandError("it does not answer, and the agent stops")

        try:
            done = processes.read(
                arguments, os.environ, clock=self._clock, timeout=_ASK_TIMEOUT_SECS, check=check, limit=_ANSWER_LIMIT
            )
            if done.returncode != 0:
                words = " ".join(done.stderr.decode(errors="replace").split())
                raise CommandError(f"systemctl show ended with {done.returncode}: {printable(words, _WORDS_LIMIT)}")
            said = done.stdout.decode()
        except (CommandError, UnicodeDecodeError) as error:
            self._trouble.failed(error)
            return None
        self._trouble.over()
        return said


def parse(said: str) -> UnitStart | None:
    """What ``systemctl show`` says of a unit; None when it has no command."""
    lines = [line.partition("=")[::2] for line in said.splitlines()]
    match = next((found for name, value in lines if name == "ExecStart" and (found := _COMMAND.search(value))), None)
    if match is None:
        return None
    command = (match[1], *_words(match[2])[1:])
    variables = [word.partition("=")[::2] for name, value in lines if name == "Environment" for word in _words(value)]
    files = [
        (Path(value.partition(" (ignore_errors=")[0]), value.endswith(_OPTIONAL))
        for name, value in lines
        if name == "EnvironmentFiles" and value
    ]
    named = (command[0], _configuration(command, dict(variables)), *(str(path) for path, _ in files))
    return UnitStart(command, tuple(sorted(variables)), tuple(files), tuple(os.path.realpath(place) for place in named))


def own_unit(environ: Mapping[str, str], pid: int, cgroup: Path = Path("/proc/self/cgroup")) -> str | None:
    """The service that this process is the main process of; None under another init system, or in a terminal."""
    if environ.get("SYSTEMD_EXEC_PID") != str(pid):
        return None
    try:
        name = cgroup.read_text().strip().rpartition("/")[2]
    except OSError:
        return None
    return name if name.endswith(".service") else None


def _configuration(command: tuple[str, ...], variables: Mapping[str, str]) -> str:
    for flag, value in zip(command, (*command[1:], ""), strict=True):
        if flag == "--config":
            return value
        if flag.startswith("--config="):
            return flag.partition("=")[2]
    return variables.get(CONFIG_VARIABLE) or str(DEFAULT_FILE)


def _words(text: str) -> list[str]:
    """Systemd shows a list with its words quoted where need be."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()
