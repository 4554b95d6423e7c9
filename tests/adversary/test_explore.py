"""A small part of what the slow suite explores: a few worlds, a few thousand states, a few hundred long walks."""

from __future__ import annotations

import itertools
import logging
import unittest

from tests.adversary.explore import at_random, exhaustive, shortest
from tests.adversary.worlds import worlds


class Explored(unittest.TestCase):
    def setUp(self) -> None:
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def test_no_promise_is_broken_near_the_beginning(self) -> None:
        for world in itertools.islice(worlds(), 3):
            found = exhaustive(world, 1500)
            self.assertGreaterEqual(found.states, 1500)
            self.assertFalse(found.violations, found.violations and shortest(found.violations))

    def test_no_promise_is_broken_on_long_walks(self) -> None:
        seen: set[int] = set()
        for seed, world in enumerate(itertools.islice(worlds(), 0, 200, 20)):
            found = at_random(world, 5, 50, seed, seen)
            self.assertFalse(found.violations, found.violations and shortest(found.violations))
        self.assertGreater(len(seen), 500)


if __name__ == "__main__":
    unittest.main()
