"""Minutes of random faults over random releases on one host, from a seed that is printed; checked after each release.

A release meets up to three strokes, under up to two conditions, and perhaps a newer release in the middle. After each:
what runs, the state, every seq once and the same on both sides, no child, root or temporary file left. Of a process
that lived through many: as many threads and descriptors as before, and memory that does not grow.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nixfleet_agent.durable import TEMPORARY_SUFFIX
from nixfleet_agent.state_machine import State
from tests.faults.ending import MILESTONES, journal_events
from tests.faults.processes import processes_of
from tests.faults.proxy import Proxy
from tests.faults.rig import HOSTNAME, Problem, Rig, rollout_id
from tests.faults.runs import KEPT, Outcome, Runs, keep
from tests.faults.strokes import CONDITIONS, STROKES, Stroke, fail_disk, reboot, wipe

GOOD, BAD = ("good", "next", "slow"), ("sick", "broken", "absent")
OVER = (State.CONVERGED, State.REVERTED)
#: How many strokes and conditions a release meets; one in five has a newer one on its heels.
HOW_MANY_STROKES, HOW_MANY_CONDITIONS, OVERTAKEN = (0, 1, 1, 2, 3), (0, 0, 1, 1, 2), 0.2
#: What the disk's own errors are called in a failed release's reason.
DISK = ("No space left", "Input/output error", "Read-only file system")
#: A log that was lost again right after its replay is sent once more a minute later.
PATIENCE = 100.0
#: How often it is said how far the soak has come, in releases.
SAY_EVERY = 50
#: A young process still grows into its caches; from this release of its life on it may not, but for this much.
GROWN_UP, GROWTH_KIB = 6, 6 * 1024


@dataclass(slots=True)
class Life:
    """What one process of the agent was seen to use, release by release: (threads, descriptors, RSS in KiB)."""

    pid: int
    seen: list[tuple[int, int, int]] = field(default_factory=list)

    def look(self) -> None:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if ":" in line
        )
        rss = int(status["VmRSS"].split()[0])
        self.seen.append((int(status["Threads"]), len(os.listdir(f"/proc/{self.pid}/fd")), rss))

    def growth(self) -> list[str]:
        """What has grown since the process was grown up."""
        if len(self.seen) <= GROWN_UP:
            return []
        threads, descriptors, rss = self.seen[GROWN_UP - 1]
        last = self.seen[-1]
        found = []
        # Connections come and go: two more or less say nothing.
        if last[0] > threads + 2 or last[1] > descriptors + 4:
            found.append(f"threads {threads} -> {last[0]}, descriptors {descriptors} -> {last[1]}")
        if last[2] - rss > GROWTH_KIB:
            found.append(f"RSS {rss} -> {last[2]} KiB in {len(self.seen) - GROWN_UP} releases")
        return found


class Soak:
    """One host's long life."""

    def __init__(self, rig: Rig, proxy: Proxy, seed: int) -> None:
        self.rig = rig
        self.proxy = proxy
        self.chance = random.Random(seed)
        self.releases = 0
        self.life: Life | None = None
        self.met: Counter[str] = Counter()

    def round(self) -> None:
        """One release, what befalls it, and a look at how it ended (Problem: not as it should)."""
        rig, chance = self.rig, self.chance
        before = rig.world.name_of(rig.host.running())
        name, closure = self._publish([*GOOD, *BAD], before)
        strokes = chance.choices(STROKES, k=chance.choice(HOW_MANY_STROKES))
        conditions = chance.sample(CONDITIONS, k=chance.choice(HOW_MANY_CONDITIONS))
        overtaken = chance.random() < OVERTAKEN
        words = [act.__name__ for act in (*conditions, *strokes)] + ["newer release"] * overtaken
        self.met.update(words or ["nothing"])
        what = f"release {self.releases} ({closure} over {before}; {', '.join(words) or 'nothing'})"
        released = [name]
        try:
            ends = [turn_on(rig, chance, self.proxy) for turn_on in conditions]
            try:
                for stroke in strokes:
                    stroke(rig, chance)
                time.sleep(chance.uniform(0.0, 0.8) if conditions or overtaken else 0.0)
            finally:
                for end in ends:
                    end()
            if overtaken:
                name, closure = self._publish([*GOOD], before)
                released.append(name)
            rig.until(lambda: rig.state(name) in OVER, f"the end of {what}", PATIENCE)
            rig.until(lambda: not rig.queued(), "an empty queue", PATIENCE)
            self._check_end(name, closure, released, before, strokes)
            for each in released:
                self._check_log(each, lost=wipe in strokes and each != name)
            self._check_host()
        except Problem as problem:
            raise Problem(f"{what}: {problem}") from problem
        self._measure()

    def _publish(self, closures: list[str], before: str) -> tuple[str, str]:
        """A new release of what does not run: (its name, its closure's name)."""
        self.releases += 1
        name, closure = f"r{self.releases}", self.chance.choice([c for c in closures if c != before])
        self.rig.control_plane.control.store.run("DELETE FROM quarantine")
        self.rig.publish(name, closure=closure)
        return name, closure

    def _check_end(self, name: str, closure: str, released: list[str], before: str, strokes: list[Stroke]) -> None:
        rig = self.rig
        found = (rig.state(name), rig.world.name_of(rig.host.running()))
        expected = [(State.CONVERGED, closure) if closure in GOOD else (State.REVERTED, before)]
        # A switch that fails has written its boot entry: who boots it in between has arrived.
        if closure == "broken" and reboot in strokes:
            expected.append((State.CONVERGED, closure))
        # What a switch needs before it may be fired could not be written: the release is given up for that reason.
        tails = [event["stderrTail"] for event in rig.events(name) if event["kind"] == "ActivationFailed"]
        if fail_disk in strokes and len(released) == 1 and any(word in tail for tail in tails for word in DISK):
            expected.append((State.REVERTED, before))
        if found not in expected:
            raise Problem(f"{found} instead of {expected}; {rig.situation()}")

    def _check_log(self, name: str, *, lost: bool) -> None:
        """What a control plane has ``lost`` after it was over, nobody asks for again; what it has must be right."""
        rig, key = self.rig, rollout_id(name)
        there = {event["seq"]: event for event in rig.control_plane.control.store.events(HOSTNAME, key)}
        here = journal_events(rig, key)
        if lost:
            here = {seq: event for seq, event in here.items() if seq in there}
        if there != here or sorted(there) != list(range(1, len(there) + 1)):
            raise Problem(f"{name}: events {sorted(there)} there, {sorted(here)} here")
        kinds = [there[seq]["kind"] for seq in sorted(there) if there[seq]["kind"] in MILESTONES]
        if len(kinds) != len(set(kinds)):
            raise Problem(f"{name}: milestones {kinds}")

    def _check_host(self) -> None:
        rig = self.rig
        if changed := rig.wire.changed():
            raise Problem(f"{changed}")
        rig.until(lambda: not self._children(), f"no child left: {self._children()}", 15.0)
        roots = rig.host.state_dir / "gcroots"
        rig.until(lambda: not any(roots.glob("*")), f"no root left: {list(roots.glob('*'))}", 15.0)
        if stray := list(rig.host.state_dir.rglob(f"*{TEMPORARY_SUFFIX}")):
            raise Problem(f"left: {stray}")
        if lines := [line for line in rig.host.switches() if line.startswith("undurable")]:
            raise Problem(f"{lines}")

    def _children(self) -> dict[int, str]:
        """Processes of the host but for the agent and a probe that happens to run."""
        return {pid: line for pid, line in processes_of(self.rig.folder).items() if pid != self.rig.pid}

    def _measure(self) -> None:
        if self.life is None or self.life.pid != self.rig.pid:
            self.life = Life(self.rig.pid)
        self.life.look()
        if grown := self.life.growth():
            raise Problem(f"grown: {grown}")


