"""Finds the hooks of a moment, and says of each file there why it may not be run: it would be run as root."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent.config.ownership import unsafe
from nixfleet_agent.hooks.moments import FOLDERS

#: More programs than this in one folder are a mistake, such as a hooks folder that is a link to /usr/bin.
MOST_HOOKS = 64


@dataclass(frozen=True, slots=True)
class Found:
    """``hooks`` in the order of their names; ``problems`` are lines for the log and ``check``."""

    hooks: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()


def find(folder: Path, moment: str) -> Found:
    """The programs in ``folder/moment``. A file that may not be run is a problem, and is not run."""
    place = folder / moment
    try:
        names = sorted(name for name in os.listdir(place) if not name.startswith(".") and not name.endswith("~"))
    except FileNotFoundError:
        return Found()
    except OSError as error:
        return Found(problems=(f"can't read the hooks in {place}: {error.strerror}",))
    if problem := unsafe(place):
        return Found(problems=(f"hooks are not run: {problem}",))
    if len(names) > MOST_HOOKS:
        return Found(problems=(f"{place} has {len(names)} files, more than {MOST_HOOKS}: none of them is run",))
    hooks, problems = [], []
    for name in names:
        path = place / name
        if problem := _unfit(path):
            problems.append(problem)
        else:
            hooks.append(path)
    return Found(tuple(hooks), tuple(problems))


def problems(folder: Path) -> list[str]:
    """What is wrong with a whole hooks folder, a line each, for ``check`` and the start."""
    if not folder.is_dir():
        return []
    found = [problem for moment in FOLDERS for problem in find(folder, moment).problems]
    try:
        unknown = sorted(set(os.listdir(folder)) - set(FOLDERS))
    except OSError as error:
        return [*found, f"can't read the hooks in {folder}: {error.strerror}"]
    named = ", ".join(FOLDERS)
    return [*found, *(f"{folder / name} is no moment that hooks run at: use {named}" for name in unknown)]


def _unfit(path: Path) -> str | None:
    try:
        status = path.stat()
    except OSError as error:
        return f"the hook {path} can't be read ({error.strerror}): it is not run"
    if not stat.S_ISREG(status.st_mode):
        return f"the hook {path} is not a file: it is not run"
    if not status.st_mode & stat.S_IXUSR:
        return f"the hook {path} is not executable, and so not run: chmod 755 it, or remove it"
    problem = unsafe(path)
    return f"a hook is not run: {problem}" if problem else None
