"""Reading a file that somebody else may have put there: never without a limit, and without ever waiting for it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_PIECE = 64 * 1024


def read_regular(path: Path | str, limit: int) -> bytes:
    """The content of a regular file, at most one byte more than ``limit``, so that its judge sees that it is too long.

    A FIFO in its place would block for ever, and a device has no end.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it can't be read, is not a regular file, or a link on the way to it leads nowhere.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        # NixOS links /etc into the store: a target that was collected or has yet to come is not an absent file.
        for part in (Path(path), *Path(path).parents):
            if part.is_symlink() and not part.exists():
                raise OSError(errno.ELOOP, f"{part} is a link that leads nowhere") from None
        raise
    except ValueError as error:  # a name with a NUL in it
        raise OSError(errno.EINVAL, str(error)) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EISDIR, "it is not a regular file")
        return _read(descriptor, limit + 1)
    finally:
        os.close(descriptor)


def _read(descriptor: int, most: int) -> bytes:
    """System calls only: a restart reads ten thousand files, and a file object for each takes longer than its bytes."""
    pieces = []
    while most > 0 and (piece := os.read(descriptor, min(most, _PIECE))):
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)
