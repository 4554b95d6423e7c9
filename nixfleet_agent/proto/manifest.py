"""The rollout manifest as a type: which host gets which closure in which wave of one rollout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nixfleet_agent.proto import ids, schemas
from nixfleet_agent.proto.fleet import Meta
from nixfleet_agent.proto.schemas import SchemaError
from nixfleet_agent.text import printable

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ManifestHost:
    """One host's part in a rollout."""

    hostname: str
    wave_index: int
    target_closure: str


@dataclass(frozen=True, slots=True)
class RolloutManifest:
    """One rollout. ``host_set`` is as it was parsed and checked: an entry becomes a type when it is asked for."""

    schema_version: int
    channel: str
    channel_ref: str
    fleet_resolved_hash: str
    host_set: Sequence[Mapping[str, Any]]
    meta: Meta

    @classmethod
    def parse(cls, value: Any, what: str = "the rollout manifest") -> RolloutManifest:
        """The manifest in a parsed JSON value, which must not be changed afterwards.

        Raises:
            ProtoError: it does not have the form of a manifest; the message names the place.
        """
        if not isinstance(value, dict):
            raise SchemaError(f"{what} is not a JSON object")
        host_set = value.get("hostSet")
        outer = {**value, "hostSet": []} if isinstance(host_set, list) else value
        schemas.check("manifest", outer, what)
        _check_entries(value["hostSet"], what)
        ids.require(ids.ROLLOUT_ID, f"{value['channel']}@{value['channelRef']}", f"{what}: its own rollout id")
        if not _SHA256.fullmatch(value["fleetResolvedHash"]):
            raise SchemaError(f"{what}: fleetResolvedHash is not a SHA-256 in lower-case hex")
        return cls(
            schema_version=value["schemaVersion"],
            channel=value["channel"],
            channel_ref=value["channelRef"],
            fleet_resolved_hash=value["fleetResolvedHash"],
            host_set=value["hostSet"],
            meta=Meta.parse(value["meta"]),
        )

    @property
    def rollout_id(self) -> str:
        """The id rebuilt from what was signed, to compare with the one that was asked for."""
        return f"{self.channel}@{self.channel_ref}"

    def entries(self, hostname: str) -> list[ManifestHost]:
        """Every entry that names ``hostname``: a sound manifest has one, or none."""
        return [
            ManifestHost(entry["hostname"], entry["waveIndex"], entry["targetClosure"])
            for entry in self.host_set
            if entry["hostname"] == hostname
        ]


def _check_entries(entries: list[Any], what: str) -> None:
    """All entries at once by the set of types that each field has; only a fault is looked for one by one."""
    try:
        good = (
            {entry.__class__ for entry in entries} <= {dict}
            and {entry["hostname"].__class__ for entry in entries} <= {str}
            and {entry["targetClosure"].__class__ for entry in entries} <= {str}
            and {entry["waveIndex"].__class__ for entry in entries} <= {int}
            and min((entry["waveIndex"] for entry in entries), default=0) >= 0
        )
    except KeyError:
        good = False
    if not good:
        raise SchemaError(f"{what}: {next(_bad_entries(entries))}")


def _bad_entries(entries: list[Any]) -> Iterator[str]:
    for index, entry in enumerate(entries):
        shown = f"hostSet[{index}]"
        if not isinstance(entry, dict):
            yield f"{shown} is not an object"
            continue
        for key in ("hostname", "targetClosure"):
            if not isinstance(entry.get(key), str):
                yield f"{shown}.{key} is not a string"
        wave = entry.get("waveIndex")
        if wave.__class__ is not int or wave < 0:
            yield f"{shown}.waveIndex is not a wave's number: {printable(wave, 64)}"
