"""Why a demo can't begin: one line, no traceback, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class CanNotBegin(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="demo-begin-")
        self.addCleanup(scratch.cleanup)
        self.scratch = Path(scratch.name)

    def refused(self, *arguments: str, path: str | None = None) -> str:
        """The one line on stderr."""
        environment = {"PATH": "/usr/bin:/bin" if path is None else path, "TMPDIR": str(self.scratch)}
        done = subprocess.run(
            [sys.executable, "-m", "nixfleet_agent", "demo", *arguments],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        return done.stderr

    def test_without_nix(self) -> None:
        self.assertIn("nix-bin", self.refused(path=str(self.scratch)))
        self.assertEqual(list(self.scratch.iterdir()), [])

    def test_in_a_folder_that_is_in_use(self) -> None:
        (self.scratch / "mine").write_text("mine")
        self.assertIn("is not empty", self.refused("--dir", str(self.scratch)))
        self.assertEqual((self.scratch / "mine").read_text(), "mine")

    def test_in_a_folder_that_nix_can_not_name(self) -> None:
        self.assertIn("choose another --dir", self.refused("--dir", str(self.scratch / "a b")))
        self.assertFalse((self.scratch / "a b").exists())

    def test_in_a_folder_whose_path_is_too_long(self) -> None:
        folder = self.scratch / ("l" * 90)
        self.assertIn("choose a shorter --dir", self.refused("--dir", str(folder)))
        self.assertFalse(folder.exists())

    def test_with_arguments_that_make_no_sense(self) -> None:
        for arguments in (("--agents", "0"), ("--agents", "many"), ("--fault", "fire")):
            with self.subTest(arguments):
                self.assertIn(arguments[1], self.refused(*arguments))


if __name__ == "__main__":
    unittest.main()
