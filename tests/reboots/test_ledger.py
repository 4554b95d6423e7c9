"""The counter of reboots on disk, and the files that tell others that one is due."""

from __future__ import annotations

import tempfile
import unittest
from datetime import timedelta
from pathlib import Path

from nixfleet_agent.errors import StorageError
from nixfleet_agent.reboots import required
from nixfleet_agent.reboots.ledger import Asked, RebootLedger
from tests.support.clock import EPOCH

R = "stable@aa"


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))


class Ledger(Case):
    def setUp(self) -> None:
        super().setUp()
        self.ledger = RebootLedger(self.folder)

    def test_each_direction_of_a_rollout_has_a_note_of_its_own(self) -> None:
        self.assertIsNone(self.ledger.last(R, "forward"))
        self.ledger.note(R, "forward", "boot-1", EPOCH)
        self.ledger.note(R, "rollback", "boot-2", EPOCH + timedelta(hours=1))
        again = RebootLedger(self.folder)
        self.assertEqual(again.last(R, "forward"), Asked(R, "forward", "boot-1", EPOCH, 1))
        self.assertEqual(again.last(R, "rollback"), Asked(R, "rollback", "boot-2", EPOCH + timedelta(hours=1), 1))
        self.assertIsNone(again.last("stable@bb", "forward"))

    def test_requests_of_one_boot_are_counted(self) -> None:
        for minutes in (0, 10, 20):
            self.ledger.note(R, "forward", "boot-1", EPOCH + timedelta(minutes=minutes))
        last = self.ledger.last(R, "forward")
        self.assertEqual(last and (last.tries, last.at), (3, EPOCH + timedelta(minutes=20)))
        self.assertEqual(len(self.ledger.all()), 1)

    def test_the_newest_are_kept(self) -> None:
        for number in range(60):
            self.ledger.note(f"stable@{number:02}", "forward", "boot-1", EPOCH)
        self.assertEqual(len(self.ledger.all()), 50)
        self.assertIsNotNone(self.ledger.last("stable@59", "forward"))

    def test_who_can_not_count_does_not_reboot(self) -> None:
        broken = (b"", b"{", b"7", b"[7]", b'[{"rolloutId": 5}]', b"[" * 100_000, b'[{"rolloutId": "a"}]')
        for raw in broken:
            with self.subTest(raw[:30]):
                self.ledger.path.write_bytes(raw)
                with self.assertRaisesRegex(StorageError, "remove the file"):
                    self.ledger.last(R, "forward")
                with self.assertRaises(StorageError):
                    self.ledger.note(R, "forward", "boot-1", EPOCH)


class Required(Case):
    def setUp(self) -> None:
        super().setUp()
        self.path = self.folder / "reboot-required"
        self.packages = self.folder / "reboot-required.pkgs"

    def test_it_names_each_component_once_and_goes_when_it_is_over(self) -> None:
        for _ in range(2):
            required.require(self.path, ["kernel", "systemd"])
        self.assertEqual(self.packages.read_text(), "kernel\nsystemd\n")
        self.assertIn("restart required", self.path.read_text())
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o644)
        required.withdraw(self.path)
        self.assertEqual(list(self.folder.iterdir()), [])
        required.withdraw(self.path)

    def test_another_programs_files_stay_its_own(self) -> None:
        self.path.write_text("*** System restart required ***\n")
        self.packages.write_text("libc6\n")
        required.require(self.path, ["kernel"])
        self.assertEqual(self.packages.read_text(), "libc6\nkernel\n")
        required.withdraw(self.path)
        self.assertEqual(self.path.read_text(), "*** System restart required ***\n")

    def test_what_can_not_be_written_is_an_error_of_the_disk(self) -> None:
        with self.assertRaises(StorageError):
            required.require(self.folder / "missing" / "reboot-required", ["kernel"])


if __name__ == "__main__":
    unittest.main()
