"""Where configuration comes from: the TOML file, the environment, the flags; each value keeps its origin."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nixfleet_agent.config import retired
from nixfleet_agent.config.schema import (
    CONFIG_VARIABLE,
    ENVIRONMENT_ALIASES,
    ENVIRONMENT_PREFIX,
    Key,
    Schema,
    flatten,
    nested,
)
from nixfleet_agent.errors import ConfigError
from nixfleet_agent.reading import read_regular
from nixfleet_agent.text import printable

DEFAULT_FILE = Path("/etc/nixfleet/agent.toml")
#: A configuration is a few KiB; the limit keeps a wrong path (a disk image, a log) from filling the memory.
FILE_LIMIT = 1024 * 1024
#: The parser's time grows with the square of a dotted key's parts: 64 KiB of "a.a.a" took 25 s.
_DOTS_LIMIT = 500


class ConfigProblemsError(ConfigError):
    """Everything that is wrong with the configuration; the message is the first, and how many more there are."""

    def __init__(self, problems: list[str]) -> None:
        more = len(problems) - 1
        rest = f" (and {more} more: nixfleet-agent check lists them)" if more else ""
        super().__init__(problems[0] + rest)
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Setting:
    """One value; ``origin`` is a file, ``NIXFLEET_AGENT_... (environment)`` or a flag, ``subject`` how to call it."""

    value: Any
    origin: str
    subject: str


def from_file(path: Path, schema: Schema) -> dict[str, Setting]:
    """The settings in the TOML file at ``path``.

    Raises:
        ConfigProblemsError: unreadable, no TOML, or a value that the schema refuses.
    """
    tree = _parse(_read(path), path)

    def subject(name: str) -> str:
        return f"{name!r} in {path}"

    if problems := schema.problems(tree, subject):
        raise ConfigProblemsError(problems)
    return {name: Setting(value, str(path), subject(name)) for name, value in flatten(tree).items()}


def from_environment(environ: Mapping[str, str], schema: Schema) -> dict[str, Setting]:
    """The settings in ``NIXFLEET_AGENT_*``; an empty variable counts as not set, as unit files leave it.

    Raises:
        ConfigProblemsError: an unknown variable or a bad value.
    """
    by_variable = {key.variable: key for key in schema.keys.values()}
    by_variable |= {alias: schema.keys[name] for alias, name in ENVIRONMENT_ALIASES.items()}
    settings: dict[str, Setting] = {}
    problems: list[str] = []
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == CONFIG_VARIABLE or not text:
            continue
        if variable in retired.VARIABLES:
            continue
        if variable not in by_variable:
            known = {name.removeprefix(ENVIRONMENT_PREFIX): name for name in by_variable}
            near = difflib.get_close_matches(variable.removeprefix(ENVIRONMENT_PREFIX), known, 1)
            advice = f": did you mean {known[near[0]]}?" if near else ": unset it, or see conf/agent.toml for every key"
            problems.append(f"unknown variable {variable} in the environment{advice}")
            continue
        setting = Setting(text, f"{variable} (environment)", f"{variable} in the environment")
        _take(by_variable[variable], setting, schema, settings, problems)
    if problems:
        raise ConfigProblemsError(problems)
    return settings


def from_flags(flags: Mapping[str, str], schema: Schema) -> dict[str, Setting]:
    """The settings given as flags, by dotted key; a relative path is taken from the current folder.

    Raises:
        ConfigProblemsError: a bad value.
    """
    settings: dict[str, Setting] = {}
    problems: list[str] = []
    for name, text in flags.items():
        key = schema.keys[name]
        # A variable of systemd's is not a name in this folder: see ``load``.
        relative = key.kind == "path" and text and not text.startswith("$")
        value = str(Path(text).absolute()) if relative else text
        _take(key, Setting(value, key.flag, key.flag), schema, settings, problems)
    if problems:
        raise ConfigProblemsError(problems)
    return settings


def _take(key: Key, setting: Setting, schema: Schema, settings: dict[str, Setting], problems: list[str]) -> None:
    value = _READ.get(key.kind, str)(setting.value)
    found = schema.problems(nested(key.name, value), lambda _: setting.subject)
    problems += found
    if not found:
        settings[key.name] = Setting(value, setting.origin, setting.subject)


def _number(text: str) -> Any:
    """``text`` as a number, or as it is: then the schema says that a number was wanted."""
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


def _boolean(text: str) -> Any:
    """``text`` as true or false, or as it is: then the schema says that one of them was wanted."""
    return {"true": True, "false": False}.get(text, text)


def _list(text: str) -> list[str]:
    """The items of a list, between semicolons: those of some lists have commas in them."""
    return [item.strip() for item in text.split(";") if item.strip()]


#: How the text of a variable or flag becomes a value, by the kind of its key.
_READ: dict[str, Callable[[str], Any]] = {"number": _number, "boolean": _boolean, "array": _list}


def _read(path: Path) -> bytes:
    try:
        raw = read_regular(path, FILE_LIMIT)
    except OSError as error:
        reason = f"{error.strerror}{_advice(error)}"
        raise ConfigProblemsError([f"can't read the configuration {path}: {reason}"]) from error
    if len(raw) > FILE_LIMIT:
        raise ConfigProblemsError(
            [f"the configuration {path} is larger than {FILE_LIMIT} bytes: is it the right file?"]
        )
    return raw


def _advice(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return ": run it as root"
    if isinstance(error, IsADirectoryError):
        return ": give the path of a TOML file"
    if isinstance(error, FileNotFoundError):
        return ": give its path with --config, or write one (conf/agent.toml has every key)"
    return ""


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    if any(line.count(b".") > _DOTS_LIMIT for line in raw.splitlines()):
        raise ConfigProblemsError([f"{path} is not a configuration: it has a line of more than {_DOTS_LIMIT} dots"])
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise ConfigProblemsError([f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8"]) from error
    except RecursionError as error:
        raise ConfigProblemsError([f"{path} is not a configuration: it is nested too deeply"]) from error
    except ValueError as error:
        said = printable(str(error), 300)
        # Python's words for it do not say what it means.
        twice = ": it is there twice" if said.startswith(("Cannot overwrite", "Cannot declare")) else ""
        raise ConfigProblemsError([f"{path} is not valid TOML: {said}{twice}"]) from error
