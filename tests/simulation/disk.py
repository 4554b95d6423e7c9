"""One host's disk: a folder, and what a power cut takes of it; errors and waits at the boundaries of durable writes.

A rename, a link and a new name are lost with the power unless their folder was synced since. What was lost is decided
as by a journal of the file system: of the unsynced steps, in their order, a first part survives.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nixfleet_agent import durable
from tests.simulation.primitives import SimClock
from tests.simulation.scheduler import Scheduler

#: What nobody synced is on the disk after so many seconds all the same.
WRITEBACK_SECS = 30.0
#: Refusals that are no further apart are of one time of trouble, in seconds.
APART_SECS = 240.0
#: Steps that a broken disk refuses.
_WRITING = frozenset({"create", "fsync", "rename", "fsync-dir", "overwrite"})


@dataclass(slots=True)
class _Step:
    """A name that changed: what stood there before, None for nothing."""

    at: float
    folder: str
    path: Path
    before: bytes | None
    mode: int
    link: str | None
    source: Path | None


@dataclass(slots=True)
class Trouble:
    """How the disk behaves now. ``latency``: seconds that a step takes at most."""

    refuses: int | None = None
    rate: float = 1.0
    latency: float = 0.0


@dataclass(slots=True)
class Disk:
    """See the module. ``stop_at`` is asked at each boundary whether the process is killed there."""

    root: Path
    scheduler: Scheduler
    clock: SimClock
    rng: random.Random
    trouble: Trouble = field(default_factory=Trouble)
    steps: int = 0
    _first_refused_at: float = -1e9
    _refused_at: float = -1e9
    on_step: Callable[[str, Path], None] | None = None
    _unsynced: list[_Step] = field(default_factory=list)

    @property
    def _mark(self) -> str:
        """What stands before the rollout in the name of a file of the journal: the host."""
        return f"-{self.root.name}-"

    def boundary(self, step: str, path: Path) -> None:
        """Called by ``durable`` before each step, in the thread that takes it."""
        self.steps += 1
        if self.on_step is not None:
            self.on_step(step, path)
        trouble = self.trouble
        if trouble.latency:
            self.scheduler.sleep(self.rng.random() * trouble.latency)
        else:
            self.scheduler.pause()
        if trouble.refuses is not None and step in _WRITING and self.rng.random() < trouble.rate:
            self._first_refused_at, self._refused_at = self.troubled_since(), self.scheduler.now
            raise OSError(trouble.refuses, os.strerror(trouble.refuses))
        if step in ("rename", "remove"):
            self.changes(path)
        elif step == "fsync-dir":
            self._sync(path)

    def troubled_since(self) -> float:
        """When it began to refuse writes, where it did so until lately, or else now."""
        now = self.scheduler.now
        return self._first_refused_at if now - self._refused_at < APART_SECS else now

    def changes(self, path: Path) -> None:
        """The name is about to change, and that is not durable yet."""
        now, folder, name = self.scheduler.now, os.path.dirname(path), str(path)
        if self._unsynced and self._unsynced[0].at < now - WRITEBACK_SECS:
            self._unsynced = [step for step in self._unsynced if step.at >= now - WRITEBACK_SECS]
        before: bytes | None = None
        link: str | None = None
        mode = 0
        try:
            mode = os.lstat(name).st_mode
            if stat.S_ISLNK(mode):
                link = os.readlink(name)
            elif stat.S_ISREG(mode):
                before = path.read_bytes()
        except FileNotFoundError:
            pass
        self._unsynced.append(_Step(now, folder, path, before, stat.S_IMODE(mode), link, self._source(path)))

    def _source(self, path: Path) -> Path | None:
        """Where a file of the journal is moved from: it keeps its name, which names its rollout."""
        folder, file = os.path.split(path)
        if "/state/outbound-" not in folder:
            return None
        source = f"{self.root}/state/outbound-queue/{file}"
        if folder.endswith("outbound-queue"):
            source = f"{self.root}/state/outbound-sent/{file.rpartition('-')[0].partition(self._mark)[2]}/{file}"
        return Path(source) if os.path.exists(source) else None

    def _sync(self, path: Path) -> None:
        folder, stamp = str(path), self.clock.now().timestamp()
        for step in self._unsynced:
            if step.folder == folder:
                with suppress(FileNotFoundError):
                    os.utime(step.path, (stamp, stamp), follow_symlinks=False)  # as old as the simulation says
        self._unsynced = [step for step in self._unsynced if step.folder != folder]

    def sync(self) -> None:
        """All of it is on the disk, as before an orderly shutdown."""
        self._unsynced.clear()

    def lose_power(self) -> int:
        """Take back what was not durable; how many steps were lost."""
        kept = self.rng.randrange(len(self._unsynced) + 1)
        lost = self._unsynced[kept:]
        for step in reversed([step for step in lost if not step.path.is_dir()]):
            if step.source is not None and step.path.exists() and step.source.parent.is_dir():
                step.path.replace(step.source)
            step.path.unlink(missing_ok=True)
            if step.path.parent.is_dir():
                if step.link is not None:
                    step.path.symlink_to(step.link)
                elif step.before is not None:
                    step.path.write_bytes(step.before)
                    step.path.chmod(step.mode)
        self._unsynced.clear()
        return len(lost)


class Disks:
    """All of them, by host; while it is installed, every durable write of a host's processes goes by its disk."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._disks: dict[str, Disk] = {}
        self._before = durable.boundary

    def add(self, host: str, disk: Disk) -> None:
        self._disks[host] = disk

    def install(self) -> None:
        durable.boundary = self._boundary

    def remove(self) -> None:
        durable.boundary = self._before

    def _boundary(self, step: str, path: Path) -> None:
        disk = self._disks.get(self._scheduler.current.group.partition("/")[0])
        if disk is not None:
            disk.boundary(step, path)


FULL = errno.ENOSPC
BROKEN = errno.EIO
