"""High-water marks: the newest signing time accepted for each thing, below which nothing is accepted again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.times import format_time, parse_time


@dataclass(frozen=True, slots=True, order=True)
class ManifestMark:
    """One signed manifest: when, and which (hex SHA-256; empty where an agent before this rule did not say)."""

    at: datetime
    hash: str = ""


@dataclass(frozen=True, slots=True)
class Marks:
    """``fleet`` for `fleet.resolved`, ``channels`` for the rollout manifests of each channel.

    ``manifest`` is the newest that this host accepted, in whatever channel: nobody may move it to an older release by
    way of another channel.
    """

    fleet: datetime | None = None
    channels: Mapping[str, datetime] = field(default_factory=dict)
    manifest: ManifestMark | None = None

    @property
    def newest(self) -> datetime | None:
        """The newest of all: no clock that is right reads less."""
        accepted = None if self.manifest is None else self.manifest.at
        return max((at for at in (self.fleet, accepted, *self.channels.values()) if at is not None), default=None)

    def raised(
        self,
        *,
        fleet: datetime | None = None,
        channels: Mapping[str, datetime] | None = None,
        manifest: ManifestMark | None = None,
    ) -> Marks:
        """These marks, each lifted to what is given where that is newer; none ever falls."""
        lifted = dict(self.channels)
        for channel, at in (channels or {}).items():
            lifted[channel] = max(at, lifted.get(channel, at))
        newest_fleet = max((at for at in (self.fleet, fleet) if at is not None), default=None)
        newest_manifest = max((mark for mark in (self.manifest, manifest) if mark is not None), default=None)
        return Marks(newest_fleet, lifted, newest_manifest)

    def merged(self, other: Marks) -> Marks:
        """The higher of both, mark by mark."""
        return self.raised(fleet=other.fleet, channels=other.channels, manifest=other.manifest)

    def to_json(self) -> dict[str, Any]:
        """As kept on disk and in the record of an accepted Dispatch."""
        newest = self.manifest
        return {
            "fleet": None if self.fleet is None else format_time(self.fleet),
            "channels": {channel: format_time(at) for channel, at in sorted(self.channels.items())},
            "manifest": None if newest is None else {"signedAt": format_time(newest.at), "hash": newest.hash},
        }

    @classmethod
    def parse(cls, value: object) -> Marks:
        """Marks from their JSON value.

        Raises:
            ProtoError: it is not what ``to_json`` makes.
        """
        channels = value.get("channels", {}) if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(channels, Mapping):
            raise ProtoError("high-water marks are not a JSON object with channels")
        fleet, newest = value.get("fleet"), value.get("manifest")
        if newest is not None and not (isinstance(newest, Mapping) and isinstance(newest.get("hash", ""), str)):
            raise ProtoError("the high-water mark of the newest manifest is not a JSON object with signedAt and hash")
        return cls(
            fleet=None if fleet is None else parse_time(fleet),
            channels={str(channel): parse_time(at) for channel, at in channels.items()},
            manifest=None
            if newest is None
            else ManifestMark(parse_time(newest.get("signedAt")), newest.get("hash", "")),
        )
