"""Who may change what root believes or runs: a file is as good as the weakest folder on its way.

The configuration names the control plane, the trust file says whose signature counts, the health checks are commands
that root runs. A user who may write one of them, or rename a folder above it, is root for all that matters.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import ConfigError

#: As many links as Linux follows on one way.
_MAX_LINKS = 40


def believed(config: Config, file: Path | None) -> tuple[Path, ...]:
    """Every path whose content the agent believes or runs; ``file`` is the configuration's own, if there is one."""
    named = (
        file,
        config.trust_file,
        config.ca_cert,
        config.health_checks_file,
        config.client_key,
        config.ssh_host_key_file,
        Path(f"{config.ssh_host_key_file}.pub"),  # evidence is verified with it
        config.client_cert,
        config.bootstrap_token_file,
        config.state_dir,
    )
    return tuple(dict.fromkeys(path for path in named if path is not None))


def require_safe(paths: Iterable[Path]) -> None:
    """Raises ConfigError naming the first path that somebody else may change, and how to end that."""
    for path in paths:
        if (problem := unsafe(path)) is not None:
            raise ConfigError(problem)


def unsafe(path: Path) -> str | None:
    """Why somebody else than root (or the agent's own user) may change ``path``; None when nobody may.

    Links are followed one by one, for each folder that one lies in counts. What does not exist yet, or may not be
    looked at, is somebody else's to report.
    """
    for place in _way(path):
        try:
            status = place.lstat()
        except OSError:
            return None
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            return None  # a device or a pipe holds nothing that can be believed: its reader says so
        why = None if stat.S_ISLNK(status.st_mode) else _changeable(place, status)
        if why is not None:
            return why if place == path else f"{path} is not safe: {why}"
    return None


def _way(path: Path) -> Iterator[Path]:
    """Every folder, link and file that is passed on the way to ``path``, from the root on."""
    rest = list(reversed(path.absolute().parts[1:]))
    here, links = Path("/"), 0
    yield here
    while rest:
        part = rest.pop()
        if part == "..":
            here = here.parent
            continue
        here /= part
        yield here
        try:
            target = here.readlink()
        except OSError:
            continue  # no link
        links += 1
        if links > _MAX_LINKS:
            return
        here = Path("/") if target.is_absolute() else here.parent
        rest.extend(reversed([part for part in target.parts if part != "/"]))


def _changeable(place: Path, status: os.stat_result) -> str | None:
    """Who else may change what is at ``place`` (or in it, where it is a folder)."""
    if status.st_uid not in (0, os.geteuid()):
        return f"{place} belongs to user {status.st_uid}, who can change it: run `chown root {place}`"
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return None  # as /tmp: what is ours in it, others can't rename or remove
    # Root's own group has no members; an ordinary user's own, as Debian makes them, neither.
    shared = mode & stat.S_IWOTH or (mode & stat.S_IWGRP and status.st_gid not in (0, os.getegid()))
    return f"{place} can be changed by others (mode {mode:04o}): run `chmod go-w {place}`" if shared else None
