"""Maintenance windows: when this host may begin a new activation, in the words of systemd.time(7). Pure.

A window is open whenever a clock on the wall of its time zone reads a time inside it. So a time that a change to
summer time skips is no time at all, and a window inside the hour that is repeated in autumn opens twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, time, timedelta, timezone, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from nixfleet_agent.errors import AgentError
from nixfleet_agent.text import printable

#: What the C library takes the local zone from; without it the local zone is UTC.
LOCALTIME = Path("/etc/localtime")
#: Any window opens and closes within a week, and a week holds at most one change of the clock more.
HORIZON = timedelta(days=15)

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_LONG = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_CLOCK = re.compile(r"([01]\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?", re.ASCII)
_DAY = timedelta(days=1)
_EXAMPLE = 'write it like "Mon..Fri 22:00-05:00", "Sat,Sun" or "03:00-04:30"'


class WindowError(AgentError):
    """A window or a time zone that can't be read, or a window that never opens."""


@dataclass(frozen=True, slots=True)
class Window:
    """``start`` and ``end`` are offsets from the midnight that begins one of ``days`` (Monday is 0).

    ``end`` is past 24 hours where the window goes on after midnight. Read from ``text``.
    """

    text: str
    days: frozenset[int]
    start: timedelta
    end: timedelta

    def shows(self, wall: datetime) -> bool:
        """Whether a wall clock that reads ``wall`` (naive) is inside."""
        since_midnight = wall - datetime.combine(wall.date(), time())
        if wall.weekday() in self.days and self.start <= since_midnight < self.end:
            return True
        yesterday = (wall.weekday() - 1) % 7
        return yesterday in self.days and since_midnight + _DAY < self.end


@dataclass(frozen=True, slots=True)
class Windows:
    """Every window of a host in one time zone; none at all means: always open."""

    windows: tuple[Window, ...]
    zone: tzinfo

    def __bool__(self) -> bool:
        return bool(self.windows)

    def is_open(self, now: datetime) -> bool:
        """Whether a new activation may begin at ``now`` (aware)."""
        return not self.windows or self._shows(now)

    def next_change(self, now: datetime) -> datetime | None:
        """When it next opens, or closes where it is open now (UTC); None where that never happens."""
        if not self.windows:
            return None
        now = now.astimezone(timezone.utc)
        before = self._shows(now)
        for moment in sorted(set(self._candidates(now))):
            if moment > now and self._shows(moment) != before:
                return moment
        return None

    def _shows(self, now: datetime) -> bool:
        wall = now.astimezone(self.zone).replace(tzinfo=None, fold=0)
        return any(window.shows(wall) for window in self.windows)

    def _candidates(self, now: datetime) -> Iterator[datetime]:
        """Every moment up to the horizon at which a wall clock may step into or out of a window."""
        first = (now - 2 * _DAY).astimezone(self.zone).date()
        for day in range((HORIZON + 4 * _DAY).days):
            midnight = datetime.combine(first + timedelta(days=day), time())
            for window in self.windows:
                for offset in (window.start, window.end):
                    wall = midnight + offset
                    for fold in (0, 1):
                        yield wall.replace(tzinfo=self.zone, fold=fold).astimezone(timezone.utc)
        yield from self._clock_changes(now)

    def _clock_changes(self, now: datetime) -> Iterator[datetime]:
        """The moments at which the zone's offset changes, to the second."""
        step = timedelta(hours=6)
        low = now.replace(microsecond=0)
        for _ in range(HORIZON // step):
            high = low + step
            if self._offset(low) != self._offset(high):
                left, right = low, high
                while right - left > timedelta(seconds=1):
                    middle = left + (right - left) // 2
                    middle = middle.replace(microsecond=0)
                    left, right = (middle, right) if self._offset(middle) == self._offset(left) else (left, middle)
                yield right
            low = high

    def _offset(self, moment: datetime) -> timedelta | None:
        return moment.astimezone(self.zone).utcoffset()


def parse_windows(texts: Iterable[str], zone_name: str = "") -> Windows:
    """The windows of a configuration; an empty ``zone_name`` is the local zone.

    Raises:
        WindowError: one that can't be read or never opens, or a zone that does not exist.
    """
    return Windows(tuple(parse_window(text) for text in texts), parse_zone(zone_name))


def parse_zone(name: str) -> tzinfo:
    """The time zone of that name in the zone database, or the local one (raises WindowError)."""
    try:
        if name:
            return ZoneInfo(name)
        with LOCALTIME.open("rb") as data:
            return ZoneInfo.from_file(data, key="local")
    except FileNotFoundError:
        return timezone.utc
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        shown = printable(name, 60) or str(LOCALTIME)
        raise WindowError(f"there is no time zone {shown!r}: use a name such as Europe/Berlin or UTC") from error


def parse_window(text: str) -> Window:
    """One window: days, a range of times, or both.

    Raises:
        WindowError: naming the text, what is wrong with it and how to write it.
    """
    words = text.split()
    days, start, end = frozenset(range(7)), timedelta(0), _DAY
    try:
        if len(words) == 1 and ":" in words[0]:
            start, end = _times(words[0])
        elif len(words) in (1, 2):
            days = _days(words[0])
            start, end = _times(words[1]) if len(words) == 2 else (start, end)
        else:
            raise ValueError("it has neither days nor times" if not words else "it has too many words")
    except ValueError as error:
        raise WindowError(f"the window {printable(text, 80)!r} can't be read: {error}: {_EXAMPLE}") from error
    return Window(text, days, start, end)


def overlapping(windows: Windows) -> list[tuple[str, str]]:
    """Pairs of windows that are open together: harmless, and seldom meant."""
    minutes = [_minutes(window) for window in windows.windows]
    return [
        (one.text, other.text)
        for i, one in enumerate(windows.windows)
        for j, other in enumerate(windows.windows[:i])
        if minutes[i] & minutes[j]
    ]


def _minutes(window: Window) -> set[int]:
    start, end = window.start // timedelta(minutes=1), -(-window.end // timedelta(minutes=1))
    return {(day * 1440 + minute) % 10080 for day in window.days for minute in range(start, end)}


def _days(text: str) -> frozenset[int]:
    chosen: set[int] = set()
    for part in text.lower().split(","):
        if part == "daily":
            return frozenset(range(7))
        first, dots, last = part.partition("..")
        begin, finish = _day(first), _day(last if dots else first)
        chosen |= {day % 7 for day in range(begin, finish + (7 if finish < begin else 0) + 1)}
    return frozenset(chosen)


def _day(name: str) -> int:
    for names in (_DAYS, _LONG):
        if name in names:
            return names.index(name)
    raise ValueError(f"{name!r} is no day of the week")


def _times(text: str) -> tuple[timedelta, timedelta]:
    begin, dash, finish = text.partition("-")
    if not dash:
        raise ValueError(f"{text!r} is no range of times")
    start, end = _clock(begin), _clock(finish)
    if start == end:
        raise ValueError("it ends when it begins, and so never opens")
    if start >= _DAY:
        raise ValueError("24:00 is the end of a day, not a beginning")
    return start, end if end > start else end + _DAY


def _clock(text: str) -> timedelta:
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time of day")
    value = timedelta(hours=int(match[1]), minutes=int(match[2]), seconds=int(match[3] or 0))
    if value > _DAY:
        raise ValueError(f"{text!r} is no time of day")
    return value
