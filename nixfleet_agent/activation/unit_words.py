"""What a switch script says that it does to units, or would do: pure, from its words.

The Perl script and the Rust program (-ng) say the same: ``switch-to-configuration.pl`` and ``main.rs`` in nixpkgs,
where ``dry-activate`` prints its plan and exits. What they stop they start again unless the coming system lacks it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

#: As many units of a kind as are kept; a script may say anything.
_MOST_UNITS = 1000
_WHAT = r"following (?:changed )?(?P<user>user )?units(?: as well)?: (?P<units>.*)"
_STOP = re.compile(rf"(?:would stop|stopping) the {_WHAT}")
_SKIP = re.compile(rf"(?:would NOT (?:stop|restart)|NOT restarting) the {_WHAT}")
_RELOAD = re.compile(rf"(?:would reload|reloading) the {_WHAT}")
_RESTART = re.compile(rf"(?:would restart|restarting) the {_WHAT}")
_START = re.compile(rf"(?:would start|starting) the {_WHAT}")
_SYSTEMD = re.compile(r"(?:would restart systemd|restarting systemd\.\.\.)")
_SWAP = re.compile(r"(?:would stop|stopping) swap device: (.+)")
#: A unit's name as systemd takes it; anything else in a list is no unit.
_UNIT = re.compile(r"[\w@.:\\-]{1,256}", re.ASCII)


@dataclass(frozen=True, slots=True)
class UnitChanges:
    """The units that a switch stops, starts, restarts and reloads, each list as the script gives it.

    ``kept`` have changed and are left running as they are. ``user`` units are marked by a trailing ``(user)``.
    ``swap`` are devices that are turned off; ``systemd``: it executes itself anew.
    """

    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    reload: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    swap: tuple[str, ...] = ()
    systemd: bool = False

    @property
    def nothing(self) -> bool:
        """Whether the script names nothing that it touches or leaves."""
        return self == UnitChanges()

    @property
    def rows(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What happens, and to what, in the order in which it happens; only what there is."""
        systemd = ("systemd",) if self.systemd else ()
        rows = (
            ("stop", self.stop),
            ("leave as it is", self.kept),
            ("turn off swap", self.swap),
            ("execute anew", systemd),
            ("reload", self.reload),
            ("restart", self.restart),
            ("start", self.start),
        )
        return tuple(row for row in rows if row[1])

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def unit_changes(words: str) -> UnitChanges:
    """What the words of ``dry-activate`` or of a switch name; what is said twice counts once."""
    lines = words.splitlines()
    return UnitChanges(
        stop=_named(lines, _STOP),
        start=_named(lines, _START),
        restart=_named(lines, _RESTART),
        reload=_named(lines, _RELOAD),
        kept=_named(lines, _SKIP),
        swap=tuple(dict.fromkeys(match[1].strip() for match in map(_SWAP.fullmatch, lines) if match)),
        systemd=any(map(_SYSTEMD.fullmatch, lines)),
    )


def _named(lines: list[str], pattern: re.Pattern[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_units(lines, pattern)))[:_MOST_UNITS]


def _units(lines: list[str], pattern: re.Pattern[str]) -> Iterator[str]:
    for match in filter(None, map(pattern.fullmatch, lines)):
        for unit in match["units"].split(","):
            if _UNIT.fullmatch(unit.strip()):
                yield unit.strip() + (" (user)" if match["user"] else "")
