"""Timestamps on the wire: RFC 3339 in UTC with `Z` and six fraction digits; any offset is read."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from nixfleet_agent.errors import ProtoError

_RFC3339 = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,32}))?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


def format_time(at: datetime) -> str:
    """``2026-05-16T01:30:00.000000Z``; ``at`` must be aware."""
    if at.tzinfo is None:
        raise RuntimeError("a naive datetime has no place on the wire")
    # Not strftime: its %Y writes the year 1, which other languages use for "never", as a single digit.
    return at.astimezone(timezone.utc).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_time(text: object, what: str = "a time") -> datetime:
    """An aware UTC datetime; digits past the sixth are cut, a leap second counts as the next second.

    ``what`` names the field in messages.

    Raises:
        ProtoError: not an RFC 3339 timestamp with an offset, or outside the years 1 to 9999.
    """
    if not isinstance(text, str) or (match := _RFC3339.fullmatch(text)) is None:
        raise ProtoError(f"{what} is not an RFC 3339 timestamp with an offset: {str(text)[:64]!r}")
    try:
        if len(text) == 27 and text[10] == "T" and text[19] == "." and text[26] == "Z" and match[6] != "60":
            # The form that is written here: a restart reads it by the ten thousand.
            return datetime.fromisoformat(text)
        year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
        micros = int((match[7] or "0")[:6].ljust(6, "0"))
        leap, second = (1, 59) if second == 60 else (0, second)
        at = datetime(year, month, day, hour, minute, second, micros, timezone.utc) + timedelta(seconds=leap)
        if match[8] not in "Zz":
            sign = -1 if match[8][0] == "-" else 1
            hours, minutes = int(match[8][1:3]), int(match[8][4:6])
            if hours > 23 or minutes > 59:
                raise ValueError("offset out of range")
            at -= sign * timedelta(hours=hours, minutes=minutes)
        return at
    except (ValueError, OverflowError) as error:
        raise ProtoError(f"{what} is not a valid timestamp: {match[0]!r} ({error})") from error
