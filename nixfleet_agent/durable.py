"""The only module that opens a file for writing: what ``write`` returns from has survived a power cut.

Every write is temporary file, fsync, rename, fsync of the folder. ``boundary`` is called before each
step with its name and path, so that tests can stop the process, or fail the step, at every one of them.

Root writes into folders of others too: a collector's textfile, `/tmp` for a support archive. So the temporary name
can't be guessed, nothing that is already there is opened or followed, and both names are looked up in one folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nixfleet_agent.errors import StorageError

#: Suffix of files that a crash may leave behind; they are never read, and removed at start.
TEMPORARY_SUFFIX = ".tmp~"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _no_boundary(step: str, path: Path) -> None:
    """The product does nothing here."""


#: Called as ``boundary(step, path)`` before each step: ``create``, ``fsync``, ``rename``, ``fsync-dir``, ``remove``.
boundary: Callable[[str, Path], None] = _no_boundary


def write(path: Path, data: bytes, mode: int = 0o600, *, sync: bool = True) -> None:
    """Replace ``path`` by ``data`` durably; readers see the old content or the new, never a part.

    Without ``sync`` it is as whole, but may be gone after a power cut. A link at ``path`` is replaced, not followed.

    Raises:
        StorageError: the disk refused a step. The old content is intact, unless only the last step (the
            folder's fsync) failed: then the new content is in place but may not survive a power cut, and
            writing the same bytes again is the remedy.
    """
    temporary = f".{path.name[:200]}.{os.urandom(6).hex()}{TEMPORARY_SUFFIX}"
    try:
        folder = os.open(path.parent, _FOLDER)
    except OSError as error:
        raise _refused("write", path, error) from error
    try:
        boundary("create", path)
        descriptor = os.open(temporary, _NEW, mode, dir_fd=folder)
        try:
            # open() takes the umask off the mode; a certificate for everybody would come out for root alone.
            os.fchmod(descriptor, mode)
            _write_all(descriptor, data)
            if sync:
                boundary("fsync", path)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        boundary("rename", path)
        os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        if sync:
            boundary("fsync-dir", path.parent)
            os.fsync(folder)
    except OSError as error:
        with suppress(OSError):  # a read-only disk refuses this too; what stays is removed at the next start
            os.unlink(temporary, dir_fd=folder)
        raise _refused("write", path, error) from error
    finally:
        os.close(folder)


def fill(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` with mode 0600, neither whole nor durable for anybody who looks (raises OSError)."""
    descriptor = os.open(path, _NEW & ~os.O_EXCL | os.O_TRUNC, 0o600)
    try:
        _write_all(descriptor, data)
    finally:
        os.close(descriptor)


def allocate(path: Path, size: int) -> None:
    """Have ``size`` bytes on the disk under ``path``, whatever they hold (raises OSError)."""
    descriptor = os.open(path, _NEW & ~os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> int:
    """A descriptor of the lock file at ``path``, made where missing; its holder's number goes into it (OSError)."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def overwrite(path: Path, data: bytes) -> None:
    """Write ``data`` into the file at ``path``, where nothing can take its place: a mount point.

    A reader, or a power cut, may find a part of it: the caller keeps what was there before elsewhere.

    Raises:
        StorageError: the disk refused.
    """
    try:
        boundary("overwrite", path)
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _write_all(descriptor, data)
            os.ftruncate(descriptor, len(data))
            boundary("fsync", path)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _refused("write", path, error) from error


def move(source: Path, destination: Path, *, sync: bool) -> None:
    """Rename within one file system; with ``sync`` both folders are durable when it returns.

    Raises:
        StorageError: the rename or the fsync was refused.
    """
    try:
        boundary("rename", destination)
        os.replace(source, destination)
        if sync:
            sync_directory(destination.parent)
            if source.parent != destination.parent:
                sync_directory(source.parent)
    except OSError as error:
        raise _refused("move a file to", destination, error) from error


def remove(path: Path, *, sync: bool = False) -> None:
    """Delete ``path`` if it exists.

    Raises:
        StorageError: the file system refused.
    """
    try:
        boundary("remove", path)
        path.unlink(missing_ok=True)
        if sync:
            sync_directory(path.parent)
    except OSError as error:
        raise _refused("remove", path, error) from error


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Create ``path`` and its parents where missing, each durable in its parent.

    Raises:
        StorageError: the file system refused.
    """
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        for folder in reversed(missing):
            folder.mkdir(mode=mode, exist_ok=True)
            try:
                sync_directory(folder.parent)
            except OSError:
                with suppress(OSError):  # so that the next call finds it missing and makes it durable
                    folder.rmdir()
                raise
    except OSError as error:
        raise _refused("create the folder", path, error) from error


def remove_temporaries(folder: Path, prefix: str = "") -> list[str]:
    """Remove the files that interrupted writes left in ``folder``, of those whose name begins so; the names removed.

    Raises:
        StorageError: a file can't be removed.
    """
    try:
        with os.scandir(folder) as found:
            stray = [
                entry.name
                for entry in found
                if entry.name.startswith(prefix)
                and entry.name.endswith(TEMPORARY_SUFFIX)
                and not entry.is_dir(follow_symlinks=False)
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    for name in stray:
        remove(folder / name)
    return stray


def sync_directory(folder: Path) -> None:
    """Make the names in ``folder`` durable (raises OSError)."""
    boundary("fsync-dir", folder)
    descriptor = os.open(folder, _FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(what: str, path: Path, error: OSError) -> StorageError:
    return StorageError(f"can't {what} {path}: {error.strerror or error}", error.errno)
