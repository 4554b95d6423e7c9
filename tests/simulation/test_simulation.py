"""The simulator itself: the same seed is the same run everywhere, and it finds what is broken."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path
from unittest import mock

from nixfleet_agent import durable
from nixfleet_agent.runtime.rollout import evaluate
from tests.simulation.__main__ import prepare
from tests.simulation.disk import FULL, Disk, Disks, Trouble
from tests.simulation.mutants import MUTANTS
from tests.simulation.named import NAMED
from tests.simulation.plan import Plan, Step, draw
from tests.simulation.plane import Plane
from tests.simulation.primitives import SimClock, SimLock, SimQueue
from tests.simulation.run import run
from tests.simulation.scheduler import NEVER, Scheduler
from tests.simulation.shrink import shrink

TOP = Path(__file__).resolve().parents[2]
#: Few hosts, some faults: two seconds in all.
SEEDS = (3, 7, 69)


class Determinism(unittest.TestCase):
    def traces(self, python: str, hash_seed: str) -> list[str]:
        program = (
            "import sys; from tests.simulation.__main__ import prepare; from tests.simulation.plan import draw;"
            "from tests.simulation.run import run; prepare();"
            f"print(*[run(draw(seed)).trace for seed in {SEEDS}])"
        )
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(TOP), "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([python, "-c", program], env=environment, capture_output=True, text=True, timeout=240)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout.split()

    def test_a_seed_is_the_same_run_whatever_the_order_of_sets(self) -> None:
        first = self.traces(sys.executable, "1")
        self.assertEqual(len(set(first)), len(SEEDS))
        self.assertEqual(first, self.traces(sys.executable, "2"))


class Promises(unittest.TestCase):
    def setUp(self) -> None:
        self.enterContext(mock.patch.dict(os.environ))
        prepare()

    def test_some_seeds_keep_every_promise(self) -> None:
        for seed in range(100, 104):
            with self.subTest(seed=seed):
                self.assertEqual(run(draw(seed)).violation, "")

    def test_what_once_broke_one_keeps_it(self) -> None:
        for what, plan in NAMED.items():
            with self.subTest(what=what):
                self.assertEqual(run(plan).violation, "")

    def test_without_faults_one_rollout_is_told_to_its_end(self) -> None:
        plan = Plan(1, 1, 0.1, 1.0, 0.0, 1, (Step(5.0, "release:good", -1, 0.0, 1),))
        outcome = run(plan)
        self.assertEqual(outcome.violation, "")
        self.assertTrue(any("Soaking -> Converged" in line for line in outcome.lines))

    def test_an_event_that_is_had_twice_is_found_after_a_loss_too(self) -> None:
        """What a control plane had before its database went may be gone, but nothing is there twice."""
        steps = (Step(5.0, "cp-wipe", -1, 1.0, 0.5), Step(60.0, "release:good", -1, 0.0, 1))
        plan = Plan(1, 1, 0.1, 1.0, 0.0, 1, (*steps, Step(300.0, "terminate", 0, 1.0, 0.5)))
        self.assertEqual(run(plan).violation, "")
        events = Plane.events

        def twice(plane: Plane, host: str, rollout_id: str) -> list[tuple[int, str]]:
            found = events(plane, host, rollout_id)
            return found[:1] + found if b"r1-good".hex() in rollout_id else found

        with mock.patch.object(Plane, "events", twice):
            self.assertRegex(run(plan).violation, "^exactly once: ")

    def test_a_release_is_not_given_up_for_a_boot_that_never_came(self) -> None:
        plan = Plan(1, 1, 0.1, 1.0, 0.0, 1, (Step(5.0, "release:good", -1, 0.0, 0),))
        with mock.patch.object(evaluate, "fell_back", lambda rollout, moment: True):
            self.assertRegex(run(plan).violation, "^I3: web-001 gives .* up for a boot that was not: ")

    def test_a_defect_is_found_and_shrunk_to_what_it_takes(self) -> None:
        """A named plan's own defect, put back, and two steps in its plan that have nothing to do with it."""
        mutant, named = MUTANTS[0], next(iter(NAMED.values()))
        others = (Step(300.0, "net-slow", 0, 10.0, 0.1), Step(350.0, "terminate", 0, 1.0, 0.5))
        plan = replace(named, steps=tuple(sorted((*named.steps, *others), key=lambda step: step.at)))
        with mutant.patch():
            outcome = run(plan)
            self.assertIn("liveness", outcome.violation)
            smaller, kept, smallest = shrink(outcome, tries=12)
        self.assertIn("liveness", smallest.violation)
        self.assertLessEqual(len(kept), 3)
        self.assertEqual(smaller.steps, plan.keeping(kept).steps)


