"""The outbound journal: one file per event, the only record of what this host did, and its queue to the control plane.

A rollout's files, wherever they lie, are its whole log::

    outbound-queue/            not yet delivered
    outbound-sent/<rollout>/   delivered, and seq 0 (the accepted Dispatch, never posted)
    outbound-rejected/         refused by the control plane, with its answer inside
    outbound-dropped/          given up by an operator
    outbound-corrupt/          unreadable; its name still counts, so its seq is never used again

The reducer appends and replays, the outbound worker moves what was delivered; what they share is the index.
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.errors import ProtoError, StorageError
from nixfleet_agent.journal.chain import Tails
from nixfleet_agent.journal.entries import DAMAGED, Entry, Name, decode, file_name, parse_name, read_raw
from nixfleet_agent.journal.folders import CORRUPT, DROPPED, QUEUE, REJECTED, SENT, JournalFolders
from nixfleet_agent.journal.header import DISPATCH_KIND
from nixfleet_agent.journal.index import JournalIndex
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.text import clip, printable

log = logging.getLogger("nixfleet_agent.journal")

#: How much of a control plane's answer is kept with an event that it refused, in bytes.
ANSWER_LIMIT = 2048


class Journal:
    """The journal of one state directory. ``open`` before anything else."""

    def __init__(self, state_dir: Path, hostname: str) -> None:
        self.hostname = hostname
        self._root = state_dir
        self._queue = state_dir / QUEUE
        self._folders = JournalFolders(state_dir, hostname)
        self._index = JournalIndex()
        self._tails = Tails(hostname)

    # -- life ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the folders, remove what interrupted writes left, and learn the names of all entries.

        Raises:
            StorageError: the state directory can't be written.
        """
        self._folders.make()
        for file in self._folders.files(self._root / QUEUE):
            if parse_name(file, self.hostname) is None:
                self.set_aside(self._root / QUEUE / file, "not a journal file of this host")
        self.learn()
        self._folders.make_durable(rollout for rollout, last in self._index.last_seqs().items() if last == 0)

    def learn(self) -> None:
        """Learn the names of all entries and change nothing: enough for a command that only reads."""
        for name, _ in self._folders.names(self._root / QUEUE):
            self._index.add(name)
        for folder in (REJECTED, DROPPED, CORRUPT, *(f"{SENT}/{rollout}" for rollout in self._folders.sent_rollouts())):
            highest: dict[str, int] = {}
            for name, _ in self._folders.names(self._root / folder):
                highest[name.rollout_id] = max(name.seq, highest.get(name.rollout_id, 0))
            for rollout_id, seq in highest.items():
                self._index.seen(rollout_id, seq)
        self._count_rejected()

    # -- writing (reducer) --------------------------------------------------------------------

    def append(self, entry: Entry) -> None:
        """Make an event durable, with what it follows, and queue it; writing the same entry again is harmless.

        Raises:
            StorageError: it is not durable, and must not be acted on.
        """
        previous = self._follows(entry.rollout_id)
        raw = entry.encode(previous)
        durable.write(self._queue / entry.name, raw)
        self._index.add(Name(entry.seq, entry.rollout_id, entry.kind))
        self._tails.follow(entry, previous, raw)

    def _follows(self, rollout_id: str) -> str | None:
        """What the next event of the rollout follows; None while its log can't be read, which stops no event."""
        known = self._tails.get(rollout_id)
        if known is not None:
            return known
        try:
            return self._tails.learn(rollout_id, self.read(rollout_id))
        except StorageError as error:
            log.warning("an event is not linked to those before it: %s", error, extra={"rollout_id": rollout_id})
            return None

    def accept(self, entry: Entry) -> None:
        """Make seq 0 of a rollout durable; it is never posted.

        Raises:
            StorageError: it is not durable, so the Dispatch is not accepted.
        """
        path = self._root / SENT / entry.rollout_id / entry.name
        durable.make_directory(path.parent)
        try:
            durable.write(path, entry.encode())
        except StorageError:
            # It may be in place all the same. The next process must not run what this one has not accepted.
            with suppress(StorageError):
                durable.remove(path, sync=True)
            raise
        self._index.seen(entry.rollout_id, 0)

    def replay(self, rollout_id: str, from_seq: int) -> int:
        """Queue every event of ``rollout_id`` with ``seq >= from_seq`` again, refused ones too; how many were moved.

        Raises:
            StorageError: a file could not be moved; those before it were.
        """
        found: list[tuple[Name, Path]] = []
        for folder in (self._root / SENT / rollout_id, self._root / REJECTED):
            found += [
                (name, folder / file) for name, file in self._folders.names(folder) if name.rollout_id == rollout_id
            ]
        moved = 0
        for name, path in sorted(found):
            if name.seq >= max(1, from_seq) and self._queue_again(path):
                self._index.add(name)
                moved += 1
        return moved

    def _queue_again(self, path: Path) -> bool:
        """Move a file back into the queue, without the answer that refused it; False where it can't be read."""
        if path.parent.name != REJECTED:
            durable.move(path, self._root / QUEUE / path.name, sync=False)
            return True
        try:
            entry = replace(decode(read_raw(path)), refusal=None)
        except (OSError, ProtoError) as error:
            log.warning("a refused event can't be replayed: %s: %s", printable(path.name), error)
            return False
        durable.write(self._root / QUEUE / path.name, entry.encode())
        durable.remove(path)
        self._index.rejected(-1)
        return True

    # -- draining (outbound worker) -----------------------------------------------------------

    def waiting(self) -> dict[str, int]:
        """Rollouts with undelivered events, and how many."""
        return self._index.waiting()

    def first(self, rollout_id: str) -> Path | None:
        """The undelivered event with the lowest seq; None when all are delivered."""
        name = self._index.first(rollout_id)
        return None if name is None else self._root / QUEUE / file_name(name.seq, self.hostname, rollout_id, name.kind)

    def behind(self, rollout_id: str, path: Path) -> list[Path]:
        """The undelivered events of the rollout with a higher seq than that of ``path``, by seq."""
        name = parse_name(path.name, self.hostname)
        least = 0 if name is None else name.seq
        queued = sorted(self._index.queued(rollout_id).items())
        files = (file_name(seq, self.hostname, rollout_id, kind) for seq, kind in queued if seq > least)
        return [self._root / QUEUE / file for file in files]

    def is_queued(self, rollout_id: str, seq: int) -> bool:
        """Whether that event still waits for delivery."""
        return self._index.is_queued(rollout_id, seq)

    def delivered(self, rollout_id: str, path: Path) -> None:
        """The control plane has it. The rename needs no fsync: at worst the event is sent again.

        Raises:
            StorageError: the file can't be moved; it stays queued.
        """
        folder = self._root / SENT / rollout_id
        try:
            durable.move(path, folder / path.name, sync=False)
        except StorageError:
            if not path.exists():  # an operator dropped it while it was on its way
                self._take(rollout_id, path)
                return
            # The folder is made with seq 0; only a hand that tidied up can have removed it.
            durable.make_directory(folder)
            durable.move(path, folder / path.name, sync=False)
        self._take(rollout_id, path)
        name = parse_name(path.name, self.hostname)
        if name is not None and path.exists():
            # A replay took it back between the rename and the line above, and found it indexed still.
            self._index.add(name)

    def reject(self, rollout_id: str, path: Path, status: int, answer: bytes, at: datetime) -> None:
        """The control plane refused the event itself: keep it with the answer, out of the way of the next one.

        Raises:
            StorageError: it can't be moved; it stays queued.
            ProtoError, OSError: it can't be read (any more).
        """
        shown = clip(answer[:ANSWER_LIMIT].decode("utf-8", "replace"), ANSWER_LIMIT)
        refusal = {"status": status, "answer": shown, "at": format_time(at)}
        entry = decode(read_raw(path))
        refused = replace(entry, refusal=refusal)
        place = self._root / REJECTED / path.name
        known = place.exists()  # a kill before the removal below has it refused a second time
        durable.write(place, refused.encode())
        durable.remove(path)
        self._take(rollout_id, path)
        self._index.rejected(not known)

    def set_aside(self, path: Path, reason: str) -> None:
        """Move a file that can't be used to ``outbound-corrupt``; it is never deleted, and its seq stays taken.

        Raises:
            StorageError: it can't be moved; it stays where it is.
        """
        log.error("set aside %s: %s", printable(path.name), reason, extra={"path": printable(path)})
        durable.move(path, _unused(self._root / CORRUPT / path.name), sync=True)
        name = parse_name(path.name, self.hostname)
        if name is not None:
            self._index.seen(name.rollout_id, name.seq)
            self._take(name.rollout_id, path)

    def vanished(self, rollout_id: str, path: Path) -> None:
        """Somebody removed the file of an undelivered event: go on with the next one; its seq stays taken."""
        log.error("an undelivered event is gone from the queue: %s", printable(path.name))
        self._take(rollout_id, path)

    def _take(self, rollout_id: str, path: Path) -> None:
        name = parse_name(path.name, self.hostname)
        if name is not None:
            self._index.take(rollout_id, name.seq)

    def rescan_queue(self) -> int:
        """Pick up entries that an operator's `queue retry` put back, and let go of dropped ones; how many are new.

        Meanwhile events are appended and delivered: one that is gone again was delivered.
        """
        for rollout_id in self.waiting():
            for path in self.behind(rollout_id, Path()):
                if not path.exists():
                    self._take(rollout_id, path)
        found = 0
        for name, file in self._folders.names(self._root / QUEUE):
            path = self._root / QUEUE / file
            if not self._index.is_news(name) or not path.exists():
                continue
            self._index.add(name)
            found += 1
            if not path.exists():
                self._take(name.rollout_id, path)
        self._count_rejected()
        return found

    def _count_rejected(self) -> None:
        self._index.rejected(counted=sum(1 for _ in self._folders.names(self._root / REJECTED)))

    # -- reading ------------------------------------------------------------------------------

    def rollouts(self) -> list[str]:
        """Every rollout with at least one entry on disk, but for those whose log was pruned."""
        return [rollout_id for rollout_id in sorted(self._index.last_seqs()) if not self._folders.is_pruned(rollout_id)]

    def last_seq(self, rollout_id: str) -> int:
        """The highest seq over all names of the rollout, readable or not; 0 when there is none."""
        return self._index.last_seq(rollout_id) or 0

    def knows(self, rollout_id: str) -> bool:
        """Whether the rollout has entries, or had some before they were pruned."""
        return self._index.last_seq(rollout_id) is not None or self._folders.is_pruned(rollout_id)

    def may_adopt(self, rollout_id: str) -> bool:
        """Whether this agent never had the rollout. Events that another agent left come first: they may change it."""
        header = file_name(0, self.hostname, rollout_id, DISPATCH_KIND)
        places = (self._root / SENT / rollout_id, self._root / CORRUPT)
        ours = self._folders.is_pruned(rollout_id) or any((place / header).exists() for place in places)
        return not ours and rollout_id not in self._index.waiting()

    def counts(self) -> tuple[int, int]:
        """(queued, rejected) entries."""
        return sum(self._index.waiting().values()), self._index.rejected()

    def oldest_queued(self) -> datetime | None:
        """When the oldest undelivered event was created; None when the queue is empty."""
        stamps = []
        for rollout in self.waiting():
            path = self.first(rollout)
            try:
                stamps.append(decode(read_raw(path)).created_at) if path else None
            except (OSError, ProtoError):
                continue  # the drainer sets it aside when it comes to it
        return min(stamps, default=None)

    def read(self, rollout_id: str) -> list[Entry]:
        """The log of a rollout in the order of seq, from wherever its files lie; unusable ones are set aside.

        Raises:
            StorageError: a file can't be read now, or not be set aside; nothing may be concluded from the others.
        """
        # Plain strings: a Path for each of ten thousand files would cost more than reading them.
        found: dict[int, str] = {}
        for folder in (self._root / DROPPED, self._root / REJECTED, self._root / SENT / rollout_id):
            mine = ((name.seq, file) for name, file in self._folders.names(folder) if name.rollout_id == rollout_id)
            found |= {seq: f"{folder}/{file}" for seq, file in mine}
        for seq, kind in self._index.queued(rollout_id).items():
            found[seq] = f"{self._root}/{QUEUE}/{file_name(seq, self.hostname, rollout_id, kind)}"
        entries = []
        for seq, path in sorted(found.items()):
            try:
                entry = decode(read_raw(path))
                if (entry.seq, entry.rollout_id) != (seq, rollout_id):
                    raise ProtoError("its content is another entry's than its name says")
                entries.append(entry)
            except (OSError, ProtoError) as error:
                if isinstance(error, OSError) and error.errno not in DAMAGED:
                    raise StorageError(f"can't read {path}: {error.strerror}", error.errno) from error
                if Path(path).parent.name != DROPPED:  # what an operator has given up is out of the way already
                    self.set_aside(Path(path), str(error))
        if entries and entries[-1].previous is not None and self._tails.get(rollout_id) is None:
            self._tails.learn(rollout_id, entries[-1:])  # so that the first append need not read it all again
        return entries

    # -- retention ----------------------------------------------------------------------------

    def prune(self, rollout_id: str, at: datetime) -> None:
        """Remove a rollout's sent log and leave one line, so that the rollout never looks new again.

        Raises:
            StorageError: the file system refused; the next try goes on where this one stopped.
        """
        line = {"rolloutId": rollout_id, "lastEventSeq": self.last_seq(rollout_id), "prunedAt": format_time(at)}
        durable.write(self._folders.tombstone(rollout_id), json.dumps(line).encode() + b"\n")
        self._folders.remove_log(rollout_id)
        self._index.forget(rollout_id)
        self._tails.forget(rollout_id)


def _unused(path: Path) -> Path:
    """``path``, or with a number behind it where something of that name was put before."""
    number = 0
    chosen = path
    while chosen.exists():
        number += 1
        chosen = path.with_name(f"{path.name}.{number}")
    return chosen
