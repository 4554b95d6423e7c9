"""High-water marks: the newest signing time accepted for each thing, below which nothing is accepted again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.times import format_time, parse_time


@dataclass(frozen=True, slots=True)
class Marks:
    """``fleet`` for `fleet.resolved`, ``channels`` for the rollout manifests of each channel."""

    fleet: datetime | None = None
    channels: Mapping[str, datetime] = field(default_factory=dict)

    @property
    def newest(self) -> datetime | None:
        """The newest of all: no clock that is right reads less."""
        return max((at for at in (self.fleet, *self.channels.values()) if at is not None), default=None)

    def raised(self, *, fleet: datetime | None = None, channels: Mapping[str, datetime] | None = None) -> Marks:
        """These marks, each lifted to what is given where that is newer; none ever falls."""
        lifted = dict(self.channels)
        for channel, at in (channels or {}).items():
            lifted[channel] = max(at, lifted.get(channel, at))
        newest_fleet = max((at for at in (self.fleet, fleet) if at is not None), default=None)
        return Marks(newest_fleet, lifted)

    def merged(self, other: Marks) -> Marks:
        """The higher of both, mark by mark."""
        return self.raised(fleet=other.fleet, channels=other.channels)

    def to_json(self) -> dict[str, Any]:
        """As kept on disk and in the record of an accepted Dispatch."""
        return {
            "fleet": None if self.fleet is None else format_time(self.fleet),
            "channels": {channel: format_time(at) for channel, at in sorted(self.channels.items())},
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
        fleet = value.get("fleet")
        return cls(
            fleet=None if fleet is None else parse_time(fleet),
            channels={str(channel): parse_time(at) for channel, at in channels.items()},
        )
