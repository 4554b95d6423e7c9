"""Sees who holds the lock of ``switch-to-configuration``, without taking it.

Any user may open the lock's file and take the lock. Only a holder that is root is somebody who switches this host: what
others hold is put out of the way, for it would have every script, and so every rollback, turned away.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.errors import StorageError

_PROC = Path("/proc")
_LOCKS = "locks"
_OTHERS = 0o077
_UIDS = re.compile(r"^Uid:\t(\d+)\t(\d+)\t", re.MULTILINE)


def holders(lock: Path) -> list[int]:
    """The processes of root, or of our own user, that hold the lock; none when its file, or the table, does not exist.

    Taking the lock to find out would make an operator's own switch fail in that moment.
    """
    try:
        return holders_of(lock.stat())
    except OSError:
        return []


def holders_of(status: os.stat_result, proc: Path = _PROC) -> list[int]:
    """The same for a file that may have been replaced since.

    The table of locks names who took one, not who holds it: that process may have ended, its number be another's.
    """
    if not _is_locked(status, proc):
        return []
    trusted = {0, os.geteuid()}
    return [pid for pid in _pids(proc) if _users(pid, proc) <= trusted and _has_open(pid, status, proc)]


def claim(lock: Path) -> os.stat_result | None:
    """Put a file in the lock's place that only our user can open; what others hold of the old one locks nothing.

    To be called while ``holders`` names nobody. The script makes the file readable by all, which is enough to take
    its lock. The answer is the old file, which somebody may have locked in just this moment; None when nothing changed.

    Raises:
        StorageError: the folder does not take it.
    """
    try:
        status = lock.stat()
        if not status.st_mode & _OTHERS or not sys.platform.startswith("linux"):
            return None
    except FileNotFoundError:
        return None  # no switch since the host came up
    except OSError as error:
        raise StorageError(f"can't look at {lock}: {error.strerror}", error.errno) from error
    durable.write(lock, b"", mode=0o600)
    return status


def _is_locked(status: os.stat_result, proc: Path) -> bool:
    """A row of the table: "1: FLOCK ADVISORY WRITE 6660 fe:00:2146438 0 EOF"; "->" marks one who only waits for it."""
    try:
        rows = (proc / _LOCKS).read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any(len(fields) > 5 and fields[1] != "->" and fields[5] == wanted for fields in map(str.split, rows))


def _pids(proc: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(proc) if name.isdigit())


def _users(pid: int, proc: Path) -> set[int]:
    """Real and effective user: `su` that a stranger has started with the file open is not root's."""
    try:
        found = _UIDS.search((proc / str(pid) / "status").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    return {int(found[1]), int(found[2])} if found else {-1}


def _has_open(pid: int, status: os.stat_result, proc: Path) -> bool:
    folder = proc / str(pid) / "fd"
    try:
        for name in os.listdir(folder):
            try:
                opened = (folder / name).stat()
            except OSError:  # closed since
                continue
            if (opened.st_dev, opened.st_ino) == (status.st_dev, status.st_ino):
                return True
    except OSError:  # ended since
        return False
    return False
