"""A power cut for one process: whatever it renamed, removed, made or wrote without an fsync is taken back.

Names live in their folder and survive only an fsync of that folder; content survives only an fsync of its file. A
rename is one change, which is there or not: it is durable with an fsync of either folder, as on every file system
with a journal or with copy on write.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nixfleet_agent import durable
from nixfleet_agent.activation import records


@dataclass(frozen=True, slots=True)
class _Change:
    """One change of names that is not durable until one of ``folders`` is synced."""

    folders: frozenset[str]
    undo: Callable[[], None]


class Unsynced:
    """What is not durable now. ``install`` puts it between the product's two writing modules and the system."""

    def __init__(self) -> None:
        self._changes: list[_Change] = []
        self._dirty: dict[tuple[int, int], str] = {}

    def install(self) -> None:
        watched: Any = _Watched(self)
        durable.os = watched  # type: ignore[attr-defined]
        records.os = watched  # type: ignore[attr-defined]
        unlink, mkdir = Path.unlink, Path.mkdir

        def watched_unlink(path: Path, missing_ok: bool = False) -> None:
            self.before_unlink(os.fspath(path))
            unlink(path, missing_ok=missing_ok)

        def watched_mkdir(path: Path, *arguments: Any, **options: Any) -> None:
            existed = path.exists()
            mkdir(path, *arguments, **options)
            if not existed:
                self._changed((os.fspath(path.parent),), lambda: shutil.rmtree(path, ignore_errors=True))

        Path.unlink = watched_unlink  # type: ignore[assignment,method-assign]
        Path.mkdir = watched_mkdir  # type: ignore[assignment,method-assign]

    def opened(self, path: str, descriptor: int, *, created: bool) -> None:
        self._dirty[_identity(descriptor)] = path
        if created:
            self._changed((os.path.dirname(path),), lambda: _quietly(os.unlink, path))

    def synced(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            folder = os.readlink(f"/proc/self/fd/{descriptor}")
            self._changes = [change for change in self._changes if folder not in change.folders]
        else:
            self._dirty.pop((status.st_dev, status.st_ino), None)

    def before_replace(self, source: str, destination: str) -> None:
        was, moved = _read(destination), _read(source)
        status = os.lstat(source)
        if (status.st_dev, status.st_ino) in self._dirty:
            self._dirty[status.st_dev, status.st_ino] = destination

        def undo() -> None:
            if was is None:
                _quietly(os.unlink, destination)
            else:
                _write(destination, was)
            if moved is not None:
                _write(source, moved)

        self._changed((os.path.dirname(source), os.path.dirname(destination)), undo)

    def before_unlink(self, path: str) -> None:
        was = _read(path)
        if was is not None:
            content = was
            self._changed((os.path.dirname(path),), lambda: _write(path, content))

    def take_back(self) -> None:
        """The power is gone: newest change first."""
        for path in list(self._dirty.values()):
            _quietly(os.truncate, path, 0)
        for change in reversed(self._changes):
            change.undo()

    def _changed(self, folders: tuple[str, ...], undo: Callable[[], None]) -> None:
        self._changes.append(_Change(frozenset(os.path.realpath(folder) for folder in folders), undo))


class _Watched:
    """The ``os`` module, with those calls watched that change names or content."""

    def __init__(self, unsynced: Unsynced) -> None:
        self._unsynced = unsynced

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        name = _whole(path, dir_fd)
        created = bool(flags & os.O_CREAT) and not os.path.lexists(name)
        descriptor = os.open(name, flags, mode)
        if flags & (os.O_WRONLY | os.O_RDWR):
            self._unsynced.opened(name, descriptor, created=created)
        return descriptor

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        self._unsynced.synced(descriptor)

    def replace(
        self, source: Any, destination: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        before, after = _whole(source, src_dir_fd), _whole(destination, dst_dir_fd)
        self._unsynced.before_replace(before, after)
        os.replace(before, after)


def _whole(path: Any, folder: int | None) -> str:
    """The path of a name in a folder that is known by its descriptor."""
    name = os.fspath(path)
    return name if folder is None else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError:
        return None


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(content)


def _quietly(act: Callable[..., object], *arguments: object) -> None:
    try:
        act(*arguments)
    except OSError:
        return
