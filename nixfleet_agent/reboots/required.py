"""``/run/reboot-required`` and ``.pkgs``, as Debian has them: what else watches this host learns that a reboot is due.

Another program may have made the same files. Its words are left alone; only the components are added.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.errors import StorageError
from nixfleet_agent.reading import read_regular

#: What the file says; one with other words is not ours to remove.
NOTICE = b"*** System restart required (nixfleet-agent) ***\n"
_LIMIT = 64 * 1024


def require(path: Path, components: Iterable[str]) -> None:
    """A reboot is due for these components (raises StorageError)."""
    packages = _packages(path)
    if not path.exists():
        durable.write(path, NOTICE, 0o644, sync=False)
    before = _read(packages).decode(errors="replace").splitlines()
    after = list(dict.fromkeys([*before, *components]))
    if after != before:
        durable.write(packages, "".join(f"{name}\n" for name in after).encode(), 0o644, sync=False)


def withdraw(path: Path) -> None:
    """No reboot is due any more, though this boot goes on (raises StorageError)."""
    if _read(path) == NOTICE:
        durable.remove(path)
        durable.remove(_packages(path))


def _packages(path: Path) -> Path:
    return path.with_name(f"{path.name}.pkgs")


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, _LIMIT)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StorageError(f"can't read {path}: {error.strerror or error}") from error
