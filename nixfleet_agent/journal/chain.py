"""Each event's link to the one before it: what a host signs besides the event, so that none can be left out or moved.

The statement of an event is ``{hostname, rolloutId, event, previous}``; ``previous`` is the hash of the statement
before it in the same rollout, for the first one that of ``{hostname, rolloutId}``. It is written into the journal with
the event, so that the same file gives the same bytes for ever, whatever lies around it by then. Events of a version
that wrote none are linked too: the statement of the next event covers them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nixfleet_agent.errors import TrustError
from nixfleet_agent.journal.entries import Entry, decode
from nixfleet_agent.trust.canonical import canonical, sha256_hex


def beginning(hostname: str, rollout_id: str) -> str:
    """What the first event of a rollout follows, as hex SHA-256."""
    return sha256_hex(canonical({"hostname": hostname, "rolloutId": rollout_id}))


def statement(hostname: str, rollout_id: str, event: Mapping[str, Any], previous: str) -> dict[str, Any]:
    """What is signed of an event that follows ``previous``."""
    return {"hostname": hostname, "rolloutId": rollout_id, "event": dict(event), "previous": previous}


def link(hostname: str, rollout_id: str, event: Mapping[str, Any], previous: str) -> str:
    """What the next event follows, as hex SHA-256 (raises TrustError: ``event`` has no canonical form)."""
    return sha256_hex(canonical(statement(hostname, rollout_id, event, previous)))


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

    def follow(self, raw: bytes) -> None:
        """A file of these bytes is durable: the next event follows it as it is on disk."""
        entry = decode(raw)
        if entry.previous is not None:
            self.learn(entry.rollout_id, [entry])

    def forget(self, rollout_id: str) -> None:
        """Nothing is left of the rollout."""
        self._tails.pop(rollout_id, None)
