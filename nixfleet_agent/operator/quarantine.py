"""Closures that failed on this host: kept on disk, refused again on the same channel for some hours."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.strict_json import BODY_LIMIT, loads_strict
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.reading import read_regular
from nixfleet_agent.threads.threads import SYSTEM_THREADS, Threads

#: Beyond this the oldest go: a host that fails a closure every minute keeps a small file.
_MOST_ENTRIES = 256


@dataclass(frozen=True, slots=True)
class Entry:
    """``closure`` failed on ``channel`` at ``since``, in the rollout of that id, for that reason."""

    channel: str
    closure: str
    rollout_id: str
    since: datetime
    reason: str

    def until(self, hours: float) -> datetime:
        """When it may come again by itself."""
        return self.since + timedelta(hours=hours)


def refusal(
    entries: Iterable[Entry], channel: str, closure: str, *, now: datetime, hours: float, running: str | None
) -> Entry | None:
    """The entry for which the closure is refused now, the newest if several; None when it may be activated.

    What runs already is never refused: refusing it would only hide the state that the host is in. An entry from
    the future (the clock was wrong when it was made) holds no longer than one of now would.
    """
    if closure == running:
        return None
    span = timedelta(hours=hours)
    found = [e for e in entries if e.channel == channel and e.closure == closure and abs(now - e.since) < span]
    return max(found, key=lambda entry: entry.since, default=None)


class QuarantineStore:
    """``{state_dir}/quarantine.json``, read anew at each question, so that an operator's ``clear`` counts at once."""

    def __init__(self, state_dir: Path, threads: Threads = SYSTEM_THREADS) -> None:
        self.path = state_dir / "quarantine.json"
        self._lock = threads.lock()

    @property
    def lost(self) -> bool:
        """The file is missing or damaged: what it held has to be rebuilt from the rollouts' logs."""
        return self._read() is None

    def has_heard_of(self, moment: datetime) -> bool:
        """Whether the file was written after ``moment``: what failed by then was entered, or lifted since."""
        try:
            return self.path.stat().st_mtime >= moment.timestamp()
        except OSError:
            return False

    def entries(self) -> tuple[Entry, ...]:
        """Every entry, oldest first, those that have run out too."""
        return self._read() or ()

    def refusal(self, channel: str, closure: str, *, now: datetime, hours: float, running: str | None) -> Entry | None:
        """As the function of that name, for the entries on disk."""
        return refusal(self.entries(), channel, closure, now=now, hours=hours, running=running)

    def add(self, entry: Entry) -> None:
        """Keep an entry; it takes the place of an older one for the same closure and channel.

        Raises:
            StorageError: it is not kept.
        """
        with self._lock:
            self._write([*self.entries(), entry])

    def rebuild(self, entries: Iterable[Entry]) -> None:
        """Keep these besides what is there; with none, leave an empty file, so that nothing counts as lost.

        Raises:
            StorageError: they are not kept.
        """
        with self._lock:
            self._write([*self.entries(), *entries])

    def clear(self, closure: str | None = None) -> int:
        """Lift the quarantine of one closure, or of all; how many entries went.

        Raises:
            StorageError: nothing was lifted.
        """
        with self._lock:
            before = self.entries()
            kept = [entry for entry in before if closure is not None and entry.closure != closure]
            self._write(kept)
            return len(before) - len(kept)

    def _write(self, entries: list[Entry]) -> None:
        newest: dict[tuple[str, str], Entry] = {}
        for entry in sorted(entries, key=lambda entry: entry.since):
            newest[(entry.channel, entry.closure)] = entry
        kept = sorted(newest.values(), key=lambda entry: entry.since)[-_MOST_ENTRIES:]
        body = [
            {
                "channel": entry.channel,
                "closure": entry.closure,
                "rolloutId": entry.rollout_id,
                "since": format_time(entry.since),
                "reason": entry.reason,
            }
            for entry in kept
        ]
        durable.write(self.path, json.dumps({"entries": body}, indent=1).encode() + b"\n")

    def _read(self) -> tuple[Entry, ...] | None:
        try:
            body = loads_strict(read_regular(self.path, BODY_LIMIT))
            found = [_entry(item) for item in body["entries"]]
        except (OSError, ValueError, KeyError, TypeError, ProtoError):
            return None
        return tuple(found)


def _entry(item: dict[str, object]) -> Entry:
    texts = [item[name] for name in ("channel", "closure", "rolloutId", "reason")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("an entry of the quarantine holds something else than text")
    channel, closure, rollout_id, reason = map(str, texts)
    return Entry(channel, closure, rollout_id, parse_time(item["since"]), reason)
