"""What the words of switch-to-configuration mean, of the Perl script and of the Rust program (-ng): pure.

Exit codes alone don't tell: 1 is a refused pre-switch check, a failed bootloader or a bad argument, and 4 any unit.
"""

from __future__ import annotations

import re

#: The pre-switch check of NixOS that compares the systems' inhibitors.
INHIBITORS_CHECK = "switchInhibitors"
#: As many failed units as are named; a script may say anything.
_MOST_UNITS = 50

#: Perl adds why, and where it died.
_LOCK = re.compile(r"could not acquire lock(?: - .*)?", re.IGNORECASE)
_REFUSED = re.compile(r"pre-switch checks? (?:'([^']*)' )?failed", re.IGNORECASE)
#: "dbus-implementation : broker -> dbus"
_CHANGE = re.compile(r"^(\S+) : .* -> .*$", re.MULTILINE)
_UNIT = r"([\w@.:\\-]+\.(?:service|socket|target|mount|automount|timer|path|slice|swap|device))"
_LISTED = re.compile(r"following (?:user )?units failed: ([^\n]+)")
#: "Failed to start X" and "Failed to restart X: why" (-ng), "Job for X failed because ..." (systemctl, under Perl).
_ONE_BY_ONE = (
    re.compile(rf"^Failed to (?:start|restart|reload|stop) {_UNIT}(?::.*|\.)?$", re.MULTILINE),
    re.compile(rf"^(?:Job for|A dependency job for) {_UNIT} (?:failed|canceled|invalid|timed out)", re.MULTILINE),
)
_USER = re.compile(r"^warning: user activation for (\S+) failed", re.MULTILINE)


def lock_refused(words: str) -> bool:
    """Another switch held the lock. The script takes it before all else, so those words are its last.

    In the middle they are those of some unit that failed, and the host may be half switched.
    """
    return _LOCK.fullmatch(words.rstrip().rpartition("\n")[2].strip()) is not None


def refused_by(words: str) -> str | None:
    """The pre-switch check that has turned a switch away before anything was changed, by the script's last words.

    The Perl script ends with the check's name, the Rust program with a line of its own after that.
    """
    lines = [line.strip() for line in words.rstrip().splitlines()[-2:]]
    if not lines or not (last := _REFUSED.fullmatch(lines[-1])):
        return None
    before = _REFUSED.fullmatch(lines[0])
    return last[1] or (before[1] if before else None) or "unnamed"


def inhibited_by(words: str) -> tuple[str, ...]:
    """The components for which a script has refused a live switch; empty when it refused for anything else."""
    if refused_by(words) != INHIBITORS_CHECK:
        return ()
    return tuple(dict.fromkeys(_CHANGE.findall(words))) or (INHIBITORS_CHECK,)


def failed_units(words: str) -> tuple[str, ...]:
    """The units that a script names as failed, each once; of users it may name no more than who they are."""
    named = [unit.strip() for found in _LISTED.findall(words) for unit in found.split(",")]
    for pattern in _ONE_BY_ONE:
        named += pattern.findall(words)
    named += [f"user units of {user}" for user in _USER.findall(words)]
    return tuple(dict.fromkeys(unit for unit in named if unit))[:_MOST_UNITS]
