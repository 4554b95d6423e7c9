"""The Debian package: what is in it, and that the program in it runs with nothing but what came with it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from nixfleet_agent import __version__

TOP = Path(__file__).resolve().parents[2]


class Deb(unittest.TestCase):
    folder: tempfile.TemporaryDirectory[str]
    package: Path
    before: set[str]

    @classmethod
    def setUpClass(cls) -> None:
        cls.before = {path.name for path in TOP.iterdir()}
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        command = [str(TOP / "packaging" / "build-deb"), cls.folder.name]
        subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, check=True, stdout=subprocess.DEVNULL)
        (cls.package,) = Path(cls.folder.name).glob("*.deb")

    def field(self, name: str) -> str:
        return subprocess.run(
            ["dpkg-deb", "--field", str(self.package), name], capture_output=True, text=True, check=True
        ).stdout.strip()

    def test_it_says_what_it_is_and_which_python_it_fits(self) -> None:
        self.assertEqual(self.field("Version"), __version__)
        self.assertIn(f"python3 (>= 3.{sys.version_info[1]})", self.field("Depends"))
        self.assertIn(f"python3 (<< 3.{sys.version_info[1] + 1})", self.field("Depends"))

    def test_the_program_in_it_runs_with_what_came_with_it(self) -> None:
        root = Path(self.folder.name) / "root"
        subprocess.run(["dpkg-deb", "--extract", str(self.package), str(root)], check=True)
        for path in (
            "lib/systemd/system/nixfleet-agent.service",
            "etc/init.d/nixfleet-agent",
            "usr/share/man/man8/nixfleet-agent.8.gz",
            "usr/share/bash-completion/completions/nixfleet-agent",
            "usr/lib/nixfleet-agent/nixfleet_agent/conf/schemas/agent.schema.json",
            "usr/lib/nixfleet-agent/nixfleet_agent/activation/scripts/wrapper.sh",
        ):
            self.assertTrue((root / path).is_file(), path)
        program = root / "usr" / "bin" / "nixfleet-agent"
        environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(TOP), "NIXFLEET_AGENT_MACHINE_ID": "web-01"}
        # With the interpreter that it was built with, which need not be this machine's /usr/bin/python3.
        command = [sys.executable, "-I", str(program), "check", "--print-config", "--control-plane-url", "https://cp"]
        ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        self.assertIn('machine_id = "web-01"', ran.stdout)
        code = f"import sys; sys.path.insert(0, {str(root / 'usr/lib/nixfleet-agent')!r}); " + (
            "import nixfleet_agent.runtime.daemon as d, requests; print(d.__file__, requests.__file__)"
        )
        ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
        for path in ran.stdout.split():
            self.assertTrue(path.startswith(str(root)), path)

    def test_nothing_is_left_in_the_checkout(self) -> None:
        self.assertEqual({path.name for path in TOP.iterdir()}, self.before)


if __name__ == "__main__":
    unittest.main()
