"""``init``: this host's configuration, from flags or from answers on the terminal."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.commands import check
from nixfleet_agent.commands.checks import SYSTEMD_RUNS
from nixfleet_agent.commands.invocation import BOLD, RED, Invocation, Parser
from nixfleet_agent.config.load import load
from nixfleet_agent.config.schema import Schema, example
from nixfleet_agent.config.sources import DEFAULT_FILE, ConfigProblemsError, from_flags
from nixfleet_agent.errors import EXIT_USAGE, AgentError, StorageError

#: For everybody to read: it names files with secrets and holds none.
MODE = 0o644
#: Key -> the question; a key whose question ends in a bracket may be left empty.
_QUESTIONS = {
    "control_plane_url": "Where does the control plane listen (https://HOST:PORT)?",
    "machine_id": "This host's name in the fleet?",
    "ca_cert": "The CA of the control plane's certificate (a PEM file; empty: the system's CAs)",
    "bootstrap_token_file": "The file with this host's bootstrap token (empty: it has its certificate already)",  # nosec B105
}
_REQUIRED = ("control_plane_url", "machine_id")
#: A line of the example that sets a key, or would if it were not commented out.
_KEY_LINE = re.compile(r"#?(\w+) = ")


class MissingAnswersError(AgentError):
    """Nobody was there to be asked."""

    exit_code = EXIT_USAGE


def configure(parser: Parser) -> None:
    parser.details(
        "Asks on a terminal for what the flags do not say. The file has every key with its meaning; what is not asked"
        " for keeps its default. Then `check` looks at the host, and its exit code is the one of this command: with 1"
        " something is still missing, and the file is written all the same."
    )
    parser.example(
        "nixfleet-agent init",
        "nixfleet-agent init --control-plane-url https://cp.example:8443 --machine-id web-01",
        "nixfleet-agent init --force",
    )
    parser.add_argument("--force", action="store_true", help="replace what is there; it stays beside it as FILE.old")


def run(call: Invocation) -> int:
    """The exit code of ``check``.

    Raises:
        AgentError: there is a file already, or an answer is missing.
        ConfigProblemsError: a flag has a value that the agent would refuse.
        StorageError: the file can't be written; what was there is as it was.
    """
    path = Path(getattr(call.options, "config", DEFAULT_FILE)).absolute()
    _may_be_written(path, force=call.options.force)
    flags = {name.partition(":")[2]: text for name, text in vars(call.options).items() if name.startswith("config:")}
    _judge(flags)
    answers = flags | _ask(call, flags)
    _write(path, render(answers), force=call.options.force)
    if not call.json:
        call.print(f"{path} is written.", BOLD)
    code = check.report(call, check.of_the_host(load(path, call.environ, {})))
    if not call.json:
        start = "systemctl enable --now nixfleet-agent" if SYSTEMD_RUNS.is_dir() else "service nixfleet-agent start"
        call.print(f"Once `nixfleet-agent check` finds nothing more: {start}")
    return code


def render(flags: Mapping[str, str]) -> str:
    """The example with the values of ``flags``, by key; every other key is commented out with its default."""
    settings = from_flags(flags, Schema())
    lines, table = [], False
    for line in example().splitlines():
        table = table or line.startswith("[")
        found = _KEY_LINE.match(line)
        if found and not table and found[1] in settings:
            line = f"{found[1]} = {json.dumps(settings[found[1]].value, ensure_ascii=False)}"
        elif found:
            line = f"#{line.removeprefix('#')}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _judge(flags: Mapping[str, str]) -> None:
    """Raise ConfigProblemsError when the agent would refuse one of ``flags``; a required one may still be missing."""
    load(None, {}, {"control_plane_url": "https://cp", "machine_id": "host", **flags}, default=None)


def _ask(call: Invocation, flags: Mapping[str, str]) -> dict[str, str]:
    """What the flags leave open, from whoever sits at the terminal."""
    missing = [key for key in _REQUIRED if key not in flags]
    if call.json or sys.stdin is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        if missing:
            names = " and ".join("--" + key.replace("_", "-") for key in missing)
            raise MissingAnswersError(f"nobody is at a terminal to be asked: give {names}")
        return {}
    if not missing:
        return {}
    answers = {key: _answer(call, key) for key in _QUESTIONS if key not in flags}
    return {key: text for key, text in answers.items() if text}


def _answer(call: Invocation, key: str) -> str:
    """One answer that the agent takes, asked for until it is given; empty where it may be left out."""
    default = socket.gethostname().partition(".")[0] if key == "machine_id" else ""
    while True:
        call.print(_QUESTIONS[key] + (f" [{default}]" if default else ""))
        try:
            text = input("> ").strip() or default
        except EOFError as error:
            raise MissingAnswersError("the answers ended too early: nothing is written") from error
        if not text and key not in _REQUIRED:
            return ""
        try:
            _judge({key: text})
        except ConfigProblemsError as error:
            call.print(error.problems[0], RED)
        else:
            return text


def _may_be_written(path: Path, *, force: bool) -> None:
    if path.is_symlink():
        raise AgentError(f"{path} is a link to {path.readlink()}: whoever made it writes it (on NixOS, the module)")
    if not force and os.path.lexists(path):
        raise AgentError(f"{path} is there already: edit it, or --force replaces it")


def _write(path: Path, text: str, *, force: bool) -> None:
    durable.make_directory(path.parent, 0o755)
    if force and path.exists():
        durable.write(path.with_name(f"{path.name}.old"), path.read_bytes(), MODE)
    try:
        durable.write(path, text.encode("utf-8"), MODE, replace=force)
    except StorageError as error:
        if error.errno == errno.EEXIST:
            raise AgentError(f"somebody else has just written {path}: look at it") from error
        raise
