"""The linters' word on the whole tree."""

from __future__ import annotations

import subprocess
import sys
import unittest
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


class Lint(unittest.TestCase):
    def clean(self, *command: str) -> None:
        ran = subprocess.run([sys.executable, "-m", *command], cwd=TOP, capture_output=True, text=True, check=False)
        self.assertEqual(ran.returncode, 0, f"{ran.stdout}{ran.stderr}")

    def test_ruff(self) -> None:
        self.clean("ruff", "check", "--quiet", "--output-format=concise", "nixfleet_agent", "tests", "setup.py")

    def test_every_file_is_formatted(self) -> None:
        self.clean("ruff", "format", "--check", "--quiet", "nixfleet_agent", "tests", "setup.py")

    def test_mypy_strict(self) -> None:
        self.clean("mypy")

    def test_bandit_has_nothing_to_say_that_is_not_answered_where_it_stands(self) -> None:
        self.clean("bandit", "--quiet", "--recursive", "--configfile", ".bandit.yaml", "nixfleet_agent")

    def test_what_is_installed_fits_together(self) -> None:
        self.clean("pip", "check")


if __name__ == "__main__":
    unittest.main()
