"""A small file system of its own under the state directory, and a release that fills it: it is still taken back."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nixfleet_agent.state_machine import State
from tests.faults.rig import Problem, Rig
from tests.faults.runs import KEPT, Outcome, Runs

SIZE = "12M"
#: Enough for an agent and a rollout, and soon used up.
INODES = 700


def taken_back(runs: Runs) -> Outcome:
    """The release's switch writes until nothing fits any more; its probe fails."""
    return _filled(runs, kill=False)


def taken_back_after_a_kill(runs: Runs) -> Outcome:
    """The agent is killed on the full disk, too."""
    return _filled(runs, kill=True)


def taken_back_without_a_guard(runs: Runs) -> Outcome:
    """No guard's record goes away and makes room: not even the switch's end can be written without the reserve."""
    return _filled(runs, kill=False, activation={"guard_secs": 0})


def taken_back_without_inodes(runs: Runs) -> Outcome:
    """The release's switch leaves no inode: as good as no room, though there are megabytes."""
    return _filled(runs, kill=False, release="litterer", options=f"nr_inodes={INODES}")


def _filled(
    runs: Runs, *, kill: bool, release: str = "filler", options: str = f"size={SIZE}", **config: Any
) -> Outcome:
    outcome = Outcome(tries=1)
    rig = runs.rig("full", **config)
    if not mounted(rig.host.state_dir, options):
        rig.close()
        return Outcome(skipped="a tmpfs can't be mounted here")
    rig.closers.append(lambda: unmount(rig.host.state_dir))

    def tell(rig: Rig) -> None:
        rig.publish(release)
        rig.start()
        rig.until(lambda: (rig.host.state_dir / "filler").exists(), "the filler")
        if kill:
            rig.until(lambda: rig.host.running() == rig.world.closures[release], "the flip")
            rig.kill()
        rig.until_state(release, State.REVERTED)
        rig.until_delivered()
        filler = rig.host.state_dir / "filler"
        shutil.rmtree(filler) if filler.is_dir() else filler.unlink()

    try:
        finished = runs.finish(rig, tell)
    except Problem as problem:
        outcome.problems.append(f"{problem} [{KEPT / rig.folder.name}]")
        return outcome
    if (finished.ending.runs, finished.ending.profile) != ("v0", "v0"):
        outcome.problems.append(f"runs {finished.ending.runs}, profile {finished.ending.profile}")
    outcome.problems += finished.flaws
    return outcome


def mounted(folder: Path, options: str) -> bool:
    """Put a small tmpfs at ``folder``; False where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"{options},mode=0700", "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


ITEMS: dict[str, Callable[[Runs], Outcome]] = {
    "full-disk": taken_back,
    "full-disk-killed": taken_back_after_a_kill,
    "full-disk-no-guard": taken_back_without_a_guard,
    "no-inodes": taken_back_without_inodes,
}
