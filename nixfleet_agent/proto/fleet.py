"""`fleet.resolved` as types: what the agent reads of the signed fleet, and nothing that it does not.

Thousands of hosts are checked in bulk and kept as they were parsed; one becomes a type when it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import NoneType
from typing import Any

from nixfleet_agent.proto import schemas
from nixfleet_agent.proto.schemas import SchemaError
from nixfleet_agent.proto.times import parse_time
from nixfleet_agent.text import printable

#: The only version of the artifacts that this agent reads.
SCHEMA_VERSION = 1

#: A number of minutes that overflows a timedelta is as good as for ever.
_LONGEST_MINUTES = 100 * 366 * 24 * 60
_CHANNEL = re.compile(r"[a-z0-9_-]{1,64}")
_OPTIONAL_TEXT = frozenset({str, NoneType})


@dataclass(frozen=True, slots=True)
class Meta:
    """When and from what an artifact was signed."""

    schema_version: int | None
    signed_at: datetime | None
    ci_commit: str | None

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Meta:
        """Raises ProtoError for a ``signedAt`` that is no timestamp."""
        signed_at = value.get("signedAt")
        return cls(
            schema_version=value.get("schemaVersion"),
            signed_at=None if signed_at is None else parse_time(signed_at),
            ci_commit=value.get("ciCommit"),
        )


@dataclass(frozen=True, slots=True)
class FleetHost:
    """One host's entry."""

    system: str
    tags: tuple[str, ...]
    channel: str
    closure_hash: str | None
    pubkey: str | None


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel's entry; ``freshness_window`` is how old a signature may be."""

    rollout_policy: str
    freshness_window: timedelta
    frameworks: tuple[str, ...]
    compliance_mode: str | None


@dataclass(frozen=True, slots=True)
class Wave:
    """One wave of a channel: its hosts, and how long each of them soaks."""

    hosts: tuple[str, ...]
    soak_minutes: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """The signed intent for all hosts. ``policies`` maps a policy's name to its ``onHealthFailure``, as signed."""

    schema_version: int
    channels: Mapping[str, Channel]
    policies: Mapping[str, str]
    waves: Mapping[str, tuple[Wave, ...]]
    channels_in_use: frozenset[str]
    meta: Meta
    hosts: Mapping[str, Mapping[str, Any]]

    @classmethod
    def parse(cls, value: Any, what: str = "fleet.resolved") -> Fleet:
        """The fleet in a parsed JSON value, which must not be changed afterwards.

        Raises:
            ProtoError: it does not have the form of a fleet; the message names the place.
        """
        if not isinstance(value, dict):
            raise SchemaError(f"{what} is not a JSON object")
        schemas.check("fleet", _outer(value), what)
        hosts = value["hosts"]
        _check_hosts(hosts, what)
        for name in ("edges", "channelEdges", "disruptionBudgets"):
            if any(entry.__class__ is not dict for entry in value.get(name) or ()):
                raise SchemaError(f"{what}: {name} has an entry that is not an object")
        return cls(
            schema_version=value["schemaVersion"],
            channels={name: _channel(name, entry, what) for name, entry in value["channels"].items()},
            policies={name: entry["onHealthFailure"] for name, entry in (value.get("rolloutPolicies") or {}).items()},
            waves={name: _waves(name, entries, what) for name, entries in (value.get("waves") or {}).items()},
            channels_in_use=frozenset(entry["channel"] for entry in hosts.values()),
            meta=Meta.parse(value["meta"]),
            hosts=hosts,
        )

    def host(self, name: str) -> FleetHost | None:
        """The entry of one host, or None where the fleet does not have it."""
        entry = self.hosts.get(name)
        if entry is None:
            return None
        return FleetHost(
            system=entry["system"],
            tags=tuple(entry["tags"]),
            channel=entry["channel"],
            closure_hash=entry.get("closureHash"),
            pubkey=entry.get("pubkey"),
        )

    @property
    def freshness_window(self) -> timedelta:
        """For the fleet itself: the largest of its channels' windows; nothing where it has no channel."""
        return max((channel.freshness_window for channel in self.channels.values()), default=timedelta(0))


def _outer(value: dict[str, Any]) -> dict[str, Any]:
    """The document without its long lists: a JSON Schema takes some 10 us for each entry of one."""
    outer = dict(value)
    if isinstance(value.get("hosts"), dict):
        outer["hosts"] = {}
    for name in ("edges", "channelEdges", "disruptionBudgets"):
        if isinstance(value.get(name), list):
            outer[name] = []
    waves = value.get("waves")
    if isinstance(waves, dict):
        outer["waves"] = {name: _outer_waves(entries) for name, entries in waves.items()}
    return outer


def _outer_waves(entries: Any) -> Any:
    if not isinstance(entries, list):
        return entries
    return [
        {**entry, "hosts": []} if isinstance(entry, dict) and isinstance(entry.get("hosts"), list) else entry
        for entry in entries
    ]


def _check_hosts(hosts: Mapping[str, Any], what: str) -> None:
    """All entries at once by the set of types that each field has; only a fault is looked for one by one."""
    entries = hosts.values()
    try:
        good = (
            {entry.__class__ for entry in entries} <= {dict}
            and {entry["system"].__class__ for entry in entries} <= {str}
            and {entry["channel"].__class__ for entry in entries} <= {str}
            and {entry["tags"].__class__ for entry in entries} <= {list}
            and {tag.__class__ for entry in entries for tag in entry["tags"]} <= {str}
            and {entry.get("closureHash").__class__ for entry in entries} <= _OPTIONAL_TEXT
            and {entry.get("pubkey").__class__ for entry in entries} <= _OPTIONAL_TEXT
        )
    except KeyError:
        good = False
    if not good:
        raise SchemaError(f"{what}: {next(_bad_hosts(hosts))}")


def _bad_hosts(hosts: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in hosts.items():
        shown = f"hosts.{printable(name, 80)}"
        if not isinstance(entry, dict):
            yield f"{shown} is not an object"
            continue
        for key in ("system", "channel"):
            if not isinstance(entry.get(key), str):
                yield f"{shown}.{key} is not a string"
        if not _is_list_of_text(entry.get("tags")):
            yield f"{shown}.tags is not a list of strings"
        for key in ("closureHash", "pubkey"):
            if entry.get(key).__class__ not in _OPTIONAL_TEXT:
                yield f"{shown}.{key} is not a string"


def _channel(name: str, entry: Mapping[str, Any], what: str) -> Channel:
    if not _CHANNEL.fullmatch(name):
        # It becomes part of a rollout id, and with it of a file name.
        raise SchemaError(f"{what}: {printable(name, 80)!r} is not a valid channel name")
    compliance = entry.get("compliance") or {}
    return Channel(
        rollout_policy=entry["rolloutPolicy"],
        freshness_window=timedelta(minutes=min(entry["freshnessWindow"], _LONGEST_MINUTES)),
        frameworks=tuple(compliance.get("frameworks") or ()),
        compliance_mode=compliance.get("mode"),
    )


def _waves(channel: str, entries: Iterable[Mapping[str, Any]], what: str) -> tuple[Wave, ...]:
    waves = []
    for index, entry in enumerate(entries):
        if not _is_list_of_text(entry["hosts"]):
            raise SchemaError(f"{what}: waves.{printable(channel, 80)}[{index}].hosts is not a list of strings")
        waves.append(Wave(tuple(entry["hosts"]), min(int(entry["soakMinutes"]), _LONGEST_MINUTES)))
    return tuple(waves)


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and {item.__class__ for item in value} <= {str}
