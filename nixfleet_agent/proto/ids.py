"""Names that come from outside and become file names or arguments: their patterns, and nothing looser."""

from __future__ import annotations

import re

from nixfleet_agent.errors import ProtoError

#: A channel and a ref are at most 64 characters each, because together they become a file name.
ROLLOUT_ID = re.compile(r"(?P<channel>[a-z0-9_-]{1,64})@(?P<ref>[0-9a-f]{1,64})")
#: `<32 characters of Nix's base 32>-<name>`; a store path's name has at most 211 characters and no leading dot.
CLOSURE = re.compile(r"[0-9a-df-np-sv-z]{32}-[A-Za-z0-9+_?=-][A-Za-z0-9+._?=-]{0,210}")
HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")

_NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9@.-]")


def require(pattern: re.Pattern[str], value: object, what: str) -> str:
    """``value`` when it is a string that ``pattern`` matches whole.

    Raises:
        ProtoError: naming ``what`` and the value.
    """
    if isinstance(value, str) and pattern.fullmatch(value):
        return value
    raise ProtoError(f"{what} is not valid: {str(value)[:200]!r}")


def case_hint(theirs: object, machine_id: str) -> str:
    """The remedy where a name differs from this host's by capitals alone; else empty. Names are compared exactly."""
    if isinstance(theirs, str) and theirs != machine_id and theirs.casefold() == machine_id.casefold():
        return ": only upper and lower case differ, so set machine_id as the fleet writes it"
    return ""


def channel_of(rollout_id: str) -> str:
    """The channel part of a valid rollout id."""
    return rollout_id.partition("@")[0]


def file_part(text: str) -> str:
    """``text`` as a part of a journal file's name: characters outside `A-Za-z0-9-@.` become `_`."""
    return _NOT_IN_FILE_NAMES.sub("_", text)
