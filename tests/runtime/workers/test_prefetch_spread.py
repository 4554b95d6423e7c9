"""The agents of a fleet that see one release at the same moment do not meet at the cache."""

from __future__ import annotations

import random
import unittest

from nixfleet_agent.prefetch.decision import starts_at
from tests.bench.prefetch_spread import CHI_SQUARE_BAR, PARTS, chi_square, counted, starts

WINDOW = 300.0


class SpreadTest(unittest.TestCase):
    def test_a_hundred_agents_are_spread_evenly_over_the_window(self) -> None:
        for seed in range(20):
            counts = counted(starts(100, WINDOW, seed), WINDOW)
            self.assertLess(chi_square(counts), CHI_SQUARE_BAR, (seed, counts))
            self.assertLessEqual(max(counts), 22, (seed, counts))

    def test_a_fleet_of_ten_thousand_too(self) -> None:
        counts = counted(starts(10_000, WINDOW, 1), WINDOW)
        self.assertLess(chi_square(counts), CHI_SQUARE_BAR, counts)

    def test_every_start_lies_in_the_window_and_two_agents_differ(self) -> None:
        found = [start - 50.0 for start in (starts_at(50.0, WINDOW, random.Random(n)) for n in range(1000))]
        self.assertTrue(all(0.0 <= start <= WINDOW for start in found))
        self.assertGreater(len(set(found)), 990)
        self.assertEqual(starts_at(50.0, 0.0, random.Random(1)), 50.0)

    def test_what_is_not_even_is_found_out(self) -> None:
        uneven = [WINDOW * (number / 100) ** 2 for number in range(100)]
        self.assertGreater(chi_square(counted(uneven, WINDOW)), CHI_SQUARE_BAR)
        self.assertEqual(counted([WINDOW], WINDOW), [0] * (PARTS - 1) + [1])


if __name__ == "__main__":
    unittest.main()
