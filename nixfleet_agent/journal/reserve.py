"""Room kept back on the state directory's disk, so that a release which fills it can still be taken back.

A disk can run out of bytes or of inodes, and says the same of both. Events and records of a switch need both.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.errors import StorageError

log = logging.getLogger("nixfleet_agent.reserve")

SIZE = 1 << 20
#: The files of a failure, of its rollback and of the switch's record are about thirty.
INODES = 64


class Reserve:
    """A preallocated file and a folder of empty ones; giving them up makes room for a failure's events and rollback."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "reserve"
        self._inodes = state_dir / "reserve-inodes"
        #: Asked after every event: the empty files are counted once a process, and after they were given up.
        self._inodes_held = False

    def ensure(self) -> bool:
        """Make what is not there; False while the disk has no room for it."""
        return self._ensure_bytes() and self._ensure_inodes()

    def _ensure_bytes(self) -> bool:
        try:
            if self._path.stat().st_size == SIZE:
                return True
        except OSError:
            pass  # missing or unreadable: made anew below
        try:
            durable.allocate(self._path, SIZE)
            return True
        except OSError as error:
            log.debug("no room for the reserve: %s", error)
            with suppress(OSError):  # on a read-only disk there is nothing to clean up either
                self._path.unlink(missing_ok=True)
            return False

    def _ensure_inodes(self) -> bool:
        if self._inodes_held:
            return True
        try:
            durable.make_directory(self._inodes)
            for number in range(INODES):
                durable.fill(self._inodes / str(number), b"")
            self._inodes_held = True
        except (OSError, StorageError) as error:
            log.debug("no room for the reserve of inodes: %s", error)
            shutil.rmtree(self._inodes, ignore_errors=True)
        return self._inodes_held

    def release(self) -> bool:
        """Give it up; True when that made room."""
        made_room = self._inodes.exists()
        shutil.rmtree(self._inodes, ignore_errors=True)
        self._inodes_held = False
        try:
            self._path.unlink()
            made_room = True
        except OSError:
            pass  # given up before
        if made_room:
            log.warning(
                "the disk is full: the reserve of %d bytes and %d files was released for a failure's events",
                SIZE,
                INODES,
            )
        return made_room
