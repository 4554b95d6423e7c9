"""What the host says about itself: the system that runs, this boot, and who a process is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent.config.model import ActivationConfig
from nixfleet_agent.proto.ids import CLOSURE

STORE = "/nix/store"
_MAX_LINKS = 40
_PS_TIMEOUT_SECS = 10.0
#: Written by a systemd that is a container's PID 1.
_CONTAINER = Path("/run/systemd/container")
_OF_PID_1 = "/"


def read_current(config: ActivationConfig) -> str | None:
    """The basename of the system that runs; None when ``current_system`` leads to no closure."""
    return read_link(config.current_system)[0]


def read_profile(profile: Path) -> str | None:
    """The basename that the profile leads to through its generation link; None when it leads nowhere."""
    return read_link(profile)[0]


def read_link(link: Path) -> tuple[str | None, str]:
    """The closure that a link leads to, through any other links, and why it does not when it does not.

    Read name by name, for with a store elsewhere the closure itself is at another place. A container's
    ``current-system`` may lead through the profile, and be missing before the first switch.
    """
    place = link
    for _ in range(_MAX_LINKS):
        try:
            target = place.readlink()
        except FileNotFoundError:
            return None, f"{place} does not exist" + ("" if place == link else f", where {link} leads")
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None, f"{place} is no link into {STORE}"
            return None, f"{place} can't be read: {error.strerror}"
        place = Path(os.path.normpath(place.parent / target))
        if place.parent.as_posix().endswith(STORE):
            if CLOSURE.fullmatch(place.name):
                return place.name, ""
            return None, f"{link} leads to {place}, which is no closure"
    return None, f"{link} leads in a circle"


def store_path(closure: str) -> str:
    """The path by which Nix knows the closure, whatever the store's root."""
    return f"{STORE}/{closure}"


def on_disk(store_root: str, closure: str) -> Path:
    """Where the closure's files are."""
    return Path(f"{store_root}{STORE}/{closure}")


def resolve(store_root: str, logical: str) -> str | None:
    """The logical path that ``logical`` names once every link is followed as inside ``store_root``; None if missing.

    Links in a store are absolute (``/nix/store/...``), so with a store elsewhere the system's own resolution
    would look outside it.
    """
    pending = [part for part in logical.split("/") if part]
    done: list[str] = []
    links = 0
    while pending:
        part = pending.pop(0)
        if part == "..":
            del done[-1:]
            continue
        place = Path(store_root + "/" + "/".join([*done, part]))
        try:
            target = str(place.readlink())
        except FileNotFoundError:
            return None
        except OSError:  # it exists and is no link
            done.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            return None
        done = [] if target.startswith("/") else done
        pending = [step for step in target.split("/") if step not in {"", "."}] + pending
    return "/" + "/".join(done)


def read_boot_id(container: Path = _CONTAINER) -> str:
    """Names this boot of the machine, or of the container; empty when the system does not tell.

    A container may show an id of its own, but a unit with a /proc of its own sees the machine's, which stays when the
    container boots anew. There its PID 1 tells the boots apart, by the time at which it started.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return _ask("sysctl", "-n", "kern.bootsessionuuid") if sys.platform == "darwin" else ""
    first = process(1) if container.exists() else None
    return f"{boot}{_OF_PID_1}{first.start}" if first else boot


def same_boot(one: str | None, other: str | None) -> bool:
    """Whether two ids name the same boot; one from before containers were told apart has no second half."""
    if one is None or other is None:
        return False
    if _OF_PID_1 in one and _OF_PID_1 in other:
        return one == other
    return one.partition(_OF_PID_1)[0] == other.partition(_OF_PID_1)[0]


@dataclass(frozen=True, slots=True)
class Process:
    """A living process: its group, and a start time that tells it from a later one of the same number."""

    pid: int
    group: int
    start: str


def process(pid: int) -> Process | None:
    """The process of that number, unless there is none or only its zombie."""
    if not Path("/proc/self/stat").exists():
        return _process_by_ps(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in {"Z", "X"}:
        return None
    return Process(pid, int(fields[2]), fields[19])


def group_members(group: int) -> list[int]:
    """The living processes of a process group."""
    if not Path("/proc/self/stat").exists():
        return [int(pid) for pid in _ask("ps", "-o", "pid=", "-g", str(group)).split()]
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if (found := process(pid)) is not None and found.group == group]


def _process_by_ps(pid: int) -> Process | None:
    state = _ask("ps", "-o", "stat=", "-p", str(pid))
    group = _ask("ps", "-o", "pgid=", "-p", str(pid))
    if not group or state.startswith("Z"):
        return None
    return Process(pid, int(group), "_".join(_ask("ps", "-o", "lstart=", "-p", str(pid)).split()))


def _ask(*arguments: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        answer = subprocess.run(  # nosec B603 # ps, with a number for its argument
            arguments, env=environment, capture_output=True, text=True, check=False, timeout=_PS_TIMEOUT_SECS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()
