"""What can't work fails with a clear reason in one phase and leaves the host as it was."""

from __future__ import annotations

import os
import shutil
import unittest

from nixfleet_agent import durable
from nixfleet_agent.activation.model import Completed, Failed, Forward, Rollback, RollbackFailed
from tests.activation.case import ROLLOUT, PipelineCase


class BadInputTest(PipelineCase):
    def assert_untouched(self, outcome: object, phase: str, word: str) -> None:
        assert isinstance(outcome, Failed), outcome
        self.assertEqual((outcome.phase, outcome.exit_code, outcome.switch_fired), (phase, -1, False))
        self.assertIn(word, outcome.stderr_tail)
        self.assertTrue(outcome.stderr_tail.startswith(f"{phase}: "))
        self.assertEqual((self.host.running(), self.host.switches()), (self.v1, []))
        self.assertEqual(self.records("guard"), [])

    def test_names_that_are_no_basenames_reach_neither_a_path_nor_a_command(self) -> None:
        for name in ("../../etc/passwd", f"/nix/store/{self.v2}", "--option", "", "x" * 300, f"{self.v2}/bin", "a\nb"):
            with self.subTest(name):
                self.assert_untouched(self.forward(name), "names", "the closure is not valid")
                outcome = self.pipeline().rollback(Rollback(ROLLOUT, name, self.v2, True, None))
                assert isinstance(outcome, RollbackFailed)
                self.assertEqual(outcome.phase, "names")
        intent = Forward("../x@1", self.v2, self.v1, "halt")
        self.assert_untouched(
            self.pipeline().forward(intent, self.methods.append), "names", "the rollout id is not valid"
        )

    def test_a_closure_without_a_switch_script_never_becomes_the_profile(self) -> None:
        bare = self.nixery.system("bare", switchable=False)
        self.assert_untouched(self.forward(bare), "no-switch-script", "bin/switch-to-configuration is missing")
        self.assertEqual(self.host.profile_closure(), self.v1)

    def test_a_profile_that_can_not_be_written_fails_before_the_switch(self) -> None:
        blocked = self.host.root / "a-file"
        blocked.write_text("")
        self.host.configure(profile=blocked / "system")
        self.assert_untouched(self.forward(self.v2), "nix-env-set", "nix-env --profile")

    def test_no_nix_on_the_path_says_so(self) -> None:
        # execvpe looks a program up in the PATH of the environment that the child gets.
        self.host.environment["PATH"] = str(self.host.root)
        self.assert_untouched(self.forward(self.v2, policy="halt"), "realise", "is it installed and on PATH?")
        self.assert_untouched(self.forward(self.v2), "no-way-back", "is it installed and on PATH?")

    def test_programs_that_the_wrapper_needs_are_missed_before_anything_waits_for_it(self) -> None:
        programs = self.host.root / "programs"
        programs.mkdir()
        for name in ("nix-store", "nix-env", "cat", "env", "mv", "rm", "sed", "sleep"):
            (programs / name).symlink_to(str(shutil.which(name)))
        self.host.environment["PATH"] = str(programs)
        self.assert_untouched(self.forward(self.v2), "fire", "no dd, ln on the agent's PATH")

    def test_a_nix_daemon_that_is_gone_says_so(self) -> None:
        self.host.configure(store_root="", realise_timeout_secs=1.0)
        self.host.environment["NIX_REMOTE"] = f"unix://{self.host.root}/no-socket"
        self.assert_untouched(self.forward(self.v2, policy="halt"), "realise", "no-socket")

    def test_a_state_folder_that_can_not_be_written_fires_nothing(self) -> None:
        def refuse(step: str, path: object) -> None:
            if "switch" in str(path):
                raise OSError(28, os.strerror(28))

        self.addCleanup(setattr, durable, "boundary", durable.boundary)
        durable.boundary = refuse
        self.assert_untouched(self.forward(self.v2, policy="halt"), "state-dir", "No space left on device")

    def test_a_disk_full_guard_is_not_fired_without(self) -> None:
        def refuse(step: str, path: object) -> None:
            if "-guard-" in str(path):
                raise OSError(28, os.strerror(28))

        self.addCleanup(setattr, durable, "boundary", durable.boundary)
        durable.boundary = refuse
        self.assert_untouched(self.forward(self.v2), "guard-arm", "No space left on device")
        self.assertEqual(self.records("forward"), [])

    def test_a_missing_current_system_link_is_no_reason_not_to_switch(self) -> None:
        self.host.current_system.unlink()
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))


if __name__ == "__main__":
    unittest.main()
