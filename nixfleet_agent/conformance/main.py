"""The command line of the conformance driver: ``python -m nixfleet_agent.local_cp --conformance``."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.conformance.ages import AGES
from nixfleet_agent.conformance.stand import INSTALLED, Settings, Stand, Subject
from nixfleet_agent.conformance.stories import GOOD_DAYS, RENEWAL
from nixfleet_agent.conformance.trouble import SUMMING_UP, TROUBLE
from nixfleet_agent.conformance.verdicts import Story, Verdict
from nixfleet_agent.demo.closures import System
from nixfleet_agent.demo.errors import DemoError
from nixfleet_agent.demo.fleet import require_tools
from nixfleet_agent.demo.processes import remove_tree
from nixfleet_agent.errors import EXIT_CHECK_FAILED, EXIT_OK, EXIT_USAGE, AgentError
from nixfleet_agent.output import PROGRAM, write_stdout
from nixfleet_agent.text import printable
from nixfleet_agent.threads.interrupts import terminable, uninterrupted

STORIES = (*GOOD_DAYS, AGES, *TROUBLE, RENEWAL)
INTERRUPTED = 130
MOST_SECS = 86400.0

EPILOG = """\
It starts a control plane with mutual TLS, a CI that signs, a signed binary cache and one host with a Nix store of its
own, has the agent enroll there, gives it good, bad and forged releases, cuts it off, kills it, and loses what it was
told. Every row of the table is judged from the requests of the agent and from what runs on the host. Exit code 0 only
when all rows hold; Nix is needed, root and a NixOS host are not.

another agent:
  --agent takes the command that starts it, with these words in braces for where things are:
    {places}

    python -m nixfleet_agent.local_cp --conformance --agent 'rust-agent --control-plane-url {{control_plane_url}}
      --machine-id {{machine_id}} --trust-file {{trust_file}} --ca-cert {{ca_cert}} --client-cert {{client_cert}}
      --client-key {{client_key}} --bootstrap-token-file {{bootstrap_token_file}} --state-dir {{state_dir}}'

  The command runs without a shell, in {{root}}, with NIX_REMOTE, NIX_CONFIG and what the switch scripts need in its
  environment. It is started again when it ends. An agent with fixed paths sees the host's through mounts of its own:

    --agent "unshare --mount sh -c 'mount --bind {{root}}/run /run && mount --bind {{root}}/store/nix /nix &&
      mount --bind {{root}}/profiles /nix/var/nix/profiles && NIX_REMOTE= exec rust-agent ...'"

  Its probes are in {{health_checks_file}}, the same for every release. One whose intervals can't be changed needs
  --patience 300 and a --certificate-secs of ten minutes or more.

stories: {stories}
"""


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, as everywhere."""

    def error(self, message: str) -> None:  # type: ignore[override]
        print(f"{PROGRAM}: {printable(message, 400)}: see --conformance --help", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def main(arguments: Sequence[str]) -> int:
    """Try an agent and print the table; the process's exit code."""
    try:
        options = parser().parse_args(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    try:
        settings = Settings(
            agent=options.agent,
            patience=options.patience,
            settle=options.settle,
            certificate=options.certificate_secs,
        )
        _check_command(options.agent)
        stories = chosen(options.story)
        with terminable():
            verdicts = _try(options.dir, settings, stories, quiet=options.json)
    except KeyboardInterrupt:
        print("interrupted: every process is ended", file=sys.stderr)
        return INTERRUPTED
    except AgentError as error:
        print(f"{PROGRAM}: {printable(str(error), 1000)}", file=sys.stderr)
        return error.exit_code
    if options.json:
        write_stdout(json.dumps(document(verdicts), indent=1))
    else:
        write_stdout(*table(verdicts))
    return EXIT_CHECK_FAILED if any(verdict.problem for verdict in verdicts) else EXIT_OK


def chosen(names: Sequence[str]) -> list[Story]:
    """The stories of these names in their order, all without any; enrolling and summing up belong to every choice."""
    wanted = [story for story in STORIES if not names or story.name in names or story is GOOD_DAYS[0]]
    return [*wanted, SUMMING_UP]


def _try(folder: Path | None, settings: Settings, stories: Sequence[Story], *, quiet: bool) -> list[Verdict]:
    """Set the stand up, tell the stories, and end everything. The folder goes unless it was asked for."""
    require_tools(Path(tempfile.gettempdir()) if folder is None else _parent(folder), 1)
    place = Path(tempfile.mkdtemp(prefix="nixfleet-conformance-")).resolve() if folder is None else _made(folder)
    systems = [System(INSTALLED), *(system for story in stories for system in story.systems)]
    verdicts: list[Verdict] = []
    stand = None
    try:
        stand = Stand(place, settings, {system.version: system for system in systems})
        for story in stories:
            if not quiet:
                print(f"{story.name}: {story.title}", file=sys.stderr, flush=True)
            verdicts += story.verdicts(stand)
        return verdicts
    finally:
        with uninterrupted():
            if stand is not None:
                stand.close()
            if folder is None:
                remove_tree(place)


def table(verdicts: Sequence[Verdict]) -> list[str]:
    """The rows for people, and a last line that counts them."""
    rows = [(v.story, v.row, "pass" if v.problem is None else "FAIL", v.says) for v in verdicts]
    widths = [max(len(row[column]) for row in [("STORY", "ROW", "", ""), *rows]) for column in range(3)]
    lines = []
    for row, verdict in zip([("STORY", "ROW", "", "WHAT"), *rows], [None, *verdicts], strict=True):
        lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))
        if verdict is not None and verdict.problem is not None:
            lines.append(f"{' ' * (sum(widths) + 6)}{printable(verdict.problem, 400)}")
    failed = sum(1 for verdict in verdicts if verdict.problem)
    lines.append(f"{len(verdicts) - failed} of {len(verdicts)} rows hold" + (f", {failed} do not" if failed else ""))
    return lines


