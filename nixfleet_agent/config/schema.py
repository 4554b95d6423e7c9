"""The keys that can be configured, read off ``agent.schema.json``, and what is wrong with a value in plain words."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import jsonschema

#: Prefix of the environment variables; the rest is the key in capitals, its table first.
ENVIRONMENT_PREFIX = "NIXFLEET_AGENT_"
#: Names that the Rust agent gave its variables and that differ from the rule.
ENVIRONMENT_ALIASES = {"NIXFLEET_AGENT_CP_URL": "control_plane_url"}
#: Where the file itself is, which no key of the file can say.
CONFIG_VARIABLE = "NIXFLEET_AGENT_CONFIG"


@dataclass(frozen=True, slots=True)
class Key:
    """One key; ``name`` has its table before a dot (``logging.level``), ``kind`` is path, number, boolean, choice,
    array or text.
    """

    name: str
    kind: str

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.replace(".", "_").upper()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


class Schema:
    """``agent.schema.json``, shipped with the package."""

    def __init__(self) -> None:
        resource = resources.files("nixfleet_agent") / "conf" / "schemas" / "agent.schema.json"
        self._document: dict[str, Any] = json.loads(resource.read_text(encoding="utf-8"))
        self._validator = jsonschema.Draft202012Validator(self._document)

    @cached_property
    def keys(self) -> Mapping[str, Key]:
        """Every key by its dotted name, in the order of the schema."""
        return {key.name: key for key in _leaves(self._document, "")}

    def problems(self, tree: Mapping[str, Any], subject: Callable[[str], str]) -> list[str]:
        """One sentence for each thing wrong in ``tree``; ``subject`` turns a dotted key into what to call it."""
        found = [sentence for error in self._validator.iter_errors(tree) for sentence in self._phrase(error, subject)]
        for name, value in flatten(tree).items():
            if isinstance(value, float) and not math.isfinite(value):
                found.append(f"{subject(name)} must be a finite number, is {value}")
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and not text.isprintable():
                    found.append(f"{subject(name)} contains a character that can't be printed: {text!a}")
        return found

    def _phrase(self, error: jsonschema.ValidationError, subject: Callable[[str], str]) -> Iterator[str]:
        table = ".".join(str(part) for part in error.absolute_path)
        limit, value = error.validator_value, error.instance
        match error.validator:
            case "additionalProperties":
                known = error.schema["properties"]
                for name in value:
                    if name not in known:
                        dotted = f"{table}.{name}" if table else name
                        yield f"unknown key {subject(dotted)}{self.hint(dotted)}"
            case "type":
                yield f"{subject(table)} must be {_TYPES[limit]}, is {_shown(value)}"
            case "enum":
                near = difflib.get_close_matches(str(value), limit, 1)
                choices = ", ".join(limit[:-1]) + f" or {limit[-1]}"
                yield f"{subject(table)} must be {choices}, is {_shown(value)}" + (
                    f": did you mean {near[0]!r}?" if near else ""
                )
            case "minLength":
                yield f"{subject(table)} is empty: set it, or leave it out"
            case "maxItems":
                yield f"{subject(table)} has more than {limit} entries"
            case "maxLength":
                yield f"{subject(table)} is longer than {limit} characters"
            case validator:
                yield f"{subject(table)} must be {_BOUNDS[str(validator)]} {limit}, is {_shown(value)}"

    def hint(self, unknown: str) -> str:
        """`` : did you mean ...?`` for the nearest known key, or where the list of keys is."""
        inside, _, last = unknown.rpartition(".")
        leaf = {name: name.rpartition(".")[2] for name in self.keys}
        there = [leaf[name] for name in self.keys if inside and name.startswith(f"{inside}.")]
        word = last.replace("-", "_").lower()
        near = [name for name in self.keys if leaf[name] == last]
        near = near or [f"{inside}.{name}" for name in difflib.get_close_matches(word, there, 1)]
        near = near or ([] if inside else difflib.get_close_matches(word, self.keys, 1))
        near = near or [name for name in self.keys if difflib.get_close_matches(last, [leaf[name]], 1, 0.75)]
        if not near and there:
            return f": [{inside}] has {', '.join(there)}"
        if not near:
            return ": see conf/agent.toml for every key"
        table, _, name = near[0].rpartition(".")
        return f": did you mean {name!r} in [{table}]?" if table else f": did you mean {name!r}?"


def example() -> str:
    """``agent.toml`` with every key, its meaning and its default, shipped with the package."""
    return (resources.files("nixfleet_agent") / "conf" / "agent.toml").read_text(encoding="utf-8")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested tables by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def nested(name: str, value: object) -> dict[str, Any]:
    """The tree with the one leaf ``name``."""
    table, _, leaf = name.rpartition(".")
    return {table: {leaf: value}} if table else {leaf: value}


_TYPES = {
    "string": "a string in quotes",
    "number": "a number",
    "boolean": "true or false",
    "object": "a table",
    "array": "a list",
}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


def _leaves(schema: Mapping[str, Any], prefix: str) -> Iterator[Key]:
    for name, inner in schema["properties"].items():
        if "properties" in inner:
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            kind = "choice" if "enum" in inner else inner.get("format") or inner["type"]
            yield Key(prefix + name, {"string": "text"}.get(kind, kind))


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    return ascii(value)[:80]
