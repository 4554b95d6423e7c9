"""Reading a file that somebody else writes, without ever waiting for it."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file, at most one byte more than ``limit``; a FIFO in its place would block for ever.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it can't be read, is not a regular file, or a link on the way to it leads nowhere.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        # NixOS links /etc into the store: a target that was collected or has yet to come is not an absent file.
        for part in (path, *path.parents):
            if part.is_symlink() and not part.exists():
                raise OSError(f"{part} is a link that leads nowhere") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit + 1)
    finally:
        os.close(descriptor)
