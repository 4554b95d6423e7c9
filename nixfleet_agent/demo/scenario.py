"""What a demo tells: a scenario, read from a small file of steps and of how every host should end.

The shipped ones are ``conf/scenarios/*.toml``; any other is named by its path. Everything is checked here, so that
a story that begins can be told to its end.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import jsonschema

from nixfleet_agent.demo.errors import ScenarioError

#: What ``demo`` tells when nothing is asked for.
PLAIN = "plain"
#: What can go wrong, by the argument of ``--fault``: the scenario of the same name.
FAULTS = ("kill", "partition", "slow", "wipe-cp", "forgetful-cp", "bad-signature", "stale", "wrong-closure")
#: The system that every host is installed with.
INSTALLER = "v0"
#: In ``end``: the host was never given this release.
NEVER = "none"
_SIZE_LIMIT = 256 * 1024
_HOSTS = "hosts"


@dataclass(frozen=True, slots=True)
class Step:
    """One verb of ``demo.story``, and its arguments."""

    do: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class End:
    """Where these hosts end: the version that runs and boots, and by version the state or ``NEVER``.

    ``proven`` is what the hosts' files must prove beside it: versions by the name of a proof (``demo.proofs``).
    """

    hosts: str
    runs: str
    rollouts: Mapping[str, str]
    proven: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole story. ``versions`` are all that need a closure, in order; ``certificate_secs`` None is the usual.

    ``broken`` versions fail their health check; those in ``new_dbus`` and ``new_init`` bring another D-Bus, or another
    interface to init, and so take a reboot.
    """

    name: str
    title: str
    agents: int
    versions: tuple[str, ...]
    broken: frozenset[str]
    soak_secs: float
    certificate_secs: float | None
    steps: tuple[Step, ...]
    end: tuple[End, ...]
    new_dbus: frozenset[str] = frozenset()
    new_init: frozenset[str] = frozenset()


def shipped() -> dict[str, str]:
    """Name -> title of the scenarios that come with the program."""
    return {path.name.removesuffix(".toml"): load(path.name.removesuffix(".toml")).title for path in _files()}


