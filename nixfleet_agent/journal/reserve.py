"""One MiB kept back on the state directory's disk, so that a release which fills it can still be taken back."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("nixfleet_agent.reserve")

SIZE = 1 << 20


class Reserve:
    """A preallocated file; giving it up makes room for the events of a failure and of the rollback."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "reserve"

    def ensure(self) -> bool:
        """Preallocate it if it is not there; False while the disk has no room for it."""
        try:
            if self._path.stat().st_size == SIZE:
                return True
        except OSError:
            pass  # missing or unreadable: made anew below
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, SIZE)
            finally:
                os.close(descriptor)
            return True
        except OSError as error:
            log.debug("no room for the reserve: %s", error)
            with suppress(OSError):  # on a read-only disk there is nothing to clean up either
                self._path.unlink(missing_ok=True)
            return False

    def release(self) -> bool:
        """Give it up; True when that made room."""
        try:
            self._path.unlink()
        except OSError:
            return False
        log.warning("the disk is full: the reserve of %d bytes was released for a failure's events", SIZE)
        return True
