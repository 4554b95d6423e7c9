"""Many runs of stories, some at a time: first an undisturbed one, then every disturbed one measured against it."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.ending import Ending, ending, flaws
from tests.faults.processes import processes_of
from tests.faults.rig import Problem, Rig, rollout_id
from tests.faults.stories import STORIES
from tests.faults.world import World

JOBS = 2
#: How long random faults go on when nobody says.
SOAK_SECS = 60.0
#: What failed is copied here, to be looked at when everything else is gone.
KEPT = Path("/tmp/fault-runs") / str(os.getpid())
#: Letting go of roots comes after the last event; a success's wrapper needs a moment to be gone.
GRACE = 5.0

Plans = Mapping[int, Mapping[str, Any]]
#: A boundary: its label, and the how manieth of that label.
Key = tuple[str, int]


@dataclass(slots=True)
class Outcome:
    """Of one item: how often it was tried, and what went wrong, one line each."""

    tries: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: str = ""

    def add(self, other: Outcome) -> None:
        self.tries += other.tries
        self.problems += other.problems
        self.notes += other.notes


@dataclass(frozen=True, slots=True)
class Finished:
    """One run: how it ended, its flaws, and what it met."""

    ending: Ending
    flaws: list[str]
    traces: dict[int, list[str]]
    killed: int
    stop_secs: float


class Runs:
    """Shared by all items, ``jobs`` runs at a time whoever asks for them; baselines are made once."""

    def __init__(
        self, world: World, quick: bool, jobs: int = JOBS, soak_secs: float = SOAK_SECS, seed: int | None = None
    ) -> None:
        self.world = world
        self.quick = quick
        self.soak_secs = soak_secs
        self.seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
        self._numbers = itertools.count(1)
        self._baselines: dict[str, Finished] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(jobs)

    def close(self) -> None:
        """Runs that were not begun never are; those that were come to their end."""
        self._pool.shutdown(cancel_futures=True)

    def rig(self, name: str, plans: Plans | None = None, **config: Mapping[str, Any]) -> Rig:
        """A rig of its own name."""
        return Rig(self.world, f"{next(self._numbers)}-{name}"[:40], plans, **config)

    def baseline(self, name: str) -> Finished:
        """The undisturbed run of a story."""
        with self._lock:
            if name not in self._baselines:
                self._baselines[name] = self.finish(self.rig(name), STORIES[name].tell)
                if flawed := self._baselines[name].flaws:
                    raise Problem(f"the undisturbed {name}: {flawed}")
            return self._baselines[name]

    def finish(self, rig: Rig, tell: Callable[[Rig], None]) -> Finished:
        """Tell the story to its end, stop the agent, and read what is there.

        Raises:
            Problem: it does not come to its end; what is left is kept.
        """
        try:
            tell(rig)
            rig.until_delivered()
            _until(lambda: not any((rig.host.state_dir / "gcroots").glob("*")))
            took = rig.stop()
            _until(lambda: not processes_of(rig.folder))
            traces = {boot: rig.trace(boot) for boot in range(1, rig.boot + 1)}
            flawed = flaws(rig)
            if flawed:
                keep(rig)
            return Finished(ending(rig), flawed, traces, rig.killed, took)
        except Problem:
            keep(rig)
            raise
        finally:
            rig.close()

    def compare(
        self, name: str, plans: Plans, what: str, but: frozenset[str] = frozenset(), forgets: bool = False
    ) -> Outcome:
        """One disturbed run of a story against the undisturbed one; a power cut ``forgets`` what switches said."""
        story, baseline, outcome = STORIES[name], self.baseline(name), Outcome(tries=1)
        rig = self.rig(name, plans)
        rig.forgets, rig.forked = forgets, True
        try:
            finished = self.finish(rig, story.tell)
        except Problem as problem:
            outcome.problems.append(f"{name}, {what}: {problem} [{KEPT / rig.folder.name}]")
            return outcome
        rebooted = any(plan.get("action") == "power" for plan in plans.values())
        found = story.differences(baseline.ending, finished.ending, but, rebooted=rebooted) + finished.flaws
        outcome.problems += [f"{name}, {what}: {line}" for line in found]
        if not finished.killed and any(plan.get("action") in ("kill", "power") for plan in plans.values()):
            outcome.notes.append(f"{name}, {what}: not met")
        return outcome

    def each(self, work: Iterable[Callable[[], Outcome]]) -> Outcome:
        """All of it, as many at a time as there may be."""
        total = Outcome()
        for future in [self._pool.submit(do) for do in work]:
            total.add(future.result())
        return total


def _until(condition: Callable[[], bool]) -> None:
    """Wait for what should come by itself; whether it has is looked at later."""
    deadline = time.monotonic() + GRACE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def keep(rig: Rig) -> None:
    """Copy what a failed run left: the log and the state directory."""
    place = KEPT / rig.folder.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    shutil.copy(rig.log_file, place) if rig.log_file.exists() else None
    for path in rig.folder.glob("trace-*"):
        shutil.copy(path, place)
    ignore = shutil.ignore_patterns("agent.sock", "pipe", "gcroots")
    shutil.copytree(rig.host.state_dir, place / "state", symlinks=True, ignore=ignore, dirs_exist_ok=True)


def boundaries(finished: Finished, boot: int) -> list[Key]:
    """Every boundary of the first process of a boot, as (label, occurrence)."""
    seen: Counter[str] = Counter()
    keys = []
    for name in finished.traces.get(boot, ()):
        seen[name] += 1
        keys.append((name, seen[name]))
    return keys


#: Probes repeat themselves: from here on a boundary of theirs is the same one again.
REPEATS = 2
_REPEATED = ("ProbeResult", "ProbeFailureFirst", "ProbeObservedFirst")


def worth_a_try(name: str, occurrence: int) -> bool:
    return occurrence <= REPEATS or not name.endswith(_REPEATED)


def of_its_own(runs: Runs, story: str, boot: int) -> list[Key]:
    """The boundaries of a story that are worth a try and that no other story has met in the same situation."""
    keys = [key for key in boundaries(runs.baseline(story), boot) if worth_a_try(*key)]
    if (newer := STORIES[story].newer) is None:
        return keys
    told = set(boundaries(runs.baseline("forward"), boot))
    began = next(index for index, (name, _) in enumerate(keys) if rollout_id(newer) in name)
    return [key for index, key in enumerate(keys) if index >= began or key not in told]


def spread(keys: list[Any], number: int) -> list[Any]:
    """At most ``number`` of them, evenly."""
    if len(keys) <= number:
        return keys
    step = len(keys) / number
    return [keys[int(index * step)] for index in range(number)]
