"""A million distinct states, every move in each of them up to a depth, and no broken promise."""

from __future__ import annotations

import logging
import os
import unittest

from tests.adversary.explore import everything, shortest

#: Distinct states, and of them in one world: every move to a depth of 4 to 8, in about two minutes on two processors.
STATES, PER_WORLD = 1_000_000, 8_000


class ManyStates(unittest.TestCase):
    def test_keep_every_promise(self) -> None:
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        states, violations = 0, []
        for found in everything(STATES, PER_WORLD, os.cpu_count() or 1):
            states += found.states
            violations += found.violations
        self.assertGreaterEqual(states, STATES)
        self.assertFalse(violations, violations and shortest(violations))


if __name__ == "__main__":
    unittest.main()
