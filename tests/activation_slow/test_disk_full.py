"""A disk that fills up: the store's while a release is fetched; the state folder's by a release that is taken back."""

from __future__ import annotations

import os
import subprocess
import unittest
from pathlib import Path

from nixfleet_agent.activation.model import Completed, Failed, RolledBack
from tests.activation.case import PipelineCase, until


def mount_small(case: unittest.TestCase, place: Path, size: str) -> None:
    """Give the folder a small file system of its own until the test is over."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        case.skipTest("no right to mount here")
    case.addCleanup(subprocess.run, ["umount", "-l", str(place)], check=True)


class StoreFullTest(PipelineCase):
    def test_a_store_that_fills_up_in_the_middle_changes_nothing_and_is_waited_for(self) -> None:
        small = self.nixery.host(f"{self.host.root.name}-small")
        mount_small(self, small.store_root, "4m")
        self.host = small
        self.host.boot(self.v1)
        # Every file takes a page, which no size that Nix tells beforehand counts.
        target = self.nixery.system("many", files={f"file{n}": str(n) for n in range(300)})
        filled = self.host.store_root / "filled"
        free = os.statvfs(self.host.store_root)
        filled.write_bytes(bytes(free.f_bavail * free.f_frsize - (600 << 10)))
        result = self.in_thread(lambda: self.forward(target))
        until(lambda: self.waits, "a try that failed")
        waiting = self.waits[0]
        assert waiting is not None
        self.assertEqual(waiting.kind, "disk")
        self.assertIn("No space left on device", waiting.reason)
        self.assertEqual(
            (self.host.running(), self.host.profile_closure(), self.host.switches()), (self.v1, self.v1, [])
        )
        filled.unlink()
        self.assertEqual(result(), Completed(target, 0, ()))


class DiskFullTest(PipelineCase):
    def setUp(self) -> None:
        super().setUp()
        state = str(self.host.state_dir)
        mount_small(self, self.host.state_dir, "1m")
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