class Time(unittest.TestCase):
    def setUp(self) -> None:
        self.scheduler = Scheduler(random.Random(1), 0.5)

    def test_it_jumps_when_all_wait_and_each_wakes_at_its_own(self) -> None:
        woken: list[tuple[str, int]] = []

        def sleeper(name: str, seconds: float) -> None:
            self.scheduler.sleep(seconds)
            woken.append((name, round(self.scheduler.now)))

        for name, seconds in (("c", 86400.0), ("a", 10.0), ("b", 3600.0)):
            self.scheduler.spawn(name, "test", lambda name=name, seconds=seconds: sleeper(name, seconds))  # type: ignore[misc]
        self.scheduler.sleep(90000.0)
        self.assertEqual(woken, [("a", 10), ("b", 3600), ("c", 86400)])

    def test_threads_that_wait_for_each_other_for_ever_are_told(self) -> None:
        self.scheduler.spawn("waiter", "test", lambda: self.scheduler.block(NEVER))
        with self.assertRaisesRegex(RuntimeError, "every thread waits"):
            self.scheduler.block(NEVER)

    def test_who_is_killed_ends_where_it_waits(self) -> None:
        ended: list[str] = []

        def victim() -> None:
            try:
                self.scheduler.block(NEVER)
            finally:
                ended.append("victim")

        self.scheduler.spawn("victim", "test", victim)
        self.scheduler.sleep(1.0)
        self.scheduler.kill(["test"])
        self.assertEqual((ended, self.scheduler.alive("test"), self.scheduler.errors), (["victim"], [], []))

    def test_a_lock_is_held_by_one_and_a_queue_has_its_bounds(self) -> None:
        lock, queue = SimLock(self.scheduler), SimQueue[int](self.scheduler, 1)
        inside: list[int] = []
        most: list[int] = []

        def worker(number: int) -> None:
            with lock:
                inside.append(number)
                most.append(len(inside))
                self.scheduler.sleep(1.0)
                inside.remove(number)
            queue.put(number)

        for number in range(3):
            self.scheduler.spawn("worker", "test", lambda number=number: worker(number))  # type: ignore[misc]
        got: list[int] = []
        collector = self.scheduler.spawn("collector", "test", lambda: got.extend(queue.get() for _ in range(3)))
        self.scheduler.block(collector)
        self.assertEqual(sorted(got), [0, 1, 2])
        self.assertEqual(most, [1, 1, 1])


class Refusals(unittest.TestCase):
    def test_a_disk_knows_since_when_it_has_refused_without_a_long_pause(self) -> None:
        scheduler = Scheduler(random.Random(1))
        disk = Disk(Path("/none"), scheduler, SimClock(scheduler), random.Random(1))
        self.assertEqual(disk.troubled_since(), scheduler.now)

        def refuse() -> float:
            disk.trouble = Trouble(FULL)
            with self.assertRaises(OSError):
                disk.boundary("create", Path("/none/x"))
            disk.trouble = Trouble()
            return scheduler.now

        first = refuse()
        scheduler.sleep(200.0)
        refuse()
        scheduler.sleep(200.0)
        self.assertEqual(disk.troubled_since(), first)
        scheduler.sleep(100.0)
        self.assertEqual(disk.troubled_since(), scheduler.now)
        self.assertEqual(refuse(), disk.troubled_since())


class Power(unittest.TestCase):
    def test_what_was_not_synced_may_be_lost_and_what_was_is_not(self) -> None:
        lost = kept = 0
        for seed in range(40):
            with self.subTest(seed=seed):
                before, after = self.cut(seed)
                self.assertEqual(before, b"synced")
                lost += after == b"old"
                kept += after == b"new"
        self.assertEqual(lost + kept, 40)
        self.assertTrue(lost and kept, (lost, kept))

    def cut(self, seed: int) -> tuple[bytes, bytes]:
        scheduler = Scheduler(random.Random(seed))
        root = Path(self.enterContext(tempfile.TemporaryDirectory()))
        disk = Disk(root, scheduler, SimClock(scheduler), random.Random(seed))
        disks = Disks(scheduler)
        disks.add("web", disk)

        def write() -> None:
            durable.write(root / "b", b"old")
            durable.write(root / "a", b"synced")
            durable.write(root / "b", b"new", sync=False)

        disks.install()
        try:
            scheduler.block(scheduler.spawn("writer", "web/agent", write))
        finally:
            disks.remove()
        disk.lose_power()
        return (root / "a").read_bytes(), (root / "b").read_bytes()


class Plans(unittest.TestCase):
    def test_a_seed_draws_the_same_plan_and_seeds_differ(self) -> None:
        self.assertEqual(draw(5), draw(5))
        self.assertGreater(len({draw(seed).steps for seed in range(50)}), 45)


if __name__ == "__main__":
    unittest.main()
