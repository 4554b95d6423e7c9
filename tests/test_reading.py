"""A file that somebody else may have put there is read with a limit, and never waited for."""

from __future__ import annotations

import os
import tempfile
import unittest
from pathlib import Path

from nixfleet_agent.reading import read_regular


class WhateverLiesThere(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.path = self.folder / "file"

    def refusal(self) -> OSError:
        before = set(os.listdir("/proc/self/fd"))
        with self.assertRaises(OSError) as caught:
            read_regular(self.path, 10)
        self.assertEqual(set(os.listdir("/proc/self/fd")), before, "no descriptor is left open")
        return caught.exception

    def test_a_file_up_to_the_limit_is_read_whole_and_a_longer_one_shows_that_it_is(self) -> None:
        for size in (0, 9, 10):
            self.path.write_bytes(b"x" * size)
            self.assertEqual(read_regular(self.path, 10), b"x" * size)
        for size in (11, 300_000):
            self.path.write_bytes(b"x" * size)
            self.assertEqual(read_regular(self.path, 10), b"x" * 11)

    def test_a_large_file_comes_whole(self) -> None:
        content = os.urandom(300_001)
        self.path.write_bytes(content)
        self.assertEqual(read_regular(self.path, 1 << 20), content)

    def test_a_pipe_is_refused_at_once_with_and_without_a_writer(self) -> None:
        os.mkfifo(self.path)
        self.assertEqual(self.refusal().strerror, "it is not a regular file")
        writer = os.open(self.path, os.O_RDWR)
        self.addCleanup(os.close, writer)
        self.assertEqual(self.refusal().strerror, "it is not a regular file")

    def test_a_folder_and_a_device_are_refused(self) -> None:
        self.path.mkdir()
        self.assertEqual(self.refusal().strerror, "it is not a regular file")
        self.path = Path("/dev/zero")
        self.assertEqual(self.refusal().strerror, "it is not a regular file")

    def test_an_absent_file_is_told_from_a_link_that_leads_nowhere(self) -> None:
        self.assertIsInstance(self.refusal(), FileNotFoundError)
        self.path.symlink_to(self.folder / "gone")
        refusal = self.refusal()
        self.assertNotIsInstance(refusal, FileNotFoundError)
        self.assertIn("leads nowhere", str(refusal.strerror))

    def test_a_name_that_no_file_can_have_is_an_error_of_the_system(self) -> None:
        self.path = Path("a\0b")
        self.assertIn("null", str(self.refusal().strerror))


if __name__ == "__main__":
    unittest.main()
