"""Tries the agent that the unit starts now by itself, before the one that runs makes room for it.

Its own ``check --offline``, with the arguments and the environment that the unit gives it: in a process group and with
a time of its own, inside the sandbox of the service. It opens no network and nothing that belongs to the running agent.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from string import Template
from typing import Any

from nixfleet_agent.activation import processes
from nixfleet_agent.activation.errors import CommandError
from nixfleet_agent.errors import EXIT_OK, EXIT_USAGE, ProtoError
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.reading import read_regular
from nixfleet_agent.runtime.own_unit import UnitStart
from nixfleet_agent.text import clip_tail
from nixfleet_agent.threads.clock import Clock

#: How long a try may take, in seconds; on an idle host it takes half a second.
LIMIT_SECS = 60.0
_FILE_LIMIT = 1024 * 1024
_TAIL_BYTES = 400
#: What a service gets of systemd's own environment, so that it need not stand in the unit.
_GIVEN = ("PATH", "LANG", "CREDENTIALS_DIRECTORY")
_CHECK = ("check", "--offline", "--json")


class Verdict(Enum):
    """What a try has shown."""

    GOOD = "it can start"
    BAD = "it can't start"
    UNTRIED = "it is too old to be tried"


@dataclass(frozen=True, slots=True)
class Trial:
    """The verdict, and why when it is not a good one."""

    verdict: Verdict
    words: str = ""


def try_successor(
    start: UnitStart,
    clock: Clock,
    check: Callable[[], None],
    base: Mapping[str, str] = os.environ,
    limit: float = LIMIT_SECS,
) -> Trial:
    """Run the check of what ``start`` starts. ``check`` is called in between and may raise to end it."""

    def run(*arguments: str) -> processes.Finished:
        command = [start.command[0], *_CHECK, *arguments]
        return processes.run(command, environment, clock=clock, timeout=limit, check=check)

    try:
        environment = environment_of(start, base)
        done = run(*(Template(word).safe_substitute(environment) for word in _arguments(start)))
        if done.returncode == EXIT_USAGE and run().returncode == EXIT_USAGE:
            return Trial(Verdict.UNTRIED, f"{start.command[0]} does not know check --offline")
    except CommandError as error:
        return Trial(Verdict.BAD, str(error))
    except OSError as error:
        return Trial(Verdict.BAD, f"can't read {error.filename}: {error.strerror}")
    return judge(start, done)


def judge(start: UnitStart, done: processes.Finished) -> Trial:
    """What the check's end and its findings mean."""
    findings = _findings(done.stdout)
    failed = {str(each.get("what")): str(each.get("text")) for each in findings if each.get("level") == "fail"}
    of_today = any(finding.get("what") == "program" for finding in findings)
    if findings and not of_today and "configuration" not in failed:
        return Trial(Verdict.UNTRIED, f"the check of {start.command[0]} is of an older kind")
    if findings and done.returncode == EXIT_OK:
        return Trial(Verdict.GOOD)
    words = "; ".join(f"{what}: {text}" for what, text in failed.items())
    words = words or " ".join(clip_tail(done.stderr or done.stdout, _TAIL_BYTES).split()) or "it said nothing"
    ended = f"exit code {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
    return Trial(Verdict.BAD, f"{words} ({ended} of {start.command[0]} check --offline)")


def environment_of(start: UnitStart, base: Mapping[str, str]) -> dict[str, str]:
    """The environment that the unit gives its program (raises OSError: a file of variables can't be read)."""
    environment = {name: base[name] for name in _GIVEN if name in base} | dict(start.environment)
    for path, optional in start.files:
        try:
            environment |= _variables(path)
        except FileNotFoundError:
            if not optional:
                raise
    return environment


def _variables(path: Path) -> dict[str, str]:
    """A file of ``NAME=value`` lines, as systemd.exec(5) has them: comments, quotes, and lines that go on."""
    text = read_regular(path, _FILE_LIMIT).decode("utf-8", "replace").replace("\\\n", "")
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith(("#", ";")):
            try:
                found[name.strip()] = " ".join(shlex.split(value)) if value[:1] in "'\"" else value.strip()
            except ValueError:
                found[name.strip()] = value
    return found


def _arguments(start: UnitStart) -> tuple[str, ...]:
    """What the unit gives the agent, without the command that runs it."""
    words = start.command[1:]
    index = words.index("run") if "run" in words else len(words)
    return words[:index] + words[index + 1 :]


def _findings(raw: bytes) -> list[Mapping[str, Any]]:
    try:
        found = loads_strict(raw)
    except ProtoError:
        return []
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
