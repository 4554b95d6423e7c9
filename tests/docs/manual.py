"""Writes the commands and examples in packaging/man/nixfleet-agent.8 from `--help`: `python -m tests.docs.manual`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from nixfleet_agent.cli import COMMANDS
from nixfleet_agent.commands.invocation import Parser
from tests.docs.said import parser_of

PAGE = Path(__file__).resolve().parents[2] / "packaging" / "man" / "nixfleet-agent.8"
BEGIN = '.\\" from the help of the commands: python -m tests.docs.manual\n'
END = '.\\" end of what is from the help\n'


def roff(text: str) -> str:
    """``text`` for a line of roff: no dash becomes a hyphen, no quote ends an argument, no dot begins a request."""
    shown = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq").replace("'", "\\(aq")
    return f"\\&{shown}" if shown.startswith(".") else shown


def own_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The flags and arguments that only this command has."""
    common = {"help", "config", "json", "debug"}
    return [a for a in parser._actions if a.dest not in common and not a.dest.startswith(("config:", "retired:"))]


def synopsis(parser: argparse.ArgumentParser) -> str:
    """What may follow the command, as in ``[--until T]``."""
    parts: list[str] = []
    said: set[argparse.Action] = set()
    together = {action: group for group in parser._mutually_exclusive_groups for action in group._group_actions}
    for action in own_actions(parser):
        if action in said:
            continue
        group = together.get(action)
        actions = group._group_actions if group else [action]
        said.update(actions)
        words = " | ".join(_words(item) for item in actions)
        required = group.required if group else action.required
        parts.append(f"{{{words}}}" if required and group else words if required else f"[{words}]")
    return " ".join(parts)


def _words(action: argparse.Action) -> str:
    names = action.option_strings[-1:] + ([str(action.metavar or action.dest)] if action.nargs != 0 else [])
    return " ".join(names)


def _described(parser: argparse.ArgumentParser) -> Iterator[str]:
    """One paragraph for each flag, argument and sub-command."""
    for action in own_actions(parser):
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield ".TP"
                yield f".B {roff(f'{name} {synopsis(inner)}'.strip())}"
                yield roff(str(inner.description))
        else:
            yield ".TP"
            yield f".B {roff(_words(action))}"
            yield roff(str(action.help) % {"default": action.default})


def commands() -> Iterator[str]:
    """The sections that the page takes from the parsers."""
    examples: list[str] = []
    yield ".SH COMMANDS"
    for command in COMMANDS:
        parser: Parser = parser_of(command)
        examples += parser.examples
        yield ".TP"
        yield f".B {roff(f'{command} {synopsis(parser)}'.strip())}"
        yield from (roff(line) for line in str(parser.description).splitlines())
        if inner := list(_described(parser)):
            yield from (".RS", *inner, ".RE")
    yield ".SH EXAMPLES"
    yield ".nf"
    yield from (roff(line) for line in examples)
    yield ".fi"


def page(text: str) -> str:
    """``text`` with those sections renewed."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n".join(commands()) + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
