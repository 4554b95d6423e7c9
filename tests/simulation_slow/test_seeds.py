"""Half a minute of seeds; one that breaks a promise is shrunk and printed as a command.

They are the same at each run, so that a run tells of the change that it is for. New ones are sought by
``python -m tests.simulation --minutes``; a seed that has found something becomes a plan with a name.
"""

from __future__ import annotations

import os
import unittest
from unittest import mock

from tests.simulation.__main__ import explain, explore, prepare
from tests.simulation.plan import draw
from tests.simulation.run import run

FIRST = 20_000
MINUTES = 0.6


class Seeds(unittest.TestCase):
    def test_keep_every_promise(self) -> None:
        self.enterContext(mock.patch.dict(os.environ))
        tally = explore(FIRST, MINUTES, os.cpu_count() or 1, most_failures=1)
        self.assertGreater(tally.rollouts, 30)
        prepare()
        for seed, _ in tally.failures[:1]:
            self.fail(explain(seed, run(draw(seed))))
        print(tally)


if __name__ == "__main__":
    unittest.main()