def load(name_or_path: str) -> Scenario:
    """The scenario of that name, or the one in the file at that path.

    Raises:
        ScenarioError: there is none, or something in it is wrong; the message names the file and the key.
    """
    known = {path.name.removesuffix(".toml"): path for path in _files()}
    place: Traversable | Path = known.get(name_or_path) or Path(name_or_path)
    if isinstance(place, Path) and name_or_path not in known and "/" not in name_or_path and not place.exists():
        near = difflib.get_close_matches(name_or_path, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else "see nixfleet-agent demo --list-scenarios"
        raise ScenarioError(f"no scenario {name_or_path!r}: {hint}")
    name = name_or_path if name_or_path in known else Path(name_or_path).stem
    where = f"scenario {name}" if name_or_path in known else name_or_path
    tree = _parse(where, place)
    problem = next(_problems(tree), None)
    if problem is not None:
        raise ScenarioError(f"{where}: {problem}")
    return _scenario(name, tree)


def _files() -> list[Traversable]:
    folder = resources.files("nixfleet_agent") / "conf" / "scenarios"
    return sorted((path for path in folder.iterdir() if path.name.endswith(".toml")), key=lambda path: path.name)


def _parse(where: str, place: Traversable | Path) -> dict[str, Any]:
    try:
        with place.open("rb") as file:
            raw = file.read(_SIZE_LIMIT + 1)
        if len(raw) > _SIZE_LIMIT:
            raise ScenarioError(f"{where} is larger than {_SIZE_LIMIT >> 10} KiB: a scenario is a small file")
        return tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise ScenarioError(f"can't read {where}: {error.strerror or error}") from error
    except ValueError as error:  # bad UTF-8 too
        raise ScenarioError(f"{where} is not TOML: {error}") from error


def _scenario(name: str, tree: Mapping[str, Any]) -> Scenario:
    steps = tuple(Step(step["do"], {k: v for k, v in step.items() if k != "do"}) for step in tree["steps"])
    released = [step.arguments[key] for step in steps for key in ("version", "closure_of") if key in step.arguments]
    certificate_secs = tree.get("certificate_secs")
    return Scenario(
        name=name,
        title=tree["title"],
        agents=tree.get("agents", 3),
        versions=tuple(dict.fromkeys([INSTALLER, *released])),
        broken=frozenset(tree.get("broken", ())),
        new_dbus=frozenset(tree.get("new_dbus", ())),
        new_init=frozenset(tree.get("new_init", ())),
        soak_secs=float(tree.get("soak_secs", 2.5)),
        certificate_secs=None if certificate_secs is None else float(certificate_secs),
        steps=steps,
        end=tuple(End(end[_HOSTS], end["runs"], end["rollouts"], end.get("proven", {})) for end in tree["end"]),
    )


def _problems(tree: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong, in plain words: first against the schema, then what no schema can say."""
    resource = resources.files("nixfleet_agent") / "conf" / "schemas" / "scenario.schema.json"
    validator = jsonschema.Draft202012Validator(json.loads(resource.read_text(encoding="utf-8")))
    # A misspelt key is named before the missing one that it was meant to be.
    errors = sorted(validator.iter_errors(tree), key=lambda error: error.validator != "additionalProperties")
    yield from map(_phrase, errors)
    released = {INSTALLER}
    down = False
    for number, step in enumerate(tree["steps"], start=1):
        where, version = f"steps[{number}]", step.get("version")
        if step["do"] == "release":
            if version == INSTALLER:
                yield f"{where}.version: {INSTALLER} is what hosts are installed with: start with v1"
            released.add(version)
        elif step["do"] in ("reach", "event", "forgotten", "runs") and version not in released:
            yield f"{where}.version: {version} has not been released before this step"
        elif step["do"] in ("kill-cp", "start-cp"):
            if down is (step["do"] == "kill-cp"):
                yield f"{where}.do: the control plane is {'down' if down else 'up'} already"
            down = not down
        elif down and step["do"] in ("partition", "slow", "tamper", "misname", "forget"):
            yield f"{where}.do: a control plane that is down can't be told to {step['do']}"
    if down:
        yield "steps: the control plane is still down after the last one: start-cp is missing"
    for number, end in enumerate(tree["end"], start=1):
        named = {"runs": [end["runs"]], "rollouts": end["rollouts"]}
        named |= {f"proven.{proof}": versions for proof, versions in end.get("proven", {}).items()}
        for key, versions in named.items():
            yield from (f"end[{number}].{key}: {v} is never released" for v in versions if v not in released)
    for key in ("broken", "new_dbus", "new_init"):
        for version in tree.get(key, ()):
            if version not in released:
                yield f"{key}: {version} is never released"


def _phrase(error: jsonschema.ValidationError) -> str:
    where = _dotted(error.absolute_path)
    limit, value = error.validator_value, error.instance
    match error.validator:
        case "additionalProperties" if limit is False:
            known = error.schema["properties"]
            unknown = next(key for key in value if key not in known)
            near = difflib.get_close_matches(unknown, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            return f"{_joined(where, unknown)}: unknown key: {hint}"
        case "required":
            missing = next(key for key in limit if key not in value)
            return f"{_joined(where, missing)} is missing"
        case "enum":
            near = difflib.get_close_matches(str(value), limit, 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            return f"{where} must be one of {', '.join(limit)}, is {_shown(value)}{hint}"
        case "type":
            return f"{where or 'the file'} must be of type {limit}, is {_shown(value)}"
        case "pattern":
            wanted = "a version such as 'v1'" if "v[0-9]" in limit else f"like {limit}"
            return f"{where} must be {wanted}, is {_shown(value)}"
        case "minItems" | "minLength":
            return f"{where} is empty"
        case "maxLength":
            return f"{where} is longer than {limit} characters"
        case "minimum":
            return f"{where} must be at least {limit}, is {_shown(value)}"
        case _:
            return f"{where} must be at most {limit}, is {_shown(value)}"


def _dotted(path: Sequence[str | int]) -> str:
    """``steps[2].version``, counted from one."""
    text = ""
    for part in path:
        text = f"{text}[{part + 1}]" if isinstance(part, int) else _joined(text, part)
    return text


def _joined(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _shown(value: object) -> str:
    return ascii(value)[:80]
