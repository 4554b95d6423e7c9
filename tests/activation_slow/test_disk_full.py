"""A release that fills the disk of the state folder: what became of it is still known, and it is taken back."""

from __future__ import annotations

import subprocess

from nixfleet_agent.activation.model import Completed, Failed, RolledBack
from tests.activation.case import PipelineCase


class DiskFullTest(PipelineCase):
    def setUp(self) -> None:
        super().setUp()
        state = str(self.host.state_dir)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", state], capture_output=True, check=False
        )
        if mounted.returncode != 0:
            self.skipTest("no right to mount here")
        self.addCleanup(subprocess.run, ["umount", "-l", state], check=True)
        self.fill = f'cat /dev/zero >"{state}/filled" 2>/dev/null\n'

    def test_the_exit_code_of_a_release_that_fills_the_disk_is_kept(self) -> None:
        bad = self.nixery.system("filler", self.fill + "echo full >&2; exit 7\n")
        outcome = self.forward(bad)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.phase, outcome.switch_fired), (7, "switch", True))
        # What is freed for this moment, the agent's reserve, is enough for a rollback.
        (self.host.state_dir / "filled").write_bytes(b"")
        self.assertEqual(self.pipeline().rollback(self.back(bad)), RolledBack(self.v1, 0))

    def test_a_success_that_fills_the_disk_is_a_success(self) -> None:
        target = self.nixery.system("good-filler", self.fill + 'flip "$self"\n')
        self.assertEqual(self.forward(target, policy="halt"), Completed(target, 0, ()))

    def test_a_success_under_guard_on_a_full_disk_is_a_success(self) -> None:
        target = self.nixery.system("good-filler", self.fill + 'flip "$self"\n')
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertEqual(self.records("guard"), [])
