"""One call of one command: its parsed arguments, its configuration, and how it prints."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nixfleet_agent.config.retired import FLAGS as RETIRED_FLAGS
from nixfleet_agent.config.retired import warning as retired_warning
from nixfleet_agent.errors import EXIT_OK, EXIT_USAGE
from nixfleet_agent.output import CONFIG_FLAGS, PROGRAM, write_stdout
from nixfleet_agent.text import printable

if TYPE_CHECKING:
    from nixfleet_agent.config.load import Loaded
    from nixfleet_agent.config.model import Config

#: ANSI colours.
RED, GREEN, YELLOW, BOLD = "31", "32", "33", "1"


class Parser(argparse.ArgumentParser):
    """One line for a mistake, and the flags that every command and sub-command takes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)  # a shortened flag in a unit file would change meaning with a new one
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        common = self.add_argument_group("after any command")
        absent = argparse.SUPPRESS
        common.add_argument(
            "--config", metavar="FILE", type=Path, default=absent, help="default: /etc/nixfleet/agent.toml"
        )
        common.add_argument("--json", action="store_true", default=absent, help="print JSON, for scripts")
        common.add_argument("--debug", action="store_true", default=absent, help="a traceback with an error")
        # Every command takes them; only where they are the point does the help list them: they would bury the others'.
        listed = self.prog in (f"{PROGRAM} run", f"{PROGRAM} init")
        flags = self.add_argument_group("configuration (a flag beats NIXFLEET_AGENT_*, which beats the file)")
        for key, summary in CONFIG_FLAGS.items():
            flag = "--" + key.replace("_", "-")
            shown = summary if listed else absent
            flags.add_argument(flag, dest=f"config:{key}", metavar="VALUE", default=absent, help=shown)
        for flag in RETIRED_FLAGS:
            flags.add_argument(flag, dest=f"retired:{flag}", metavar="VALUE", default=absent, help=absent)
        self._closing = "" if listed else f"The flags of `{PROGRAM} run` that set the configuration are accepted too."
        self.epilog = self._closing
        #: Command lines as somebody would type them; for the help and the manual.
        self.examples: tuple[str, ...] = ()

    def details(self, text: str) -> None:
        """Sentences that follow the summary in the help and the manual."""
        self.description = textwrap.fill(f"{self.description} {text}", 80)

    def example(self, *lines: str) -> None:
        """Command lines to show with the help; a test runs each."""
        self.examples = lines
        shown = "\n".join(["examples:", *(f"  {line}" for line in lines)])
        self.epilog = f"{shown}\n\n{self._closing}".rstrip()

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}: see {self.prog} --help")


def add_action(actions: Any, name: str, summary: str) -> Parser:
    """A sub-command: its line in the command's help, and its own."""
    parser: Parser = actions.add_parser(name, help=summary, description=sentence(summary))
    return parser


def sentence(summary: str) -> str:
    """The text ``what it does`` as the sentence ``What it does.`` of a help page."""
    return f"{summary[:1].upper()}{summary[1:]}."


class UsageError(Exception):
    """The arguments make no sense; the message is one line."""


@dataclass(frozen=True)
class Invocation:
    """What a command's ``run`` gets."""

    options: argparse.Namespace
    environ: Mapping[str, str]

    @property
    def json(self) -> bool:
        return bool(getattr(self.options, "json", False))

    @property
    def debug(self) -> bool:
        return bool(getattr(self.options, "debug", False))

    @cached_property
    def loaded(self) -> Loaded:
        """The configuration with its origins (raises ConfigProblemsError)."""
        return self.load_again()

    def load_again(self) -> Loaded:
        """The configuration as its sources are now.

        Raises:
            ConfigProblemsError: the configuration can't be used.
        """
        from nixfleet_agent.config.load import load

        flags = {
            name.partition(":")[2]: value for name, value in vars(self.options).items() if name.startswith("config:")
        }
        return load(getattr(self.options, "config", None), self.environ, flags)

    @property
    def retired(self) -> str | None:
        """What to say of settings that are accepted and mean nothing here; None without any."""
        flags = [name.partition(":")[2] for name in vars(self.options) if name.startswith("retired:")]
        return retired_warning(self.environ, flags)

    @property
    def config(self) -> Config:
        return self.loaded.config

    def print(self, text: str = "", colour: str = "") -> None:
        """One or more lines; whatever a terminal could act on is escaped, for much of it comes from outside."""
        for line in text.split("\n"):
            write_stdout(self.colour(printable(line, 16384), colour) if colour else printable(line, 16384))

    def print_json(self, value: object) -> None:
        write_stdout(json.dumps(value, indent=2, ensure_ascii=True, default=str))

    def colour(self, text: str, code: str) -> str:
        """``text`` in an ANSI colour, on a terminal whose user did not say ``NO_COLOR``."""
        if (
            sys.stdout is not None
            and sys.stdout.isatty()
            and not self.environ.get("NO_COLOR")
            and self.environ.get("TERM") != "dumb"
        ):
            return f"\x1b[{code}m{text}\x1b[0m"
        return text

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print rows in columns; what came from outside is escaped."""
        shown = [[printable(cell, 300) for cell in row] for row in [head, *rows]]
        widths = [max(len(row[i]) for row in shown) for i in range(len(head))]
        for row in shown:
            write_stdout("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def parse(
    command: str,
    summary: str,
    configure: Callable[[Parser], None],
    arguments: Sequence[str],
    environ: Mapping[str, str],
) -> Invocation | int:
    """The invocation, or the exit code when there is nothing to run (help, a usage error)."""
    parser = Parser(prog=f"{PROGRAM} {command}", description=sentence(summary))
    try:
        configure(parser)
        return Invocation(parser.parse_args(arguments), environ)
    except UsageError as error:
        print(f"{PROGRAM}: {printable(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except SystemExit:
        return EXIT_OK  # argparse has printed the help
