"""The state directory and its lock: one agent at a time, and what a crash left behind cleared away."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.errors import ConfigError, StateDirBusyError, StorageError

LOCK_NAME = "lock"


class StateDir:
    """Held from ``take`` until the process ends; the kernel lets go of the lock however it ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> StateDir:
        """Create the directory (0700) where missing, lock it, and remove stray temporary files.

        Raises:
            ConfigError: it can't be created or written.
            StateDirBusyError: another agent holds it.
        """
        try:
            durable.make_directory(path)
            descriptor = durable.open_lock(path / LOCK_NAME)
        except (StorageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).rpartition(": ")[2]
            advice = "run it as root" if getattr(error, "errno", None) == errno.EACCES else "check state_dir"
            raise ConfigError(f"can't use the state directory {path}: {reason}: {advice}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StateDirBusyError(
                f"another agent (pid {holder or 'unknown'}) runs on {path}: "
                "stop it, or give this one a state_dir of its own"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        _remove_temporaries(path)
        return cls(path, descriptor)

    def release_lock(self) -> None:
        """Give the lock up before the process ends (tests run several agents in one process)."""
        os.close(self._descriptor)


def holder(path: Path) -> int | None:
    """The pid of the agent that holds this state directory; None when nobody does, or it can't be seen.

    The lock itself is never tried: an agent that starts at that moment would give up for good.
    """
    try:
        lock = (path / LOCK_NAME).stat()
        pid = int((path / LOCK_NAME).read_text())
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.path.samestat(entry.stat(), lock):
                    return pid
            except OSError:
                continue  # closed meanwhile
    except (OSError, ValueError):
        return None
    return None


def _remove_temporaries(path: Path) -> None:
    """In every folder but the journal's own, which may hold a hundred thousand files and looks after itself."""
    for folder, inner, _ in os.walk(path):
        if Path(folder) == path:
            inner[:] = [name for name in inner if not name.startswith("outbound-")]
        durable.remove_temporaries(Path(folder))
