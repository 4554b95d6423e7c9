"""Foreign, truncated and corrupt files in every folder of the state directory: the next release still goes through."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from nixfleet_agent.state_machine import State
from tests.faults.ending import flaws
from tests.faults.rig import Problem, Rig, rollout_id
from tests.faults.runs import KEPT, Outcome, Runs

GARBAGE = b"\x00\xff{not json"


def _file(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        path = path / "x"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def foreign_files(state: Path) -> None:
    """Something that is not ours in every folder: a file, a folder, a broken link, a pipe, an odd name."""
    folders = [state, *(path for path in state.rglob("*") if path.is_dir() and not path.is_symlink())]
    for folder in folders:
        _file(folder / "lost+found.txt", GARBAGE)
        _file(folder / ("n" * 200), b"")
        (folder / "a folder" / "inside").mkdir(parents=True)
        (folder / "broken").symlink_to("/nowhere")
        os.mkfifo(folder / "a pipe")
        _file(Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe\n")), b"?")
        _file(folder / "00000000000000000099-web-01-stable@ab-ProbeResult.json", GARBAGE)


def garbage_in(pattern: str, state: Path) -> None:
    """Every file of a kind is garbage."""
    for path in state.glob(pattern):
        if path.is_file() and not path.is_symlink():
            _file(path, GARBAGE)


def truncated(pattern: str, state: Path) -> None:
    """Every file of a kind is cut in half."""
    for path in state.glob(pattern):
        if path.is_file() and not path.is_symlink():
            _file(path, path.read_bytes()[: path.stat().st_size // 2])


def emptied(pattern: str, state: Path) -> None:
    for path in state.glob(pattern):
        if path.is_file() and not path.is_symlink():
            _file(path, b"")


def removed(pattern: str, state: Path) -> None:
    for path in state.glob(pattern):
        if path.is_file():
            path.unlink()


ACTS = (("garbage", garbage_in), ("truncated", truncated), ("empty", emptied), ("removed", removed))
PATTERNS = (
    "trust-marks.json",
    "pending-dispatch.json",
    "quarantine.json",
    "fleet/*",
    "rollouts/*",
    "switch/*",
    "switch/*/*",
    "outbound-sent/*/*",
    "reserve",
    "lock",
    "agent.sock",
)


def _damages() -> Iterator[tuple[str, Callable[[Path], None]]]:
    yield "foreign files", foreign_files
    for pattern in PATTERNS:
        for name, act in ACTS:
            yield f"{pattern} {name}", partial(act, pattern)


def all_of_it(runs: Runs) -> Outcome:
    """Each damage to a host that has converged, and to events that wait for delivery; in quick mode every fourth."""
    work = list(_damages())
    chosen = work[::4] if runs.quick else work
    queued = ACTS[:1] if runs.quick else ACTS
    return runs.each(
        [
            *(partial(_damaged, runs, *each) for each in chosen),
            *(partial(_queue_damaged, runs, name, act) for name, act in queued),
        ]
    )


def foreign(runs: Runs) -> Outcome:
    """One of them: what is not ours."""
    return _damaged(runs, "foreign files", foreign_files)


def _damaged(runs: Runs, name: str, act: Callable[[Path], None]) -> Outcome:
    outcome, rig = Outcome(tries=1), runs.rig("damaged")

    def tell(rig: Rig) -> None:
        rig.publish("good")
        rig.start()
        rig.until_state("good", State.CONVERGED)
        rig.until_delivered()
        rig.stop()
        act(rig.host.state_dir)
        rig.start()
        rig.publish("next")
        rig.until_state("next", State.CONVERGED)
        rig.until(lambda: not _undelivered(rig), "delivery")
        outcome.problems.extend(f"{name}: {line}" for line in _next_is_whole(rig))

    try:
        tell(rig)
        rig.stop()
    except Problem as problem:
        outcome.problems.append(f"{name}: {problem} [{KEPT / rig.folder.name}]")
    finally:
        rig.close()
    return outcome


def _queue_damaged(runs: Runs, name: str, act: Callable[[str, Path], None]) -> Outcome:
    """What can't be read is set aside, not deleted, and holds up only its own rollout."""
    outcome, rig = Outcome(tries=1), runs.rig("queue-damaged")
    queue, corrupt = (rig.host.state_dir / f"outbound-{part}" for part in ("queue", "corrupt"))
    try:
        rig.publish("sick")
        rig.start()
        rig.until(lambda: rig.has_event("sick", "ActivationStarted"), "ActivationStarted")
        rig.control_plane.partition(True)
        rig.until(lambda: any(queue.glob("*-RollbackComplete.json")), "a queue with the whole rollback")
        rig.stop()
        waiting = {path.name for path in queue.iterdir()}
        act("outbound-queue/*", rig.host.state_dir)
        rig.control_plane.partition(False)
        rig.start()
        rig.publish("next")
        rig.until_state("next", State.CONVERGED)
        rig.until(lambda: not _undelivered(rig), "delivery")
        rig.stop()
        outcome.problems.extend(f"queue {name}: {line}" for line in _next_is_whole(rig))
        aside = {path.name for path in corrupt.iterdir()} if corrupt.is_dir() else set()
        if act is not removed and len(waiting) != len(aside):
            outcome.problems.append(f"queue {name}: {sorted(waiting)} waited, {sorted(aside)} set aside")
    except Problem as problem:
        outcome.problems.append(f"queue {name}: {problem} [{KEPT / rig.folder.name}]")
    finally:
        rig.close()
    return outcome


def _undelivered(rig: Rig) -> list[str]:
    queue = rig.host.state_dir / "outbound-queue"
    return [entry for entry in os.listdir(queue) if rollout_id("next") in entry]


def _next_is_whole(rig: Rig) -> Iterator[str]:
    """What can be said of a host whose old files are damaged: the new rollout is without a flaw, and runs."""
    if rig.world.name_of(rig.host.running()) != "next":
        yield f"runs {rig.world.name_of(rig.host.running())}"
    key = rollout_id("next")
    yield from (line for line in flaws(rig) if key in line and "left running" not in line)


ITEMS: dict[str, Callable[[Runs], Outcome]] = {"damaged-files": all_of_it}
