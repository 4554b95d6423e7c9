"""The state directory and its lock: one agent at a time, and what a crash left behind cleared away."""

from __future__ import annotations

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
            descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (StorageError, OSError) as error:
            raise ConfigError(f"can't use the state directory {path}: {error}; check state_dir") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StateDirBusyError(
                f"another agent (pid {holder or 'unknown'}) runs on {path}: "
                "stop it, or give this one a state_dir of its own"
            ) from error
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        _remove_temporaries(path)
        return cls(path, descriptor)

    def let_go(self) -> None:
        """Give the lock up before the process ends (tests run several agents in one process)."""
        os.close(self._descriptor)


def _remove_temporaries(path: Path) -> None:
    """In every folder but the journal's own, which may hold a hundred thousand files and looks after itself."""
    for folder, inner, _ in os.walk(path):
        if Path(folder) == path:
            inner[:] = [name for name in inner if not name.startswith("outbound-")]
        durable.remove_temporaries(Path(folder))
