"""What the fault suite puts on the wire is held against the contract: a run whose agent breaks it has a flaw."""

from __future__ import annotations

import unittest

from nixfleet_agent.state_machine import State
from tests.faults.ending import flaws
from tests.faults.rig import Rig
from tests.faults.world import World

CRIPPLED = "from tests.support.crippled import WAYS\nWAYS['coarse']()\n"


class Contract(unittest.TestCase):
    def test_an_agent_that_breaks_it_is_a_flaw_of_the_run(self) -> None:
        world = World()
        self.addCleanup(world.close)
        for name, site in (("sound", ""), ("coarse", CRIPPLED)):
            rig = Rig(world, name)
            self.addCleanup(rig.close)
            (rig.folder / "sitecustomize.py").write_text(site)
            rig.publish("good")
            rig.start(extra_path=rig.folder)
            rig.until_state("good", State.CONVERGED)
            rig.until_delivered()
            rig.stop()
            found = flaws(rig)
            if name == "sound":
                self.assertEqual(found, [])
            else:
                self.assertRegex(found[0], "^POST /v1/agent/heartbeat: at: ")


if __name__ == "__main__":
    unittest.main()
