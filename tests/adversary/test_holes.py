"""The named holes stay closed; with the rule of old in its place, the model finds each of them again.

The worlds keep what runs proven or watched with the code as it is, all the way that once led into the hole.
"""

from __future__ import annotations

import logging
import unittest

from tests.adversary.explore import found_again, replayed
from tests.adversary.holes import HOLES
from tests.adversary.logs import forget

#: Those that an exploration finds within some hundred states; `python -m tests.adversary --mutants` finds every one.
NEAR = (
    "a script that failed after the flip has switched the host",
    "a control plane takes the host to an older release of another channel",
    "a release soaks for ever after a boot into another system",
)


class Holes(unittest.TestCase):
    def setUp(self) -> None:
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.addCleanup(forget)

    def test_every_promise_is_kept_where_it_was_broken(self) -> None:
        for name, hole in HOLES.items():
            with self.subTest(hole=name):
                at, what = replayed(hole.world, hole.path)
                self.assertEqual(what, "")
                self.assertGreater(at.turns, 0)

    def test_with_the_rule_of_old_the_model_finds_each(self) -> None:
        for name, hole in HOLES.items():
            with self.subTest(hole=name), hole.rule_of_old():
                forget()
                self.assertNotEqual(replayed(hole.world, hole.path)[1], "", "the model is blind for it")

    def test_an_exploration_comes_upon_it(self) -> None:
        for name in NEAR:
            with self.subTest(hole=name):
                found = found_again(HOLES[name], 5000)
                self.assertTrue(found.violations, f"not among {found.states} states")


if __name__ == "__main__":
    unittest.main()
