"""The shell scripts that go on when the agent, Python and the virtual environment are gone."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from nixfleet_agent import durable

WRAPPER, GUARD = "wrapper.sh", "guard.sh"


def install(folder: Path) -> None:
    """Put the scripts into ``folder``, durably, unless they are there as they should be.

    A script that still runs from an older copy keeps its file: the new one takes the name by rename.

    Raises:
        StorageError: the disk refused.
    """
    durable.make_directory(folder)
    source = importlib.resources.files(__name__)
    for name in (WRAPPER, GUARD):
        wanted = (source / name).read_bytes()
        place = folder / name
        if not place.exists() or place.read_bytes() != wanted:
            durable.write(place, wanted, mode=0o700)
