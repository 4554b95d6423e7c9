"""The reserve: a MiB that is really allocated, given up once, made again when there is room, and fatal to nobody."""

from __future__ import annotations

import errno
import os
import unittest
from pathlib import Path
from unittest import mock

from nixfleet_agent import durable
from nixfleet_agent.journal.reserve import INODES, SIZE, Reserve
from tests.runtime.harness import temporary


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary(self)
        self.path = self.folder / "reserve"
        self.reserve = Reserve(self.folder)

    def test_its_bytes_are_on_the_disk_and_not_only_promised(self) -> None:
        self.assertTrue(self.reserve.ensure())
        status = self.path.stat()
        self.assertEqual((status.st_size, status.st_mode & 0o777), (SIZE, 0o600))
        self.assertGreaterEqual(status.st_blocks * 512, SIZE)
        self.assertTrue(self.reserve.ensure())

    def test_it_can_be_given_up_once(self) -> None:
        self.reserve.ensure()
        with self.assertLogs("nixfleet_agent.reserve", "WARNING"):
            self.assertTrue(self.reserve.release())
        self.assertFalse(self.path.exists())
        self.assertFalse(self.reserve.release())

    def test_its_inodes_are_held_and_given_up_with_its_bytes(self) -> None:
        self.reserve.ensure()
        self.assertEqual(len(list((self.folder / "reserve-inodes").iterdir())), INODES)
        with self.assertLogs("nixfleet_agent.reserve", "WARNING"):
            self.assertTrue(self.reserve.release())
        self.assertEqual(list(self.folder.iterdir()), [])
        self.assertTrue(self.reserve.ensure())
        self.assertEqual(len(list((self.folder / "reserve-inodes").iterdir())), INODES)

    def test_without_inodes_for_it_nothing_is_left_behind_and_the_bytes_are_held(self) -> None:
        def full(path: Path, data: bytes) -> None:
            if path.name == "40":
                raise OSError(errno.ENOSPC, "no inodes")

        with mock.patch.object(durable, "fill", full):
            self.assertFalse(self.reserve.ensure())
        self.assertEqual([path.name for path in self.folder.iterdir()], ["reserve"])

    def test_a_torn_one_is_completed(self) -> None:
        self.path.write_bytes(b"x" * 100)
        self.assertTrue(self.reserve.ensure())
        self.assertEqual(self.path.stat().st_size, SIZE)

    def test_without_room_for_it_nothing_is_left_behind(self) -> None:
        with mock.patch.object(os, "posix_fallocate", side_effect=OSError(errno.ENOSPC, "full")):
            self.assertFalse(self.reserve.ensure())
        self.assertFalse(self.path.exists())

    def test_on_a_read_only_disk_it_is_missing_and_nothing_worse(self) -> None:
        refused = OSError(errno.EROFS, "read-only")
        with mock.patch.object(os, "open", side_effect=refused), mock.patch.object(Path, "unlink", side_effect=refused):
            self.assertFalse(self.reserve.ensure())
            self.assertFalse(self.reserve.release())


if __name__ == "__main__":
    unittest.main()
