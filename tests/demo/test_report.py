"""What people read at the end: hosts, refusals and why, problems, and where the files are."""

from __future__ import annotations

import unittest
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

from nixfleet_agent.demo.fleet import DemoFleet
from nixfleet_agent.demo.logs import LoggedRefusal
from nixfleet_agent.demo.report import LISTED, Outcome, lines
from nixfleet_agent.demo.scenario import load
from nixfleet_agent.demo.timeline import Timeline
from nixfleet_agent.local_cp.happenings import Notification
from nixfleet_agent.state_machine import State
from nixfleet_agent.threads.clock import SystemClock
from tests.demo.test_live import ShownFleet, ShownHost

NOW = datetime(2026, 5, 16, tzinfo=timezone.utc)


class Report(unittest.TestCase):
    def setUp(self) -> None:
        self.timeline = Timeline(SystemClock())
        self.timeline.open_rollout("stable@a", "v1", [["web-1", "web-2"]])
        self.fleet = ShownFleet({"web-1": ShownHost(), "web-2": ShownHost("c2")})

    def told(self, *problems: str) -> list[str]:
        outcome = Outcome(list(problems), 1.0, 12.4)
        fleet = cast(DemoFleet, self.fleet)
        return list(lines(load("plain"), fleet, self.timeline, outcome, Path("/demo")))

    def test_each_host_says_what_it_runs_and_how_each_rollout_ended(self) -> None:
        self.timeline.watch(Notification(NOW, "web-1", "stable@a", "Converged", State.CONVERGED))
        told = self.told()
        self.assertIn("web-1: runs v1; v1 Converged", told)
        self.assertIn("web-2: runs v2; no rollout", told)
        self.assertTrue(any("every host ended where it should" in line for line in told), told)

    def test_each_reason_to_refuse_is_told_once_and_of_whom(self) -> None:
        for name in ("web-1", "web-2", "web-1"):
            self.timeline.refuse(LoggedRefusal(name, "bad_signature", "words"))
        self.timeline.refuse(LoggedRefusal("web-2", "stale", "words"))
        told = self.told()
        self.assertEqual(
            [line for line in told if "refused" in line],
            ["every host refused: bad_signature", "1 of 2 hosts refused: stale"],
        )

    def test_a_problem_is_told_and_the_end_is_not_a_good_one(self) -> None:
        told = self.told("web-1 runs\x1b[2J nothing")
        self.assertIn("PROBLEM: web-1 runs\\x1b[2J nothing", told)
        self.assertFalse(any("every host ended where it should" in line for line in told), told)

    def test_of_many_hosts_some_are_listed(self) -> None:
        self.fleet = ShownFleet({f"web-{number}": ShownHost() for number in range(LISTED + 5)})
        told = self.told()
        self.assertEqual(sum(": runs" in line for line in told), LISTED)
        self.assertIn("and 5 more", told)


if __name__ == "__main__":
    unittest.main()
