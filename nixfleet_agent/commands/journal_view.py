"""The journal as a command sees it: read beside a running agent that moves its files, and never changed by looking."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.journal.entries import Entry, Name, decode, parse_name, read_raw
from nixfleet_agent.journal.folders import CORRUPT, DROPPED, QUEUE, REJECTED, SENT
from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.state_machine import RolloutRecord, State, TransitionError, advance

#: Where an entry can be, in the words of `queue list`, and its folder.
PLACES = {"queued": QUEUE, "sent": SENT, "rejected": REJECTED, "dropped": DROPPED, "corrupt": CORRUPT}


@dataclass(frozen=True, slots=True)
class Found:
    """One file of the journal; ``name`` is None when it is no journal file of this host."""

    place: str
    path: Path
    name: Name | None

    @property
    def id(self) -> str:
        """What `queue show|retry|drop` call it: ``stable@abc/3``, or the file's own name."""
        return f"{self.name.rollout_id}/{self.name.seq}" if self.name else self.path.name

    @property
    def where(self) -> str:
        """Its place for people: the accepted Dispatch lies among the sent events, and is never sent."""
        return "kept" if self.place == "sent" and self.name is not None and self.name.seq == 0 else self.place

    def read(self) -> Entry:
        """Its content.

        Raises:
            ProtoError: it can't be read, or is another entry than its name says.
        """
        try:
            entry = decode(read_raw(self.path))
        except OSError as error:
            raise ProtoError(f"can't read it: {error.strerror}") from error
        if self.name is not None and (entry.seq, entry.rollout_id) != (self.name.seq, self.name.rollout_id):
            raise ProtoError("its content is another entry's than its name says")
        return entry


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a timeline. ``after`` equals ``before`` when the event changed no state; ``refused`` says why not."""

    entry: Entry
    place: str
    at: datetime
    before: State
    after: State
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """A rollout's log, folded as after a restart."""

    accepted: Acceptance
    record: RolloutRecord
    steps: tuple[Step, ...]
    unreadable: tuple[str, ...]


def scan(state_dir: Path, hostname: str, places: Iterable[str] = PLACES) -> list[Found]:
    """The files in these places, by rollout and seq."""
    found = [
        Found(place, path, parse_name(path.name, hostname))
        for place in places
        for path in _files(state_dir / PLACES[place], nested=place == "sent")
    ]
    return sorted(found, key=lambda item: (item.name.rollout_id, item.name.seq) if item.name else ("~", 0))


def rollouts(state_dir: Path, hostname: str) -> list[Replay]:
    """Every rollout whose log begins with an accepted Dispatch, the newest first."""
    by_id: dict[str, list[Found]] = {}
    for item in scan(state_dir, hostname):
        if item.name is not None:
            by_id.setdefault(item.name.rollout_id, []).append(item)
    replays = [replay for items in by_id.values() if (replay := replayed(items, hostname)) is not None]
    return sorted(replays, key=lambda r: (r.accepted.number, r.accepted.accepted_at), reverse=True)


def replayed(items: list[Found], hostname: str) -> Replay | None:
    """Fold one rollout's files through the state machine; None when its seq 0 is gone or damaged."""
    entries, unreadable = readable(items)
    first = entries.pop(0, None)
    if first is None:
        return None
    try:
        accepted = Acceptance.parse(first[1].rollout_id, first[1].event)
    except ProtoError:
        return None
    record = accepted.record(hostname)
    steps = [Step(first[1], "kept", accepted.accepted_at, record.state, record.state)]
    for place, entry in (entries[seq] for seq in sorted(entries)):
        before = record.state
        try:
            event = entry.remote_event()
            record = advance(record, event, accepted.policy)
            steps.append(Step(entry, place, event.at, before, record.state))
        except (ProtoError, TransitionError) as error:
            steps.append(Step(entry, place, entry.created_at, before, before, str(error)))
    return Replay(accepted, record, tuple(steps), tuple(unreadable))


def readable(items: list[Found]) -> tuple[dict[int, tuple[str, Entry]], list[str]]:
    """Readable entries by seq, and what is wrong with the others; a queued copy counts before a sent one."""
    entries: dict[int, tuple[str, Entry]] = {}
    unreadable: list[str] = []
    order = list(PLACES)
    for item in sorted(items, key=lambda found: order.index(found.place), reverse=True):
        try:
            entry = item.read()
        except ProtoError as error:
            unreadable.append(f"{item.path}: {error}")
            continue
        entries[entry.seq] = (item.place, entry)
    return entries, unreadable


def _files(folder: Path, *, nested: bool) -> Iterator[Path]:
    try:
        children = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    for child in children:
        if nested and child.is_dir():
            yield from _files(child, nested=False)
        elif child.name.endswith(".json") and not child.name.startswith("."):
            yield child
