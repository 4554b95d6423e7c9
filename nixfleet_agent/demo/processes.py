"""The processes of a demo and what they leave behind: what they inherit, how they end with it, and their files."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
from pathlib import Path

import nixfleet_agent

#: By this variable every process of one demo is found again, also those that outlive their agent by design.
MARK_VARIABLE = "FLEET_DEMO"


@functools.cache
def die_with_parent() -> tuple[str, ...]:
    """What a command begins with so that it dies with a demo that is killed; nothing where that can't be had."""
    words = ("setpriv", "--pdeathsig", "KILL")
    if shutil.which(words[0]) is None:
        return ()
    # Not every setpriv knows how: busybox's does not.
    tried = subprocess.run([*words, "true"], capture_output=True, check=False)  # nosec B603 # fixed words
    if tried.returncode != 0:
        return ()
    # A demo that was killed before setpriv had its say would be outlived: whose child it is, is looked at after that.
    return (*words, "sh", "-c", f'[ "$PPID" = {os.getpid()} ] && exec "$@"', "sh")


def inherited() -> dict[str, str]:
    """What a process of a demo has of this one's environment: where programs and Python's packages are."""
    package = str(Path(nixfleet_agent.__file__).resolve().parent.parent)
    search = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": os.pathsep.join(search)}


def end_marked(variable: str, value: str) -> list[int]:
    """Kill every process that has this in its environment, such as the mark of this demo; their ids.

    Switches and dead-man guards are detached on purpose, so that they survive their agent.
    """
    ended = []
    wanted = f"{variable}={value}".encode()
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
                ended.append(int(entry.name))
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return ended


def remove_tree(folder: Path) -> None:
    """Remove a folder with Nix stores in it, whose folders are read-only."""
    for path, folders, _ in os.walk(folder):
        for name in folders:
            inner = Path(path) / name
            if not inner.is_symlink():
                inner.chmod(0o700)
    shutil.rmtree(folder)
