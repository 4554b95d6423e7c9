"""The state directory: one agent at a time, however the last one ended, private, and cleared of what a crash left."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import unittest

from nixfleet_agent.durable import TEMPORARY_SUFFIX
from nixfleet_agent.errors import EXIT_CONFIG, ConfigError, StateDirBusyError
from nixfleet_agent.runtime.state_dir import LOCK_NAME, StateDir, holder
from tests.runtime.harness import temporary

_HOLDER = """
import sys
from pathlib import Path
from nixfleet_agent.runtime.state_dir import StateDir
held = StateDir.take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.path = temporary(self) / "state"

    def take(self) -> StateDir:
        taken = StateDir.take(self.path)
        self.addCleanup(taken.release_lock)
        return taken

    def another(self) -> subprocess.Popen[str]:
        """Another process that holds the directory."""
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(self.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None and process.stdout is not None
        self.addCleanup(process.wait)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stdin.close)
        self.assertEqual(process.stdout.readline(), "held\n")
        return process

    def test_is_made_private_and_names_its_holder(self) -> None:
        self.assertEqual(self.take().path, self.path)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o700)
        self.assertEqual((self.path / LOCK_NAME).read_text(), f"{os.getpid()}\n")

    def test_the_holder_is_seen_without_touching_the_lock(self) -> None:
        self.assertIsNone(holder(self.path))
        process = self.another()
        self.assertEqual(holder(self.path), process.pid)
        process.kill()
        process.wait()
        self.assertIsNone(holder(self.path))
        # The number alone proves nothing: another program may have it by now.
        (self.path / LOCK_NAME).write_text(f"{os.getpid()}\n")
        self.assertIsNone(holder(self.path))
        (self.path / LOCK_NAME).write_text("nobody\n")
        self.assertIsNone(holder(self.path))

    def test_temporaries_go_from_every_folder_but_the_journals_own(self) -> None:
        stray = [self.path / "fleet", self.path / "switch" / "000001-forward-x", self.path / "outbound-queue"]
        for folder in stray:
            folder.mkdir(parents=True)
            (folder / f".x.1{TEMPORARY_SUFFIX}").touch()
            (folder / "kept").touch()
        self.take()
        left = sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file())
        ours = ["fleet/kept", "lock", f"outbound-queue/.x.1{TEMPORARY_SUFFIX}", "outbound-queue/kept"]
        self.assertEqual(left, [*ours, "switch/000001-forward-x/kept"])

    def test_a_second_agent_is_told_who_the_first_is(self) -> None:
        first = self.another()
        with self.assertRaises(StateDirBusyError) as busy:
            StateDir.take(self.path)
        self.assertEqual(busy.exception.exit_code, 75)
        self.assertIn(f"pid {first.pid}", str(busy.exception))
        self.assertIn("state_dir of its own", str(busy.exception))

    def test_a_lock_without_a_name_is_a_lock(self) -> None:
        self.path.mkdir()
        with (self.path / LOCK_NAME).open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with self.assertRaisesRegex(StateDirBusyError, "pid unknown"):
                StateDir.take(self.path)

    def test_a_holder_that_was_killed_holds_nothing(self) -> None:
        first = self.another()
        first.send_signal(signal.SIGKILL)
        first.wait()
        self.take()
        self.assertEqual((self.path / LOCK_NAME).read_text(), f"{os.getpid()}\n", "the longer pid of the dead is gone")

    def test_children_do_not_inherit_the_lock(self) -> None:
        held = StateDir.take(self.path)
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        held.release_lock()
        self.take()

    def test_one_that_can_not_be_used_is_a_mistake_of_the_configuration(self) -> None:
        self.path.write_text("a file in its place")
        with self.assertRaisesRegex(ConfigError, r"state: Not a directory: check state_dir$") as wrong:
            StateDir.take(self.path)
        self.assertEqual(wrong.exception.exit_code, EXIT_CONFIG)

    def test_temporary_files_of_a_crash_go_from_every_folder_and_nothing_else_does(self) -> None:
        for folder in (".", "switch/000001-forward-stable@aa", "fleet"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
            (self.path / folder / "keep.json").write_text("{}")
            (self.path / folder / f".keep.json.1234{TEMPORARY_SUFFIX}").write_text("half")
        self.take()
        left = {str(file.relative_to(self.path)) for file in self.path.rglob("*") if file.is_file()}
        kept = {"keep.json", "fleet/keep.json", "switch/000001-forward-stable@aa/keep.json", LOCK_NAME}
        self.assertEqual(left, kept)


if __name__ == "__main__":
    unittest.main()