def soaked(runs: Runs) -> Outcome:
    """For as long as ``runs.soak_secs``; the seed and what was met are in the outcome's notes."""
    outcome = Outcome()
    rig = runs.rig("soak", agent={"quarantine_hours": 0})
    proxy = Proxy(("127.0.0.1", rig.control_plane.server.port))
    rig.closers.append(proxy.close)
    url = f"https://127.0.0.1:{proxy.port}"
    rig.write_config({"agent": {"control_plane_url": url, "quarantine_hours": 0}})
    rig.levers.mkdir()
    soak = Soak(rig, proxy, runs.seed)
    began = time.monotonic()
    print(f"soak: seed {runs.seed}, {runs.soak_secs:.0f} s", flush=True)
    try:
        rig.max_starts = 1 << 30
        rig.start()
        while time.monotonic() < began + runs.soak_secs:
            soak.round()
            outcome.tries += 1
            if outcome.tries % SAY_EVERY == 0:
                print(f"soak: {soak.releases} releases, {time.monotonic() - began:.0f} s", flush=True)
        rig.stop()
    except Problem as problem:
        keep(rig)
        outcome.problems.append(f"seed {runs.seed}: {problem} [{KEPT / rig.folder.name}]")
    finally:
        last = soak.life.seen[-1] if soak.life and soak.life.seen else None
        lived = len(soak.life.seen) if soak.life else 0
        met = ", ".join(f"{word} {count}" for word, count in sorted(soak.met.items()))
        outcome.notes += [
            f"seed {runs.seed}: {soak.releases} releases; {met}",
            f"last process: {lived} rounds, (threads, fds, KiB) {last}",
        ]
        rig.close()
    return outcome


ITEMS: dict[str, Callable[[Runs], Outcome]] = {"soak": soaked}
