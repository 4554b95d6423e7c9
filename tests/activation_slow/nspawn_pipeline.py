"""Run inside systemd-nspawn, by a process with a /proc of its own: it sees the machine's boot id, units another.

That is how the packaged unit sees it, whose ProtectKernelTunables and ProtectControlGroups mount /proc anew.
"""

from __future__ import annotations

import subprocess
import unittest

from nixfleet_agent.activation import host
from nixfleet_agent.activation.model import Completed, Failed, Interrupted, RolledBack
from tests.activation.case import until
from tests.activation_slow.systemd_pipeline import SystemdPipelineCase
from tests.support.nix import FAIL, HANG_AFTER_FLIP, SLOW


class NspawnTest(SystemdPipelineCase):
    def test_the_two_really_see_two_boot_ids(self) -> None:
        told = self.host.root / "seen"
        look = f"cat /proc/sys/kernel/random/boot_id >{told}.new && mv {told}.new {told}"
        subprocess.run(["systemd-run", "--quiet", "sh", "-c", look], timeout=30, check=True)
        seen = until(lambda: told.exists() and told.read_text(), "the unit's words").strip()
        self.assertRegex(seen, "^[0-9a-f-]{36}$")
        own, _, first = host.read_boot_id().partition("/")
        self.assertNotEqual(own, seen)
        self.assertRegex(first, "^[0-9]+$", "what tells one boot of the container from the next")

    def test_a_good_switch_is_followed_to_its_end(self) -> None:
        target = self.nixery.system("slow", SLOW)
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertEqual(self.records("guard"), [])

    def test_a_bad_one_is_taken_back(self) -> None:
        bad = self.nixery.system("bad", FAIL)
        outcome = self.forward(bad)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.phase), (11, "switch"))
        self.assertEqual(self.pipeline().rollback(self.back(bad)), RolledBack(self.v1, 0))

    def test_one_that_goes_on_when_the_agent_ends_is_found_again(self) -> None:
        target = self.nixery.system("slow", SLOW)
        result = self.in_thread(lambda: self.forward(target))
        until(lambda: self.host.switches(), "the switch")
        self.interrupt("shutdown")
        self.assertEqual(result(), Interrupted("shutdown"))
        self.reason = None
        self.wake.clear()
        self.assertEqual(self.resume(target), Completed(target, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {target}"])

    def test_the_guard_rings_by_itself_and_its_mark_is_recognised(self) -> None:
        self.host.configure(settle_budget_secs=0.1, guard_secs=1.0)
        bad = self.nixery.system("hang-after", HANG_AFTER_FLIP)
        self.assertIsInstance(self.forward(bad), Failed)
        until(lambda: self.records("guard")[-1].exit_code == 0, "the end of the guard")
        self.assertEqual((self.host.running(), self.host.boots()), (self.v1, self.v1))
        outcome = self.resume(bad)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.phase, outcome.observed), ("guard", self.v1))


if __name__ == "__main__":
    unittest.main()