def document(verdicts: Sequence[Verdict]) -> dict[str, object]:
    """The rows for programs."""
    return {
        "ok": not any(verdict.problem for verdict in verdicts),
        "rows": [
            {"story": v.story, "row": v.row, "says": v.says, "ok": v.problem is None, "problem": v.problem}
            for v in verdicts
        ],
    }


def parser() -> argparse.ArgumentParser:
    defaults = Settings()
    names = [story.name for story in STORIES]
    made = _Parser(
        prog="python -m nixfleet_agent.local_cp --conformance",
        description="Drives an agent through the stories of the protocol and prints what holds of it.",
        epilog=EPILOG.format(places=_wrapped(Subject.PLACES), stories=_wrapped(names)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--conformance", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--agent", metavar="COMMAND", help="what starts the agent (default: this one)")
    made.add_argument(
        "--story", action="append", default=[], choices=names, metavar="NAME", help="only this; repeatable"
    )
    made.add_argument("--dir", type=Path, metavar="PATH", help="a new folder for the files, which stays")
    made.add_argument("--json", action="store_true", help="the table as JSON")
    for name, default, what in (
        ("--patience", defaults.patience, "how long anything may take"),
        ("--settle", defaults.settle, "how long nothing must happen where nothing should"),
        ("--certificate-secs", defaults.certificate, "the life of a certificate, which it must renew in time"),
    ):
        made.add_argument(name, type=_seconds, default=default, metavar="SECS", help=f"{what} (default: {default:g})")
    return made


def _wrapped(words: Sequence[str]) -> str:
    """At most 100 characters a line."""
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > 100:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n    ".join(lines)


def _check_command(template: str | None) -> None:
    """Raises DemoError where the command can't be made, or its program is not there."""
    if template is None:
        return
    try:
        words = [word.format_map(dict.fromkeys(Subject.PLACES, "x")) for word in shlex.split(template)]
    except KeyError as error:
        raise DemoError(f"--agent: {{{error.args[0]}}} is not known: use {', '.join(Subject.PLACES)}") from error
    except (ValueError, IndexError) as error:
        raise DemoError(f"--agent: {error}: write braces that are meant as such twice") from error
    if not words:
        raise DemoError("--agent: there is no command: give the program that starts the agent")
    if shutil.which(words[0]) is None:
        raise DemoError(f"--agent: {words[0]} is not a program here: give its path")


def _parent(folder: Path) -> Path:
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _made(folder: Path) -> Path:
    """The folder, which must be new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DemoError(f"{folder} is not an empty folder: choose another --dir")
    durable.make_directory(folder)
    return folder.resolve()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from error
    if math.isnan(seconds) or not 0 < seconds <= MOST_SECS:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0 to {MOST_SECS:.0f} seconds")
    return seconds
