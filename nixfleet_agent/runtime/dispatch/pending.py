"""The received Dispatch on disk until it is decided: the control plane's queue forgets it on delivery.

One file, ``pending-dispatch.json``. It says nothing that is believed: what it asks for is verified as if it had just
arrived.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.errors import ProtoError, StorageError
from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.proto.strict_json import BODY_LIMIT, loads_strict
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.reading import read_regular
from nixfleet_agent.runtime.dispatch.decision import Pending

FILE_NAME = "pending-dispatch.json"
#: Where a file that can't be read goes: nothing is deleted that somebody may want to look at.
CORRUPT_SUFFIX = ".corrupt"

log = logging.getLogger("nixfleet_agent.longpoll")


class PendingDispatch:
    """Owned by the long poll worker; no other thread touches the file."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME

    def save(self, pending: Pending) -> None:
        """Keep ``pending`` in the place of whatever was kept (raises StorageError)."""
        body = {
            "schemaVersion": 1,
            "dispatch": pending.dispatch.to_json(),
            "receivedAt": format_time(pending.received_at),
            "asOf": format_time(pending.as_of),
            "keptForSecs": pending.kept_for.total_seconds(),
            "held": pending.held,
        }
        durable.write(self._path, json.dumps(body, indent=1).encode("utf-8") + b"\n")

    def load(self) -> Pending | None:
        """What the last process kept; a file that can't be read is set aside and said."""
        try:
            raw = read_regular(self._path, BODY_LIMIT)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.error("can't read %s: %s", self._path, error.strerror)
            return None
        try:
            return _parse(loads_strict(raw, limit=BODY_LIMIT, what=str(self._path)))
        except ProtoError as error:
            log.error("a Dispatch that was kept can't be read, its file is set aside: %s", error)
            self._set_aside()
            return None

    def clear(self) -> None:
        """Nothing is pending. Not synced: a file that comes back after a power cut is recognised as a repeat."""
        durable.remove(self._path)

    def _set_aside(self) -> None:
        try:
            durable.move(self._path, self._path.with_name(FILE_NAME + CORRUPT_SUFFIX), sync=False)
        except StorageError as error:
            log.error("%s", error)


def _parse(value: object) -> Pending:
    if not isinstance(value, Mapping):
        raise ProtoError("a kept Dispatch is not a JSON object")
    seconds = value.get("keptForSecs")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e9:
        raise ProtoError(f"keptForSecs of a kept Dispatch is not a number of seconds: {str(seconds)[:64]!r}")
    return Pending(
        dispatch=Dispatch.parse(value.get("dispatch")),
        received_at=parse_time(value.get("receivedAt")),
        as_of=parse_time(value.get("asOf")),
        kept_for=timedelta(seconds=seconds),
        held=value.get("held") is True,
    )
