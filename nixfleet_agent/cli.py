"""The command line: finds the command, reads its arguments, and turns failures into one line and an exit code.

A command's module is imported only when it is the one asked for: ``--version`` and ``--help`` stay fast.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nixfleet_agent import __version__
from nixfleet_agent.config.retired import FLAGS as RETIRED_FLAGS
from nixfleet_agent.errors import EXIT_CHECK_FAILED, EXIT_INTERNAL, EXIT_OK, EXIT_USAGE, AgentError
from nixfleet_agent.output import CONFIG_FLAGS, PROGRAM, mute_stdout, write_stdout
from nixfleet_agent.text import printable

#: Every command, in the order that ``--help`` shows them.
COMMANDS = {
    "run": "the agent itself (for the init system)",
    "init": "write this host's configuration, and check it",
    "status": "what the running agent knows and does",
    "watch": "this host live, as status shows it",
    "why": "in a paragraph: what this host waits for, since when, and what would unblock it",
    "check": "look at configuration, keys, certificate, probes, Nix and reachability",
    "probe": "run the declared health probes once",
    "history": "the events of a rollout on this host",
    "diff": "what would change: packages, sizes and units between what runs and what comes",
    "rehearse": "verify, fetch and look at what comes, change nothing, and say whether it would begin",
    "log": "what a switch has said, also while it runs",
    "hold": "start no new activation for now",
    "release": "end a hold",
    "run-now": "let the next activation begin outside the maintenance windows",
    "rollback": "retry or give up a rollback that keeps failing",
    "boot-check": "whether the release that this boot brought has proved itself",
    "quarantine": "closures that this host refuses",
    "queue": "events that the control plane has not taken",
    "enroll": "get this host's certificate",
    "renew": "renew this host's certificate",
    "import-state": "take over what the Rust agent left on this host",
    "verify": "verify a signed fleet or manifest offline",
    "support": "collect what a bug report needs in one archive, without secrets",
    "demo": "a whole fleet on this machine",
}

_VALUE_FLAGS = {"--config", *("--" + key.replace("_", "-") for key in CONFIG_FLAGS), *RETIRED_FLAGS}


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run one command; returns its exit code and never raises for what an operator can cause."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if sys.stderr is None:  # closed by the caller: print() would take stdout for it
        sys.stderr = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that has no letter for a name in a reason
    try:
        code = _run(arguments, os.environ if environ is None else environ)
        write_stdout(flush=True)
        return code
    except AgentError as error:
        # A durable write says what the system said; what to do about it depends on who asked.
        advice = ": run it as root" if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM) else ""
        return _fail(f"{error}{advice}", error.exit_code, debug)
    except BrokenPipeError:
        # The reader (head, less) went away; nothing more can be said on stdout.
        mute_stdout()
        return EXIT_CHECK_FAILED
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        if isinstance(error, PermissionError):
            return _fail(f"{error.strerror}:{where}: run it as root", EXIT_CHECK_FAILED, debug)
        return _fail(f"{error.strerror or error}{where}", EXIT_INTERNAL, debug)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, debug)
    except Exception as error:  # noqa: BLE001 - the last line of defence: whatever it is, one line and exit 70
        advice = "" if debug else "; run it again with --debug and report what it prints"
        return _fail(f"internal error: {type(error).__name__}: {error}{advice}", EXIT_INTERNAL, debug)


def split_command(arguments: list[str]) -> tuple[str | None, list[str]]:
    """(command, its arguments); flags may stand before the command, and flags alone mean ``run``.

    None when help is wanted.
    """
    index = 0
    while index < len(arguments) and arguments[index].startswith("-"):
        flag, equals, _ = arguments[index].partition("=")
        if flag in ("-h", "--help"):
            return None, []
        index += 2 if flag in _VALUE_FLAGS and not equals else 1
    if index < len(arguments):
        return arguments[index], arguments[:index] + arguments[index + 1 :]
    return ("run", arguments) if arguments else (None, [])


def module_of(command: str) -> str:
    """The dotted name of the module that runs a command."""
    return f"nixfleet_agent.commands.{command.replace('-', '_')}"


def overview() -> str:
    """What ``--help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [arguments]",
            "",
            "The host agent of a NixOS fleet.",
            "",
            *lines,
            "",
            "After any command: --config FILE, --json, --debug, --help. Flags alone, without a command, mean run.",
            "Exit codes: 0 done, 1 check failed, 2 usage, 69 control plane unreachable, 70 internal error,",
            "75 state directory in use, 77 enrollment refused, 78 configuration.",
        ]
    )


def _run(arguments: list[str], environ: Mapping[str, str]) -> int:
    """The exit code of what the arguments ask for; raises whatever goes wrong."""
    if arguments and arguments[0] in ("--version", "-V"):
        write_stdout(f"{PROGRAM} {__version__}")
        return EXIT_OK
    command, rest = split_command(arguments)
    if command is None and arguments:
        write_stdout(overview())
        return EXIT_OK
    if command is None:
        print(overview(), file=sys.stderr)
        return EXIT_USAGE
    if command not in COMMANDS:
        return _fail(f"unknown command '{printable(command, 80)}'{_nearest(command)}", EXIT_USAGE)
    from nixfleet_agent.commands import invocation

    module: Any = importlib.import_module(module_of(command))
    call = invocation.parse(command, COMMANDS[command], module.configure, rest, environ)
    code: int = call if isinstance(call, int) else module.run(call)
    return code


def _fail(message: str, code: int, debug: bool = False) -> int:
    if debug and sys.exc_info()[1] is not None:
        traceback: Any = importlib.import_module("traceback")
        traceback.print_exc()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        mute_stdout()  # the message below is the one that is heard
    print(f"{PROGRAM}: {printable(message)}", file=sys.stderr)
    return code


def _nearest(command: str) -> str:
    difflib: Any = importlib.import_module("difflib")
    near = difflib.get_close_matches(command, COMMANDS, 1)
    return f": did you mean {near[0]!r}?" if near else f": see {PROGRAM} --help"
