"""Sees who holds the lock of ``switch-to-configuration``, without taking it."""

from __future__ import annotations

import os
from pathlib import Path

_PROC_LOCKS = Path("/proc/locks")


def holders(lock: Path, table: Path = _PROC_LOCKS) -> list[int]:
    """The processes that hold a lock on the file; none when it, or the table of locks, does not exist.

    Taking the lock to find out would make an operator's own switch fail in that moment.
    """
    try:
        status = lock.stat()
        rows = table.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    found = []
    for row in rows:
        fields = row.split()
        # "1: FLOCK ADVISORY WRITE 6660 fe:00:2146438 0 EOF"; "->" marks one who only waits for it.
        if len(fields) > 5 and fields[1] != "->" and fields[5] == wanted:
            found.append(int(fields[4]))
    return found
