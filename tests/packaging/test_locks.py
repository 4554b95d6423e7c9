"""The locks of the Python packages: complete, with hashes, and in the versions of constraints.txt."""

from __future__ import annotations

import itertools
import re
import unittest
from importlib import metadata
from pathlib import Path

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)
AGAIN = "run `packaging/dev lock`"


def plain(name: str) -> str:
    """A package's name as all tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, str]:
    return {plain(name): version for name, version in PIN.findall((PACKAGING / file).read_text())}


class Locks(unittest.TestCase):
    def test_the_lock_has_every_version_of_the_constraints_and_no_other(self) -> None:
        self.assertEqual(pins("requirements-dev.lock"), pins("constraints.txt"), AGAIN)

    def test_what_a_demo_installs_is_part_of_what_a_developer_installs(self) -> None:
        self.assertLessEqual(pins("requirements-demo.lock").items(), pins("requirements-dev.lock").items(), AGAIN)

    def test_every_release_has_its_hashes(self) -> None:
        for file in ("requirements-demo.lock", "requirements-dev.lock"):
            releases = (PACKAGING / file).read_text().split("\n")
            for line, following in itertools.pairwise(releases):
                if PIN.match(line):
                    self.assertRegex(following, r"^ +--hash=sha256:[0-9a-f]{64}( \\)?$", line)

    def test_what_runs_here_is_what_is_locked(self) -> None:
        for name, version in pins("requirements-dev.lock").items():
            with self.subTest(name=name):
                self.assertEqual(metadata.version(name), version)

    def test_all_that_the_project_asks_for_is_locked(self) -> None:
        wanted = metadata.requires("nixfleet-agent") or []
        names = {plain(re.split(r"[\s;<>=!~\[]", each, maxsplit=1)[0]) for each in wanted}
        self.assertLessEqual(names, pins("requirements-dev.lock").keys(), AGAIN)
        runs = {plain(re.split(r"[\s;<>=!~\[]", each, maxsplit=1)[0]) for each in wanted if "dev" not in each}
        self.assertLessEqual(runs, pins("requirements-demo.lock").keys(), AGAIN)


if __name__ == "__main__":
    unittest.main()
