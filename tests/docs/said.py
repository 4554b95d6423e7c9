"""What the program can be told and can say: flags, and log lines with `…` for what is filled in."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nixfleet_agent.cli import COMMANDS, module_of
from nixfleet_agent.commands.invocation import Parser, sentence

PACKAGE = Path(__file__).resolve().parents[2] / "nixfleet_agent"
#: Parts that no host runs as its agent.
_ELSEWHERE = ("local_cp", "demo")
_FILLED_IN = re.compile(r"%(?:\.\d)?[sdf]")


def template(text: str) -> str:
    """``text`` of a logging call as the documentation writes it."""
    return _FILLED_IN.sub("…", text)


def _calls() -> Iterator[ast.Call]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] not in _ELSEWHERE:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def error_lines() -> set[str]:
    """Templates of what is logged at error; those that are nothing but another message are left out."""
    found = set()
    for call in _calls():
        function = call.func
        if (
            isinstance(function, ast.Attribute)
            and function.attr in ("error", "exception", "critical")
            and "log" in ast.unparse(function.value)
            and call.args
            and isinstance(call.args[0], ast.Constant)
        ):
            found.add(template(str(call.args[0].value)))
    return found - {"…"}


def all_lines() -> set[str]:
    """Templates of every first argument that is text, and of what is said as it changes: what a line may come from."""
    return {template(text) for call in _calls() if (text := _text(call, 0)) is not None} | {
        f"{text}: …"
        for call in _calls()
        if ast.unparse(call.func) == "Trouble" and (text := _text(call, 1)) is not None
    }


def _text(call: ast.Call, position: int) -> str | None:
    argument = call.args[position] if len(call.args) > position else None
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else None


def flags_of(command: str) -> set[str]:
    """The command's own flags, its sub-commands' included; not those that are only accepted."""
    parsers, flags = [parser_of(command)], set()
    while parsers:
        for action in parsers.pop()._actions:
            if not action.dest.startswith("retired:"):
                flags |= {flag for flag in action.option_strings if flag.startswith("--")}
            if action.nargs == "A..." and isinstance(action.choices, dict):
                parsers += action.choices.values()
    return flags


def parser_of(command: str) -> Parser:
    """The parser of a command, as the command line makes it."""
    module: Any = importlib.import_module(module_of(command))
    parser = Parser(prog=f"nixfleet-agent {command}", description=sentence(COMMANDS[command]))
    module.configure(parser)
    return parser
