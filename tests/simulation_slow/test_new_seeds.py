"""Two minutes of new seeds at each run; one that breaks a promise is shrunk and printed as a command."""

from __future__ import annotations

import os
import time
import unittest
from unittest import mock

from tests.simulation.__main__ import explain, explore, prepare
from tests.simulation.plan import draw
from tests.simulation.run import run

MINUTES = 2.0


class NewSeeds(unittest.TestCase):
    def test_keep_every_promise(self) -> None:
        self.enterContext(mock.patch.dict(os.environ))
        tally = explore(int(time.time()) * 1000, MINUTES, os.cpu_count() or 1, most_failures=1)
        self.assertGreater(tally.rollouts, 100)
        prepare()
        for seed, _ in tally.failures[:1]:
            self.fail(explain(seed, run(draw(seed))))
        print(tally)


if __name__ == "__main__":
    unittest.main()
