"""Where the journal's files lie, and what their names say; nothing in them is read."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.errors import StorageError
from nixfleet_agent.journal.entries import Name, parse_name

log = logging.getLogger("nixfleet_agent.journal")

QUEUE, SENT, REJECTED = "outbound-queue", "outbound-sent", "outbound-rejected"
DROPPED, CORRUPT = "outbound-dropped", "outbound-corrupt"
_TOMBSTONE = ".tombstone"


class JournalFolders:
    """The folders of one state directory and one host."""

    def __init__(self, root: Path, hostname: str) -> None:
        self.root = root
        self.hostname = hostname

    def make(self) -> None:
        """Make them, and remove what interrupted writes left (raises StorageError)."""
        for folder in (QUEUE, SENT, REJECTED, DROPPED, CORRUPT):
            durable.make_directory(self.root / folder)
            durable.remove_temporaries(self.root / folder)
        for rollout_id in self.sent_rollouts():
            durable.remove_temporaries(self.root / SENT / rollout_id)
            if self.is_pruned(rollout_id):
                self.remove_log(rollout_id)

    def make_durable(self, begun: Iterable[str]) -> None:
        """What is read back is acted on and sent: it must not be gone after a power cut.

        A process that was killed may have left a name that no fsync has seen. That is the last event's, or seq 0's
        where nothing followed it: in the rollouts ``begun``.
        """
        for folder in (QUEUE, SENT, *(f"{SENT}/{rollout_id}" for rollout_id in begun)):
            try:
                durable.sync_directory(self.root / folder)
            except OSError as error:
                log.warning("what is in %s may not survive a power cut: %s", self.root / folder, error.strerror)

    @staticmethod
    def files(folder: Path) -> list[str]:
        """Names of all that lies in ``folder``; none where there is no such folder."""
        try:
            with os.scandir(folder) as found:
                return [entry.name for entry in found]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def names(self, folder: Path) -> Iterator[tuple[Name, str]]:
        """(what a name says, the file): of the journal files of this host in ``folder``."""
        for file in self.files(folder):
            name = parse_name(file, self.hostname)
            if name is not None:
                yield name, file

    def sent_rollouts(self) -> list[str]:
        """Rollouts with a folder of their own."""
        return [name for name in self.files(self.root / SENT) if not name.endswith(_TOMBSTONE)]

    def tombstone(self, rollout_id: str) -> Path:
        """The line that stands for a log that was pruned."""
        return self.root / SENT / f"{rollout_id}{_TOMBSTONE}"

    def is_pruned(self, rollout_id: str) -> bool:
        """Whether a rollout ran here whose log is gone on purpose."""
        return self.tombstone(rollout_id).exists()

    def remove_log(self, rollout_id: str) -> None:
        """Seq 0 goes last: as long as anything is there, the rest says which rollout it was (raises StorageError)."""
        folder = self.root / SENT / rollout_id
        for file in sorted(self.files(folder), reverse=True):
            durable.remove(folder / file)
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"can't remove the folder {folder}: {error.strerror}", error.errno) from error
