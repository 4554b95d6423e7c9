"""The probe declarations file, read fail-closed: what can't be understood becomes a probe that fails and says why.

A declaration that was skipped would let a release converge unprobed. So a file that can't be read as a whole is one
enforce probe that fails, a bad declaration in a good file is an enforce probe of its own name that fails, and only an
absent file is an empty set.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.probes.declarations import (
    DEFAULT_INTERVAL,
    FILE_PROBE,
    BadDecl,
    DeclaredProbes,
    ExecDecl,
    HttpDecl,
    ProbeDecl,
    TcpDecl,
)
from nixfleet_agent.probes.fields import COMMON_KEYS, KIND_KEYS, parse_one
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.state_machine.states import Mode
from nixfleet_agent.text import printable

FILE_LIMIT = 1024 * 1024
#: Each probe is a thread, and the topology is one event: 10,000 took 40 s to start and 46 s to stop.
PROBES_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One line about the declarations file.

    ``fails`` when it makes a probe fail each time, ``unknown`` when it is about a word that this agent does not know.
    """

    text: str
    fails: bool = False
    unknown: bool = False


def parse(raw: bytes | None, min_interval: float) -> DeclaredProbes:
    """The probes that ``raw``, the content of the declarations file, declares; None (no such file) declares none.

    Never raises: see the module's rule. ``min_interval`` is the floor of every interval, in seconds.
    """
    if raw is None:
        return DeclaredProbes()
    try:
        declarations = read_object(raw)
    except ProtoError as error:
        return broken(str(error), min_interval)
    probes: dict[str, ProbeDecl] = {}
    renamed: dict[str, ProbeDecl] = {}
    for name, declaration in declarations.items():
        decl = parse_one(name, declaration, min_interval)
        (probes if decl.name == name else renamed)[decl.name] = decl
    # A name that had to be cut may now equal another one: the failing declaration is the one that counts.
    return DeclaredProbes(tuple((probes | renamed).values()))


def broken(reason: str, min_interval: float) -> DeclaredProbes:
    """What stands for a file that can't be read: one enforce probe that fails with ``reason``."""
    interval = max(DEFAULT_INTERVAL, min_interval)
    return DeclaredProbes((BadDecl(name=FILE_PROBE, reason=reason, interval=interval),), broken=True)


def read_object(raw: bytes) -> dict[str, dict[str, Any]]:
    """The file as an object of objects.

    Raises:
        ProtoError: it is something else; the message says what.
    """
    value = loads_strict(raw, limit=FILE_LIMIT, what=FILE_PROBE)
    if not isinstance(value, dict):
        raise ProtoError(f"{FILE_PROBE} is not a JSON object of declarations")
    for name, declaration in value.items():
        if not isinstance(declaration, dict):
            raise ProtoError(f"{FILE_PROBE}: the declaration of {printable(name, 80)!r} is not a JSON object")
    if len(value) > PROBES_LIMIT:
        raise ProtoError(f"{FILE_PROBE} declares {len(value)} probes, and the limit is {PROBES_LIMIT}")
    return value


def lint(raw: bytes, min_interval: float) -> list[Finding]:
    """One finding for each thing in the declarations file that fails, is ignored, or is not what its author meant."""
    try:
        declarations = read_object(raw)
    except ProtoError as error:
        return [Finding(str(error), fails=True)]
    findings = []
    for name, fields in declarations.items():
        shown, decl = printable(name, 80) or "(no name)", parse_one(name, fields, min_interval)
        if isinstance(decl, BadDecl):
            hint = _hint(fields.get("kind"), KIND_KEYS)
            runs = decl.mode is not Mode.DISABLED
            effect = (
                "it fails each time, as an enforce probe" if runs else "it is disabled, and would fail if it were not"
            )
            findings.append(Finding(f"{shown}: {decl.reason}{hint}; {effect}", fails=runs))
        findings += [Finding(f"{shown}: {text}", unknown=True) for text in _unknown_words(fields)]
        findings += [Finding(f"{shown}: {text}") for text in _oddities(fields, decl, min_interval)]
    return findings


def _unknown_words(fields: Mapping[str, Any]) -> Iterator[str]:
    yield from _key_findings(fields)
    yield from _mode_findings(fields)


def _oddities(fields: Mapping[str, Any], decl: ProbeDecl, min_interval: float) -> Iterator[str]:
    asked = fields.get("intervalSeconds")
    if isinstance(asked, (int, float)) and not isinstance(asked, bool) and asked < min_interval:
        yield f"intervalSeconds {asked:g} is below the floor and counts as {min_interval:g}"
    limit = _time_limit(decl)
    if limit is not None and limit > decl.interval and not decl.run_once:
        yield f"its limit of {limit:g} s is longer than its interval of {decl.interval:g} s: a slow run delays the next"
    if isinstance(decl, ExecDecl) and not decl.command[0].startswith("/"):
        found = printable(decl.command[0], 80)
        yield f"command {found!r} is not an absolute path: it is looked up in the PATH of the service, which is short"


def _key_findings(fields: Mapping[str, Any]) -> Iterator[str]:
    kind = fields.get("kind")
    used = COMMON_KEYS | (KIND_KEYS.get(kind, frozenset()) if isinstance(kind, str) else frozenset())
    every = COMMON_KEYS.union(*KIND_KEYS.values())
    for key in fields:
        if key in used:
            continue
        if key not in every:
            yield f"unknown key {printable(key, 80)!r} is ignored{_hint(key, used)}"
        elif used > COMMON_KEYS:
            yield f"key {key!r} means nothing to kind {kind!r} and is ignored{_hint(key, used)}"


def _mode_findings(fields: Mapping[str, Any]) -> Iterator[str]:
    modes = [("mode", fields.get("mode"))]
    for key in ("controls", "controlOverrides"):
        entries = fields.get(key)
        for control, entry in entries.items() if isinstance(entries, dict) else ():
            if isinstance(entry, dict):
                modes.append((f"mode of {key}.{printable(control, 80)}", entry.get("mode")))
                for extra in sorted(entry.keys() - {"mode", "reason"}):
                    yield f"unknown key {printable(extra, 80)!r} in {key} is ignored{_hint(extra, ('mode', 'reason'))}"
    for where, value in modes:
        if value is not None and value not in list(Mode):
            yield f"{where} {printable(value, 80)!r} is not known and counts as enforce{_hint(value, list(Mode))}"


def _time_limit(decl: ProbeDecl) -> float | None:
    if isinstance(decl, (HttpDecl, ExecDecl)):
        return decl.timeout
    return decl.connect_timeout if isinstance(decl, TcpDecl) else None


def _hint(given: object, known: Iterable[str]) -> str:
    if not isinstance(given, str) or given in known:
        return ""
    near = difflib.get_close_matches(given.lower(), {word.lower(): word for word in known}, n=1, cutoff=0.6)
    return f" (did you mean '{next(word for word in known if word.lower() == near[0])}'?)" if near else ""
