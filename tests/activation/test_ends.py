"""How a switch ends: only a script that came to its end has switched a host; the flip of the link is in its middle."""

from __future__ import annotations

import unittest

from nixfleet_agent.activation.model import Completed, Failed, Forward, Rollback, RollbackFailed, RolledBack
from tests.activation.case import ROLLOUT, PipelineCase

FLIP = 'flip "$self"\necho "restarting nothing" >&2\n'


class AfterTheFlip(PipelineCase):
    def tearDown(self) -> None:
        self.pipeline().release(ROLLOUT)

    def test_only_success_and_failed_units_complete(self) -> None:
        for code in (1, 2, 3, 100, 137):
            with self.subTest(code=code):
                self.host.boot(self.v1)
                target = self.nixery.system(f"flips-{code}", f"{FLIP}exit {code}\n")
                outcome = self.forward(target)
                assert isinstance(outcome, Failed), outcome
                self.assertEqual((outcome.phase, outcome.exit_code, outcome.switch_fired), ("switch", code, True))
                self.assertEqual(outcome.observed, target, "it is what a rollback has to leave")
                self.assertIn("restarting nothing", outcome.stderr_tail)
                self.assertEqual(self.host.switches().count(f"switch {target}"), 1, "what a script says, it says again")
                self.pipeline().release(ROLLOUT)

    def test_the_same_closure_in_another_rollout_is_switched_to_again(self) -> None:
        """Its link is current, and half of its units were never started: that is no host to watch and call well."""
        mark = self.host.root / "failed-once"
        target = self.nixery.system("fails-once", f"{FLIP}[ -e {mark} ] || {{ : >{mark}; exit 2; }}\n")
        self.assertIsInstance(self.forward(target), Failed)
        heir = Forward("edge@def4567abc", target, self.v1, "rollback-and-halt")
        self.assertEqual(self.pipeline().forward(heir, self.methods.append), Completed(target, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {target}"] * 2)
        self.assertEqual(self.methods[-1], "setsid", "told as the switch that it is")
        third = Forward("edge@abc4567def", target, self.v1, "rollback-and-halt")
        self.assertEqual(self.pipeline().forward(third, self.methods.append), Completed(target, 0, ()))
        self.assertEqual(len(self.host.switches()), 2, "a switch that came to its end is not repeated")

    def test_a_group_that_is_killed_is_fired_again_once_and_completes(self) -> None:
        mark = self.host.root / "killed-once"
        target = self.nixery.system("killed-once", f"{FLIP}[ -e {mark} ] || {{ : >{mark}; kill -KILL 0; }}\n")
        with self.assertLogs(self.log, "WARNING") as logs:
            self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {target}"] * 2)
        self.assertTrue(any("firing it again" in line for line in logs.output))
        self.assertEqual(self.records("guard"), [], "the guard of each firing is disarmed")

    def test_a_group_that_is_killed_again_has_failed(self) -> None:
        target = self.nixery.system("killed", f"{FLIP}kill -KILL 0\n")
        outcome = self.forward(target)
        assert isinstance(outcome, Failed), outcome
        self.assertEqual((outcome.phase, outcome.exit_code, outcome.observed), ("switch", -1, target))
        self.assertIn("was killed", outcome.stderr_tail)
        self.assertEqual(self.host.switches(), [f"switch {target}"] * 2)

    def test_a_rollback_that_is_killed_is_not_over(self) -> None:
        mark = self.host.root / "rollback-killed"
        v0 = self.nixery.system("v0", f"{FLIP}[ -e {mark} ] || {{ : >{mark}; kill -KILL 0; }}\n")
        self.host.boot(self.v2)
        back = Rollback(ROLLOUT, v0, self.v2, True, self.v2)
        self.assertIsInstance(self.pipeline().rollback(back), RollbackFailed)
        self.assertEqual(self.pipeline().rollback(back), RolledBack(v0, 0))


class WithoutAFlip(PipelineCase):
    def tearDown(self) -> None:
        self.pipeline().release(ROLLOUT)

    def test_a_script_that_succeeds_is_noticed_at_once(self) -> None:
        self.host.configure(poll_budget_secs=600.0)
        outcome = self.forward(self.nixery.system("lazy", 'echo "did nothing" >&2\nexit 0\n'))
        assert isinstance(outcome, Failed), outcome
        self.assertEqual((outcome.phase, outcome.observed), ("switch-no-flip", self.v1))
        self.assertIn("did nothing", outcome.stderr_tail)

    def test_a_current_system_that_is_gone_when_the_script_has_ended_is_noticed_at_once(self) -> None:
        self.host.configure(poll_budget_secs=600.0)
        target = self.nixery.system("unlinks", f"rm -f {self.host.activation.current_system}\nexit 0\n")
        outcome = self.forward(target)
        assert isinstance(outcome, Failed), outcome
        self.assertEqual(outcome.phase, "no-current-system")
        self.assertIn(str(self.host.activation.current_system), outcome.stderr_tail)


if __name__ == "__main__":
    unittest.main()
