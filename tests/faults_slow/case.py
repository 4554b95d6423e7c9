"""Items of the fault harness as tests: a sample of each, small enough for every run of the tests."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import ClassVar

from tests.faults.runs import Outcome, Runs
from tests.faults.world import World

#: A run of tests has its own two processes; its soak is short, and the same each time.
SOAK_SECS, SEED = 15.0, 20260516


class FaultCase(unittest.TestCase):
    """One world per class."""

    runs: ClassVar[Runs]

    @classmethod
    def setUpClass(cls) -> None:
        world = World()
        cls.addClassCleanup(world.close)
        cls.runs = Runs(world, quick=True, jobs=1, soak_secs=SOAK_SECS, seed=SEED)
        cls.addClassCleanup(cls.runs.close)

    def holds(self, *items: Callable[[Runs], Outcome]) -> None:
        """Every item is tried at least once, and nothing is wrong."""
        for item in items:
            outcome = item(self.runs)
            if outcome.skipped:
                self.skipTest(outcome.skipped)
            self.assertEqual(outcome.problems, [])
            self.assertGreater(outcome.tries, 0)
