"""`fleet.resolved` as types: what the agent acts on of the signed fleet, strictly, and nothing that it does not.

Fleets in the field are of every age: a field that nothing here depends on may have any form, or be missing. The table
in `packaging/docs/protocol.md` names what is read.

Thousands of hosts are checked in bulk and kept as they were parsed; one becomes a type when it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from nixfleet_agent.proto import schemas
from nixfleet_agent.proto.schemas import SchemaError
from nixfleet_agent.proto.times import parse_time
from nixfleet_agent.text import printable

#: The only version of the artifacts that this agent reads.
SCHEMA_VERSION = 1

#: The strategy whose channels need no waves: all of a channel's hosts are one.
ALL_AT_ONCE = "all-at-once"
#: What a policy that says nothing of failures means: the declared default of the option that fleets are made from.
DEFAULT_ON_HEALTH_FAILURE = "rollback-and-halt"

#: A number of minutes that overflows a timedelta is as good as for ever.
_LONGEST_MINUTES = 100 * 366 * 24 * 60
_CHANNEL = re.compile(r"[a-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Meta:
    """When and from what an artifact was signed."""

    schema_version: int | None
    signed_at: datetime | None
    ci_commit: str | None

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Meta:
        """Raises ProtoError for a ``signedAt`` that is no timestamp."""
        signed_at, commit = value.get("signedAt"), value.get("ciCommit")
        return cls(
            schema_version=value.get("schemaVersion"),
            signed_at=None if signed_at is None else parse_time(signed_at),
            ci_commit=commit if isinstance(commit, str) else None,
        )


@dataclass(frozen=True, slots=True)
class FleetHost:
    """One host's entry: what it is allowed to run comes by this channel and no other."""

    channel: str


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel's entry; ``freshness_window`` is how old a signature may be."""

    rollout_policy: str
    freshness_window: timedelta


@dataclass(frozen=True, slots=True)
class Wave:
    """One wave of a channel: its hosts, and how long each of them soaks."""

    hosts: tuple[str, ...]
    soak_minutes: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """The signed intent for all hosts. ``policies`` maps a policy's name to its ``onHealthFailure``, as signed.

    ``waves`` has every wave that a host may be in: where the document has none for a channel with an all-at-once
    policy, that is one of all of the channel's hosts.
    """

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
        hosts, policies = value["hosts"], value.get("rolloutPolicies") or {}
        _check_hosts(hosts, what)
        channels = {name: _channel(name, entry, what) for name, entry in value["channels"].items()}
        return cls(
            schema_version=value["schemaVersion"],
            channels=channels,
            policies={
                name: entry.get("onHealthFailure") or DEFAULT_ON_HEALTH_FAILURE for name, entry in policies.items()
            },
            waves=_all_waves(value.get("waves") or {}, channels, policies, hosts, what),
            channels_in_use=frozenset(entry["channel"] for entry in hosts.values()),
            meta=Meta.parse(value["meta"]),
            hosts=hosts,
        )

    def host(self, name: str) -> FleetHost | None:
        """The entry of one host, or None where the fleet does not have it."""
        entry = self.hosts.get(name)
        return None if entry is None else FleetHost(channel=entry["channel"])

    @property
    def freshness_window(self) -> timedelta:
        """For the fleet itself: the largest of its channels' windows; nothing where it has no channel."""
        return max((channel.freshness_window for channel in self.channels.values()), default=timedelta(0))


def _outer(value: dict[str, Any]) -> dict[str, Any]:
    """The document without its long lists: a JSON Schema takes some 10 us for each entry of one."""
    outer = dict(value)
    if isinstance(value.get("hosts"), dict):
        outer["hosts"] = {}
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
    """Type-check in bulk; locate the error on failure."""
    entries = hosts.values()
    try:
        good = {entry.__class__ for entry in entries} <= {dict} and {
            entry["channel"].__class__ for entry in entries
        } <= {str}
    except KeyError:
        good = False
    if not good:
        raise SchemaError(f"{what}: {next(_bad_hosts(hosts))}")


def _bad_hosts(hosts: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in hosts.items():
        shown = f"hosts.{printable(name, 80)}"
        if not isinstance(entry, dict):
            yield f"{shown} is not an object"
        elif not isinstance(entry.get("channel"), str):
            yield f"{shown}.channel is not a string"


def _channel(name: str, entry: Mapping[str, Any], what: str) -> Channel:
    if not _CHANNEL.fullmatch(name):
        # It becomes part of a rollout id, and with it of a file name.
        raise SchemaError(f"{what}: {printable(name, 80)!r} is not a valid channel name")
    return Channel(
        rollout_policy=entry["rolloutPolicy"],
        freshness_window=timedelta(minutes=_minutes(entry["freshnessWindow"])),
    )


def _all_waves(
    listed: Mapping[str, Any],
    channels: Mapping[str, Channel],
    policies: Mapping[str, Any],
    hosts: Mapping[str, Any],
    what: str,
) -> dict[str, tuple[Wave, ...]]:
    waves = {name: _waves(name, entries or (), hosts, what) for name, entries in listed.items()}
    for name, channel in channels.items():
        policy = policies.get(channel.rollout_policy) or {}
        if not waves.get(name) and policy.get("strategy") == ALL_AT_ONCE:
            members = tuple(sorted(host for host, entry in hosts.items() if entry["channel"] == name))
            waves[name] = (Wave(members, _own_soak(channel.rollout_policy, policy, what)),)
    return waves


def _waves(channel: str, entries: Iterable[Mapping[str, Any]], hosts: Mapping[str, Any], what: str) -> tuple[Wave, ...]:
    waves = []
    for index, entry in enumerate(entries):
        where = f"{what}: waves.{printable(channel, 80)}[{index}]"
        named = entry["hosts"]
        if {item.__class__ for item in named} - {str}:
            raise SchemaError(f"{where}.hosts is not a list of strings")
        stranger = next((name for name in named if name not in hosts), None)
        if stranger is not None:
            raise SchemaError(f"{where} names {printable(stranger, 80)}, a host of no channel")
        waves.append(Wave(tuple(named), _minutes(entry["soakMinutes"])))
    return tuple(waves)


def _own_soak(name: str, policy: Mapping[str, Any], what: str) -> int:
    """The minutes that an all-at-once policy has its hosts soak: the most of any wave it declares, else none."""
    where = f"{what}: rolloutPolicies.{printable(name, 80)}.waves"
    declared = policy.get("waves")
    if not isinstance(declared, (list, type(None))):
        raise SchemaError(f"{where} is not a list")
    soaks = [0]
    for index, wave in enumerate(declared or ()):
        if not isinstance(wave, dict):
            raise SchemaError(f"{where}[{index}] is not an object")
        minutes = wave.get("soakMinutes")
        if minutes is None:
            continue
        if isinstance(minutes, bool) or not isinstance(minutes, (int, float)) or minutes < 0 or minutes % 1:
            raise SchemaError(f"{where}[{index}].soakMinutes is not a number of minutes: {printable(minutes, 64)}")
        soaks.append(_minutes(minutes))
    return max(soaks)


def _minutes(value: float) -> int:
    return min(int(value), _LONGEST_MINUTES)
