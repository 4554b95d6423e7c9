"""Which reboots this agent has asked for: one file in the state directory, written before each of them.

A reboot counts as come when the boot is another one than that in which it was asked for. So a crash between the note
and the request loses nothing and repeats nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.activation.host import same_boot
from nixfleet_agent.errors import ProtoError, StorageError
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.reading import read_regular

FILE_NAME = "reboots.json"
#: Notes that are kept, the newest: a rollout runs once on a host, so an old one is never asked about again.
_KEPT = 50
_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Asked:
    """The last reboot asked for in one direction of a rollout; ``tries`` counts the requests within ``boot_id``."""

    rollout_id: str
    direction: str
    boot_id: str
    at: datetime
    tries: int = 1

    def to_json(self) -> dict[str, object]:
        return {
            "rolloutId": self.rollout_id,
            "direction": self.direction,
            "bootId": self.boot_id,
            "at": format_time(self.at),
            "tries": self.tries,
        }


class RebootLedger:
    """Written by the reboot worker; read by it and by commands."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE_NAME

    def all(self) -> tuple[Asked, ...]:
        """Every note, oldest first.

        Raises:
            StorageError: it can't be read; who can't count must not reboot.
        """
        try:
            found = loads_strict(read_regular(self.path, _LIMIT))
            return tuple(_parse(each) for each in found)
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError, ProtoError) as error:
            raise StorageError(f"{self.path} can't be read ({error}): reboot the host, and remove the file") from error

    def last(self, rollout_id: str, direction: str) -> Asked | None:
        """The note of this direction of the rollout (raises StorageError)."""
        return next((each for each in self.all() if (each.rollout_id, each.direction) == (rollout_id, direction)), None)

    def note(self, rollout_id: str, direction: str, boot_id: str, now: datetime) -> None:
        """A reboot is about to be asked for (raises StorageError: then it must not be)."""
        before = self.last(rollout_id, direction)
        tries = before.tries + 1 if before and same_boot(before.boot_id, boot_id) else 1
        others = [each for each in self.all() if each != before]
        kept = [*others, Asked(rollout_id, direction, boot_id, now, tries)][-_KEPT:]
        durable.write(self.path, json.dumps([each.to_json() for each in kept]).encode() + b"\n")


def _parse(value: object) -> Asked:
    if not isinstance(value, Mapping):
        raise ProtoError("it is not a list of reboots")
    rollout_id, direction, boot_id = (value.get(name) for name in ("rolloutId", "direction", "bootId"))
    tries = value.get("tries")
    if not (isinstance(rollout_id, str) and isinstance(direction, str) and isinstance(boot_id, str)):
        raise ProtoError("it is not a list of reboots")
    if not isinstance(tries, int):
        raise ProtoError("it does not say how often a reboot was asked for")
    return Asked(rollout_id, direction, boot_id, parse_time(value.get("at")), tries)
