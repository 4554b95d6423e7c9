"""Each event's link to the one before it: what a host signs besides the event, so that none can be left out or moved.

The statement of an event is ``{hostname, rolloutId, event, previous}``; ``previous`` is the hash of the statement
before it in the same rollout, for the first one that of ``{hostname, rolloutId}``. It is written into the journal with
the event, so that the same file gives the same bytes for ever, whatever lies around it by then. Events of a version
that wrote none are linked too: the statement of the next event covers them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from nixfleet_agent.errors import TrustError
from nixfleet_agent.journal.entries import Entry, decode
from nixfleet_agent.proto.heartbeat import MAX_SEQ
from nixfleet_agent.trust.canonical import canonical, sha256_hex

_ENCODE = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode


def beginning(hostname: str, rollout_id: str) -> str:
    """What the first event of a rollout follows, as hex SHA-256."""
    return sha256_hex(canonical({"hostname": hostname, "rolloutId": rollout_id}))


def statement(hostname: str, rollout_id: str, event: Mapping[str, Any], previous: str) -> dict[str, Any]:
    """What is signed of an event that follows ``previous``."""
    return {"hostname": hostname, "rolloutId": rollout_id, "event": dict(event), "previous": previous}


def link(hostname: str, rollout_id: str, event: Mapping[str, Any], previous: str) -> str:
    """What the next event follows, as hex SHA-256 (raises TrustError: ``event`` has no canonical form)."""
    said = statement(hostname, rollout_id, event, previous)
    return sha256_hex(_plain_form(said) or canonical(said))


def _plain_form(value: object) -> bytes | None:
    """The canonical form of a value without floats, as all events are; None where it may be another.

    A tenth of a millisecond counts where an event is written: this takes a fifth of what ``canonical`` does.
    """
    try:
        return _ENCODE(value).encode() if _is_plain(value) else None
    except UnicodeEncodeError:
        return None


def _is_plain(value: object) -> bool:
    if value is None or isinstance(value, (str, bool)):
        return True
    if isinstance(value, int):
        return abs(value) <= MAX_SEQ
    if isinstance(value, dict):
        return all(isinstance(key, str) and key.isascii() and _is_plain(item) for key, item in value.items())
    return isinstance(value, (list, tuple)) and all(map(_is_plain, value))


def tail(hostname: str, rollout_id: str, entries: Iterable[Entry]) -> str:
    """What an event after these, in the order of seq, follows; seq 0 stays on the host and is no part of it.

    An event without a canonical form is never sent, and no part of it either.
    """
    follows = beginning(hostname, rollout_id)
    for entry in entries:
        if entry.seq == 0:
            continue
        try:
            follows = link(hostname, rollout_id, entry.event, entry.previous or follows)
        except TrustError:
            continue
    return follows


class Tails:
    """What the next event of each rollout follows, as far as this process knows; used by one thread."""

    def __init__(self, hostname: str) -> None:
        self._hostname = hostname
        self._tails: dict[str, str] = {}

    def get(self, rollout_id: str) -> str | None:
        """None where the rollout's log was not looked at yet."""
        return self._tails.get(rollout_id)

    def learn(self, rollout_id: str, entries: Iterable[Entry]) -> str:
        """The tail of a log that was read."""
        self._tails[rollout_id] = tail(self._hostname, rollout_id, entries)
        return self._tails[rollout_id]

    def follow(self, entry: Entry, previous: str | None, raw: bytes) -> None:
        """``raw`` is durable: ``entry``, which follows ``previous``. The next event follows it as it is on disk."""
        if previous is None:
            return
        rollout_id = entry.rollout_id
        try:
            self._tails[rollout_id] = link(self._hostname, rollout_id, entry.event, previous)
        except TrustError:  # half a surrogate pair is another character on disk
            self.learn(rollout_id, [decode(raw)])

    def forget(self, rollout_id: str) -> None:
        """Nothing is left of the rollout."""
        self._tails.pop(rollout_id, None)
