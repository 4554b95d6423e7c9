"""The shell scripts that go on when the agent, Python and the virtual environment are gone."""

from __future__ import annotations

import importlib.resources
import shutil
from pathlib import Path

from nixfleet_agent import durable

WRAPPER, GUARD, REARM = "wrapper.sh", "guard.sh", "rearm.sh"
#: What they call.
_PROGRAMS = ("cat", "dd", "env", "ln", "mv", "rm", "sed", "sleep")


def missing(path: str | None) -> list[str]:
    """The programs that the scripts need and would not find on that ``PATH``: without them no switch is recorded."""
    return [name for name in _PROGRAMS if shutil.which(name, path=path) is None]


def install(folder: Path) -> None:
    """Put the scripts into ``folder``, durably, unless they are there as they should be.

    A script that still runs from an older copy keeps its file: the new one takes the name by rename.

    Raises:
        StorageError: the disk refused.
    """
    durable.make_directory(folder)
    source = importlib.resources.files(__name__)
    for name in (WRAPPER, GUARD, REARM):
        wanted = (source / name).read_bytes()
        place = folder / name
        if not place.exists() or place.read_bytes() != wanted:
            durable.write(place, wanted, mode=0o700)
