"""An operator's word that the next activation need not wait for a maintenance window: one file in the state directory.

It is good for one rollout and for a limited time. The file stays when it was used: which rollout began outside its
window, and why, is asked afterwards.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.errors import ProtoError
from nixfleet_agent.operator.hold import HoldError, clean_reason
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.threads.clock import Clock

FILE_NAME = "run-now.json"
#: How long it waits for a Dispatch when nobody says: a forgotten one must not open next week's working hours.
DEFAULT_LENGTH = timedelta(hours=1)
LONGEST = timedelta(days=7)

log = logging.getLogger("nixfleet_agent.run_now")


@dataclass(frozen=True, slots=True)
class RunNow:
    """``used_by`` is the rollout that began outside its window by it, None while none has."""

    reason: str
    since: datetime
    until: datetime
    used_by: str | None = None

    def to_json(self) -> dict[str, str | None]:
        return {
            "reason": self.reason,
            "since": format_time(self.since),
            "until": format_time(self.until),
            "usedBy": self.used_by,
        }


class RunNowStore:
    """Written by ``run-now``; read and marked as used by the agent."""

    def __init__(self, state_dir: Path, clock: Clock) -> None:
        self.path = state_dir / FILE_NAME
        self._clock = clock

    def last(self) -> RunNow | None:
        """What was last asked for, whether it is in force, used or over; a file that can't be read asks nothing."""
        try:
            return _parse(loads_strict(self.path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ProtoError) as error:
            log.warning("%s can't be read (%s): maintenance windows stand", self.path, error)
            return None

    def in_force(self) -> RunNow | None:
        """What opens the window for the next rollout now, or None."""
        last = self.last()
        if last is None or last.used_by is not None or not last.since <= self._clock.now() < last.until:
            return None
        return last

    def request(self, reason: str, until: datetime | None = None) -> RunNow:
        """Let the next rollout begin outside the windows; without ``until`` it may come within an hour.

        Raises:
            HoldError: no reason, or an end that is past or more than a week away.
            StorageError: the file can't be written.
        """
        now = self._clock.now()
        reason = clean_reason(reason)
        until = until or now + DEFAULT_LENGTH
        if not now < until <= now + LONGEST:
            raise HoldError(f"{format_time(until)} is not within the next 7 days: give a time or length in them")
        asked = RunNow(reason, now, until)
        self._write(asked)
        return asked

    def use(self, rollout_id: str) -> RunNow | None:
        """Note that this rollout has begun by it; None when none was in force (raises StorageError)."""
        asked = self.in_force()
        if asked is None:
            return None
        used = replace(asked, used_by=rollout_id)
        self._write(used)
        return used

    def _write(self, asked: RunNow) -> None:
        durable.write(self.path, json.dumps(asked.to_json()).encode() + b"\n")


def _parse(value: object) -> RunNow:
    if not isinstance(value, Mapping) or not isinstance(value.get("reason"), str):
        raise ProtoError("it is not what run-now writes")
    used_by = value.get("usedBy")
    return RunNow(
        value["reason"],
        parse_time(value.get("since")),
        parse_time(value.get("until")),
        used_by if isinstance(used_by, str) else None,
    )
