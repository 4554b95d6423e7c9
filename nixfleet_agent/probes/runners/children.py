"""Children of the agent that were killed and are not gone yet: kept until they are, so that none stays a zombie."""

from __future__ import annotations

import subprocess
import threading


class Unreaped:
    """A process stuck in the kernel (a dead disk, a hung mount) ends only when its system call does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: list[subprocess.Popen[bytes]] = []

    def adopt(self, child: subprocess.Popen[bytes]) -> None:
        """Take over a child that got SIGKILL and did not end in time."""
        with self._lock:
            self._children.append(child)

    def sweep(self) -> int:
        """Reap those that have ended; how many are left."""
        with self._lock:
            self._children = [child for child in self._children if child.poll() is None]
            return len(self._children)
