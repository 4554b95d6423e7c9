"""`init`: a configuration from flags or answers, whole or not at all, never over one that is there."""

from __future__ import annotations

import os
import pty
import signal
import stat
import subprocess
import sys
import time
import tomllib
import unittest
from pathlib import Path
from unittest import mock

from nixfleet_agent import durable
from nixfleet_agent.commands.init import render
from nixfleet_agent.config.load import load
from nixfleet_agent.config.model import Config
from nixfleet_agent.config.schema import Schema
from tests.commands.host_case import HostCase, Ran

URL = "https://127.0.0.1:9"


class Init(HostCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = self.folder / "etc" / "nixfleet" / "agent.toml"
        self.before = os.umask(0o077)
        self.addCleanup(os.umask, self.before)

    def init(self, *flags: str) -> Ran:
        return self.bare("init", "--config", str(self.path), *flags)

    def given(self) -> list[str]:
        """Flags for every key of this host that has one."""
        flags = self.settings.items()
        return [word for key, value in flags for word in ("--" + key.replace("_", "-"), str(value))]

    def test_flags_make_the_file_and_check_has_the_last_word(self) -> None:
        ran = self.init(*self.given())
        self.assertEqual((ran.code, ran.err), (1, ""), "nobody answers at that address")
        self.assertIn(f"{self.path} is written.\nok    configuration", ran.out)
        self.assertRegex(ran.out, "(?m)^fail  control plane .*Connection refused")
        self.assertIn("Once `nixfleet-agent check` finds nothing more: ", ran.out.splitlines()[-1])
        config = load(self.path, {}, {}).config
        for key, value in self.settings.items():
            self.assertEqual(str(getattr(config, key)), str(value), key)

    def test_everybody_may_read_it_and_root_alone_write_it_whatever_the_umask(self) -> None:
        self.init(*self.given())
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o644)
        self.assertEqual([item.name for item in self.path.parent.iterdir()], ["agent.toml"])

    def test_what_nobody_asked_for_keeps_its_default_and_is_there_to_be_read(self) -> None:
        flags = {"control_plane_url": URL, "machine_id": 'we"b', "bootstrap_token_file": "$CREDENTIALS_DIRECTORY/t"}
        text = render(flags)
        set_here = {key: value for key, value in tomllib.loads(text).items() if value != {}}
        self.assertEqual(set_here, flags, "and no table has a key")
        for name in Schema().keys:
            self.assertRegex(text, rf"(?m)^#?{name.rpartition('.')[2]} = ", name)
        self.path.parent.mkdir(parents=True)
        self.path.write_text(render({"control_plane_url": URL, "machine_id": "web-01"}))
        self.assertEqual(load(self.path, {}, {}).config, Config(control_plane_url=URL, machine_id="web-01"))

    def test_a_relative_path_is_written_as_what_it_means_here(self) -> None:
        text = render({"ca_cert": "ca.pem"})
        self.assertEqual(tomllib.loads(text)["ca_cert"], str(Path.cwd() / "ca.pem"))

    def test_a_file_that_is_there_stays_and_force_keeps_it_beside(self) -> None:
        self.init(*self.given())
        self.path.write_text("# mine\n")
        self.fails(1, str(self.path), "--force", ran=self.init(*self.given()))
        self.assertEqual(self.path.read_text(), "# mine\n")
        self.init("--force", *self.given())
        self.assertEqual(self.path.with_name("agent.toml.old").read_text(), "# mine\n")
        self.assertIn(URL, self.path.read_text())

    def test_of_two_at_once_the_second_replaces_nothing(self) -> None:
        def first(step: str, path: Path) -> None:
            if step == "rename":
                path.write_text("# the other's\n")

        with mock.patch.object(durable, "boundary", first):
            self.fails(1, "somebody else", ran=self.init(*self.given()))
        self.assertEqual(self.path.read_text(), "# the other's\n")
        self.assertEqual([item.name for item in self.path.parent.iterdir()], ["agent.toml"])

    def test_a_link_is_somebody_elses_even_with_force(self) -> None:
        self.path.parent.mkdir(parents=True)
        self.path.symlink_to("/nix/store/x/agent.toml")
        self.fails(1, "is a link to /nix/store/x/agent.toml", ran=self.init("--force", *self.given()))
        self.assertTrue(self.path.is_symlink())

    def test_a_value_that_the_agent_would_refuse_is_not_written(self) -> None:
        for flag, value, says in (
            ("--control-plane-url", "http://cp", "uses http"),
            ("--machine-id", "a b", "not a host name"),
            ("--renewal-threshold-fraction", "1.5", "less than 1"),
        ):
            with self.subTest(flag):
                self.fails(78, flag, says, ran=self.init(flag, value))
                self.assertFalse(self.path.exists())

    def test_without_a_terminal_it_says_which_flags_are_missing(self) -> None:
        self.fails(2, "give --control-plane-url and --machine-id", ran=self.init())
        self.fails(2, "give --machine-id", ran=self.init("--control-plane-url", URL))
        self.assertFalse(self.path.exists())

    def test_a_folder_that_takes_no_file_is_a_line(self) -> None:
        self.path = self.trust / "agent.toml"
        self.fails(1, "can't", ran=self.init(*self.given()))

    def test_json_is_what_check_found(self) -> None:
        found = self.init("--json", *self.given()).json
        self.assertIn({"what": "control plane", "level": "fail"}, [{k: f[k] for k in ("what", "level")} for f in found])

    def await_asleep(self, pid: int) -> None:
        """Return once the process waits for its answer.

        Python looks for signals before it reads, not between that and the kernel's wait: one that comes just then
        waits for the next key, and a test that presses none would wait with it.
        """
        until = time.monotonic() + 30
        while "State:\tS" not in Path(f"/proc/{pid}/status").read_text():
            self.assertLess(time.monotonic(), until, "it never waits for an answer")
            time.sleep(0.01)

    def at_terminal(self, typed: str, *flags: str, interrupt_at: bytes = b"") -> tuple[int, str]:
        """What is shown while ``typed`` is the answer; an interrupt follows the question that holds the bytes."""
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "nixfleet_agent", "init", "--config", str(self.path), *flags]
        environ = {"PATH": os.environ["PATH"], "NO_COLOR": "1", "TERM": "dumb"}
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ) as child:
            os.close(theirs)
            os.write(ours, typed.encode())
            shown = b""
            with os.fdopen(ours, "rb", buffering=0) as terminal:
                while True:
                    try:
                        part = terminal.read(4096)
                    except OSError:  # EIO: the other end is closed
                        break
                    shown += part or b""
                    if interrupt_at and interrupt_at in shown:
                        self.await_asleep(child.pid)
                        child.send_signal(signal.SIGINT)
                        interrupt_at = b""
        return child.returncode, shown.decode()

    def test_at_a_terminal_it_asks_until_the_answer_is_one(self) -> None:
        code, shown = self.at_terminal(f"http://cp\n\n{URL}\nweb-07\n{self.ca}\n\n")
        self.assertEqual(code, 1, shown)
        self.assertIn("uses http, which is not safe", shown)
        config = load(self.path, {}, {}).config
        self.assertEqual((config.control_plane_url, config.machine_id), (URL, "web-07"))
        self.assertEqual((config.ca_cert, config.bootstrap_token_file), (self.ca, None))

    def test_who_leaves_in_the_middle_leaves_nothing(self) -> None:
        for typed, interrupt_at, code in ((f"{URL}\n\x04", b"", 2), (f"{URL}\n", b"name in the fleet", 130)):
            with self.subTest(typed):
                found, shown = self.at_terminal(typed, interrupt_at=interrupt_at)
                self.assertEqual(found, code, shown)
                self.assertFalse(self.path.exists())

    def test_nothing_is_asked_when_flags_say_enough(self) -> None:
        _, shown = self.at_terminal("", "--control-plane-url", URL, "--machine-id", "web-01")
        self.assertNotIn("?", shown.partition("is written")[0])


if __name__ == "__main__":
    unittest.main()
