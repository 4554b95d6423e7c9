"""Whole agents that fetch a release before its turn: to its end, taken over, killed in the middle, and a bad one."""

from __future__ import annotations

import os
import unittest
from typing import Any, ClassVar

from nixfleet_agent.local_cp.server import Response
from nixfleet_agent.state_machine import State
from nixfleet_agent.telemetry.status_socket import AgentNotRunningError, ask
from tests.faults.rig import Rig
from tests.faults.world import World

DISPATCH = "/v1/agent/dispatch"


class PrefetchTest(unittest.TestCase):
    world: ClassVar[World]

    @classmethod
    def setUpClass(cls) -> None:
        cls.world = World()
        cls.addClassCleanup(cls.world.close)

    def setUp(self) -> None:
        name = self.id().rpartition(".")[2][:24]
        self.rig = Rig(self.world, name, prefetch={"enabled": True, "spread_secs": 0, "min_free": 0})
        self.addCleanup(self.rig.close)
        self.addCleanup(setattr, self.world.nixery.server, "drip", None)
        self.withheld = True
        self.rig.wire.misbehave = lambda request: (
            Response(status=204) if self.withheld and request.path.startswith(DISPATCH) else None
        )
        self.world.nixery.server.requests.clear()
        self.root = self.rig.host.state_dir / "gcroots" / "next"

    def section(self) -> Any:
        """The section ``next`` of the running agent's status."""
        try:
            return ask(self.rig.host.state_dir, "status").get("next")
        except AgentNotRunningError:
            return None

    def until_next(self, state: str) -> Any:
        return self.rig.until(
            lambda: (shown := self.section()) and shown["state"] == state and shown, f"the next release is {state}"
        )

    def nars(self) -> list[str]:
        return [path for path in self.world.nixery.server.requests if path.startswith("/nar/")]

    def assert_nothing_left(self) -> None:
        self.rig.until(lambda: not os.path.lexists(self.root), "its root goes")
        self.rig.until(lambda: self.section() is None, "nothing is next")

    def test_it_is_ready_before_its_turn_which_asks_the_cache_for_nothing(self) -> None:
        self.rig.publish("good")
        self.rig.start()
        shown = self.until_next("ready")
        self.assertEqual((shown["target_closure"], shown["obstacles"]), (self.world.closures["good"], []))
        self.assertEqual(self.root.readlink().name, self.world.closures["good"])
        self.assertEqual(self.rig.events("good"), [], "the control plane hears nothing of it")
        self.world.nixery.server.requests.clear()
        self.withheld = False
        self.rig.until_state("good", State.CONVERGED)
        self.assertEqual(self.world.nixery.server.requests, [])
        self.assert_nothing_left()

    def test_its_turn_takes_over_the_download_that_runs(self) -> None:
        self.world.nixery.server.drip = (4096, 0.02)
        self.rig.publish("large")
        self.rig.start()
        self.rig.until(self.nars, "it is being fetched")
        self.withheld = False
        self.rig.until_state("large", State.CONVERGED)
        self.assertTrue(self.rig.logged("taking over the download that runs"))
        self.assertEqual(len(self.nars()), 1)
        self.assert_nothing_left()

    def test_an_agent_that_is_killed_in_the_middle_leaves_nothing_behind(self) -> None:
        self.world.nixery.server.drip = (4096, 0.02)
        self.rig.publish("large")
        self.rig.start()
        self.rig.until(self.nars, "it is being fetched")
        self.rig.kill()
        self.rig.start()
        self.until_next("ready")
        self.assertEqual(len(self.nars()), 1, "what the killed one began was waited for")
        self.withheld = False
        self.rig.until_state("large", State.CONVERGED)
        self.assert_nothing_left()

    def test_a_bad_release_is_held_no_longer_than_until_it_has_failed(self) -> None:
        self.rig.publish("sick")
        self.rig.start()
        self.until_next("ready")
        self.withheld = False
        self.rig.until_state("sick", State.REVERTED)
        self.assert_nothing_left()


if __name__ == "__main__":
    unittest.main()
