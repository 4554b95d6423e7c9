"""Why a demo can't begin: one line, no traceback, nothing left behind."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

from nixfleet_agent.demo import main
from nixfleet_agent.demo.errors import DemoError

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
        for arguments in (("--agents", "0"), ("--agents", "many"), ("--fault", "fire"), ("--port", "99999")):
            with self.subTest(arguments):
                self.assertIn(arguments[1], self.refused(*arguments))

    def test_on_a_port_that_is_taken(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            said = self.refused("--port", str(port))
        self.assertIn(f"can't listen on 127.0.0.1:{port}: Address already in use", said)
        self.assertEqual(list(self.scratch.iterdir()), [])

    def test_with_a_scenario_that_is_wrong(self) -> None:
        mine = self.scratch / "mine.toml"
        mine.write_text('title = "x"\nagent = 3\n')
        self.assertIn(f"{mine}: agent: unknown key: did you mean 'agents'?", self.refused("--scenario", str(mine)))
        self.assertIn("did you mean 'hostile'?", self.refused("--scenario", "hostle"))
        self.assertEqual(list(self.scratch.iterdir()), [mine])

    def test_where_nothing_can_be_written(self) -> None:
        (self.scratch / "file").write_text("")
        self.assertIn("choose another --dir", self.refused("--dir", str(self.scratch / "file" / "demo")))

    def test_one_folder_is_given_to_one_demo_only_however_close_they_come(self) -> None:
        together = threading.Barrier(8)
        taken: list[bool] = []

        def take() -> None:
            together.wait()
            try:
                taken.append(bool(main._folder(main.DemoOptions(folder=self.scratch / "one"))))
            except DemoError:
                taken.append(False)

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(taken), [False] * 7 + [True])


class Listing(unittest.TestCase):
    def test_the_scenarios_are_named_with_what_they_tell(self) -> None:
        command = [sys.executable, "-m", "nixfleet_agent", "demo", "--list-scenarios"]
        plain = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
        self.assertRegex(plain, r"(?m)^hostile +a control plane that lies gets nothing onto a host$")
        done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        self.assertEqual(list(json.loads(done.stdout)), [line.split()[0] for line in plain.splitlines()[1:]])


if __name__ == "__main__":
    unittest.main()
