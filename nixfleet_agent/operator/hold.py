"""An operator's hold on new activations: one file in the state directory, which ends by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.errors import EXIT_USAGE, AgentError, ProtoError
from nixfleet_agent.proto.strict_json import BODY_LIMIT, loads_strict
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.reading import read_regular
from nixfleet_agent.text import clip
from nixfleet_agent.threads.clock import Clock

FILE_NAME = "hold.json"
#: How long a hold lasts when nobody says: a forgotten one must not keep a host on an old release for good.
DEFAULT_LENGTH = timedelta(hours=24)
LONGEST = timedelta(days=366)
REASON_LIMIT = 500

_LENGTH = re.compile(r"\+?(\d{1,6})([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class HoldError(AgentError):
    """A hold without a reason, or with an end that makes no sense."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True, slots=True)
class Hold:
    """``until`` is None only for a file that can't be read: what an operator asked for then stays in force."""

    reason: str
    since: datetime | None
    until: datetime | None

    def to_json(self) -> dict[str, str | None]:
        return {
            "reason": self.reason,
            "since": format_time(self.since) if self.since else None,
            "until": format_time(self.until) if self.until else None,
        }


class HoldStore:
    """Written by ``hold`` and ``release``, read by the agent before each new activation."""

    def __init__(self, state_dir: Path, clock: Clock) -> None:
        self.path = state_dir / FILE_NAME
        self._clock = clock

    def current(self) -> Hold | None:
        """The hold in force now, or None."""
        try:
            raw = read_regular(self.path, BODY_LIMIT)
        except FileNotFoundError:
            return None
        except OSError as error:
            return _unreadable(self.path, error.strerror or str(error))
        try:
            hold = _parse(loads_strict(raw))
        except (ValueError, ProtoError) as error:
            return _unreadable(self.path, str(error))
        return hold if hold.until is not None and self._clock.now() < hold.until else None

    def set(self, reason: str, until: datetime | None = None) -> Hold:
        """Begin a hold, or replace the one in force; without ``until`` it lasts a day.

        Raises:
            HoldError: no reason, or an end that is past or more than a year away.
            StorageError: the file can't be written.
        """
        now = self._clock.now()
        reason = clean_reason(reason)
        until = until or now + DEFAULT_LENGTH
        if until <= now:
            raise HoldError(f"a hold until {format_time(until)} would be over already: give a later time")
        if until - now > LONGEST:
            raise HoldError(f"a hold until {format_time(until)} is more than a year: give an earlier time")
        hold = Hold(reason, now, until)
        durable.write(self.path, json.dumps(hold.to_json()).encode() + b"\n")
        return hold

    def release(self) -> bool:
        """End the hold; False when there was none in force (raises StorageError)."""
        held = self.current() is not None
        durable.remove(self.path, sync=True)
        return held


def clean_reason(text: str) -> str:
    """An operator's reason on one line and of a bounded length.

    Raises:
        HoldError: there is none.
    """
    reason = clip(" ".join(text.split()), REASON_LIMIT)
    if not reason:
        raise HoldError("it needs a reason: the next operator will ask for it")
    return reason


def parse_until(text: str, now: datetime) -> datetime:
    """A length from now (``90m``, ``4h``, ``2d``) or an RFC 3339 time.

    Raises:
        HoldError: it is neither.
    """
    match = _LENGTH.fullmatch(text.strip())
    try:
        if match:
            return now + timedelta(**{_UNITS[match[2]]: int(match[1])})
        return parse_time(text.strip())
    except (ProtoError, OverflowError) as error:
        raise HoldError(
            f"{text!r} is no time: give a length such as 90m, 4h or 2d, or a time such as {format_time(now)[:19]}Z"
        ) from error


def _parse(value: object) -> Hold:
    if not isinstance(value, Mapping) or not isinstance(value.get("reason"), str):
        raise ProtoError("it is not a hold")
    return Hold(value["reason"], parse_time(value.get("since")), parse_time(value.get("until")))


def _unreadable(path: Path, reason: str) -> Hold:
    return Hold(
        f"{path} can't be read ({clip(reason, 200)}): use `nixfleet-agent release`, then hold again", None, None
    )
