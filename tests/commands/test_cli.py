"""The command line: one line for every mistake, the right exit code, and never a traceback."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from nixfleet_agent import __version__
from nixfleet_agent.cli import COMMANDS, split_command
from nixfleet_agent.output import CONFIG_FLAGS
from tests.commands.host_case import HostCase
from tests.config.mistakes import GOOD, MISTAKES

#: (what, arguments, exit code, parts of the line)
MISUSE: list[tuple[str, str, int, tuple[str, ...]]] = [
    ("a command that does not exist", "frobnicate", 2, ("unknown command 'frobnicate'", "--help")),
    ("a command misspelt", "stauts", 2, ("unknown command 'stauts'", "did you mean 'status'?")),
    ("a flag that does not exist", "status --frob", 2, ("unrecognized arguments: --frob", "status --help")),
    ("a shortened flag", "status --machine x", 2, ("unrecognized arguments: --machine",)),
    ("a flag without its value", "status --machine-id", 2, ("--machine-id: expected one argument",)),
    ("an argument too many", "release now", 2, ("unrecognized arguments: now",)),
    ("no action", "queue", 2, ("required: list|show|retry|drop",)),
    ("an action that does not exist", "queue purge", 2, ("invalid choice: 'purge'",)),
    ("an action of another command", "quarantine drop", 2, ("invalid choice: 'drop'",)),
    ("a hold without a reason", "hold", 2, ("required: --reason",)),
    ("a hold with an empty reason", "hold --reason=", 2, ("needs a reason",)),
    ("a hold until nonsense", "hold --reason x --until friday", 2, ("'friday' is no time", "90m, 4h or 2d")),
    ("a hold until yesterday", "hold --reason x --until 2020-01-01T00:00:00Z", 2, ("over already",)),
    ("a hold for ever", "hold --reason x --until 3000d", 2, ("more than a year",)),
    ("to show an event that is not there", "queue show stable@ab/7", 2, ("no event 'stable@ab/7'", "queue list")),
    ("to retry an event that is not there", "queue retry stable@ab/7", 2, ("no event",)),
    ("to drop nothing in particular", "queue drop", 2, ("one of the arguments",)),
    ("to lift nothing in particular", "quarantine clear", 2, ("one of the arguments",)),
    ("to lift what is not quarantined", "quarantine clear abc", 2, ("nothing in quarantine begins with 'abc'",)),
    ("history without a past", "history", 2, ("has accepted no rollout yet",)),
    ("history of a rollout that was never here", "history stable@ff", 2, ("has accepted no rollout",)),
    ("to retry a rollback that is not owed", "rollback retry", 1, ("no rollback is owed",)),
    ("to give up a rollback that is not owed", "rollback give-up", 1, ("no rollback is owed",)),
    ("to verify nothing", "verify --sig x", 2, ("--fleet --manifest",)),
    ("to verify without a signature", "verify --fleet x", 2, ("required: --sig",)),
    ("to verify two things", "verify --fleet x --manifest y --sig z", 2, ("not allowed with",)),
    (
        "to look for a host in a fleet",
        "verify --fleet f --sig s --host h",
        2,
        ("--host and --rollout go with --manifest",),
    ),
    ("to verify a file that is not there", "verify --fleet /nowhere --sig /nowhere", 2, ("can't read /nowhere",)),
    ("to verify a folder", "verify --fleet / --sig /", 2, ("not a regular file",)),
    ("to run a probe that is not declared", "probe nginx", 2, ("no probe 'nginx' is declared",)),
    ("to audit a file that is not there", "history --verify /nowhere", 2, ("can't read /nowhere",)),
    ("a demo with a fault of its own", "demo --fault fire", 2, ("invalid choice: 'fire'",)),
    ("a demo with many agents, in words", "demo --agents many", 2, ("'many' is not a number from 1 to 500",)),
    ("to renew without a certificate", "renew --client-cert /nowhere/c", 1, ("there is no certificate", "enroll")),
    ("to renew by a CA that is none", "renew --force --ca-cert /dev/null", 78, ("it is not a regular file",)),
    ("to renew by a CA that is not there", "renew --force --ca-cert /nowhere", 78, ("can't read ca_cert /nowhere",)),
    ("to renew with nobody there", "renew --force", 69, ("Connection refused", "`nixfleet-agent check` looks for")),
    ("to enroll without a token", "enroll --client-cert /nowhere/c", 78, ("no bootstrap token",)),
    ("to enroll again without a token", "enroll --force", 78, ("no bootstrap token",)),
    (
        "to enroll without a key",
        "enroll --force --bootstrap-token-file /t --client-key /nowhere",
        78,
        ("ssh-keygen -A",),
    ),
    ("no configuration", "status --config /nowhere", 78, ("can't read the configuration /nowhere",)),
    ("a folder as configuration", "status --config /", 78, ("not a regular file",)),
    ("a trust file that is not there", "verify --fleet f --sig s --trust-file /nowhere", 78, ("can't read /nowhere",)),
    ("a state directory in a file", "run --state-dir /dev/null/state", 78, ("state directory",)),
    ("to support into a folder that is not there", "support --output /nowhere/x", 1, ("/nowhere",)),
]


class Mistakes(HostCase):
    def test_every_mistake_in_a_configuration(self) -> None:
        path = self.folder / "bad-agent.toml"
        for mistake in MISTAKES:
            with self.subTest(mistake.name):
                content = GOOD + mistake.toml if mistake.whole is None else mistake.whole
                path.write_bytes(content.encode() if isinstance(content, str) else content)
                flags = [f"--{key.replace('_', '-')}={value}" for key, value in mistake.flags.items()]
                ran = self.bare("status", "--config", str(path), *flags, environ=mistake.environ)
                self.fails(78, *mistake.says, ran=ran)
                self.assertEqual(ran.out, "")

    def test_every_misuse_of_a_command(self) -> None:
        for name, arguments, code, says in MISUSE:
            with self.subTest(name):
                words = arguments.split()
                ran = self.bare(*words) if "--config" in words else self.call(*words)
                self.fails(code, *says, ran=ran)

    def test_check_lists_all_problems_of_a_configuration(self) -> None:
        self.settings["zzz"] = "1"
        self.settings["yyy"] = "2"
        ran = self.call("check")
        self.assertEqual(ran.code, 1)
        self.assertEqual(len(ran.out.splitlines()), 2)
        self.assertIn("'zzz'", ran.out)
        self.assertIn("'yyy'", ran.out)

    def test_a_hostile_argument_reaches_the_terminal_escaped(self) -> None:
        for words in (
            ["\x1b[2J"],
            ["history", "\x1b[2J\n"],
            ["queue", "show", "\x1b"],
            ["--machine-id=\x1b[2J", "status"],
        ):
            with self.subTest(words):
                ran = self.bare(*words[:1]) if len(words) == 1 else self.call(*words)
                self.assertNotEqual(ran.code, 0)
                self.assertTrue(ran.err.removesuffix("\n").isprintable(), ran.err)

    def test_a_traceback_only_with_debug(self) -> None:
        self.assertNotIn("Traceback", self.call("rollback", "retry").err)
        self.assertIn("Traceback", self.call("rollback", "retry", "--debug").err)

    def test_a_fault_of_ours_is_one_line_and_says_how_to_see_more(self) -> None:
        with mock.patch("nixfleet_agent.operator.hold.HoldStore.release", side_effect=ZeroDivisionError("oops")):
            self.fails(70, "internal error: ZeroDivisionError: oops", "--debug", ran=self.call("release"))

    def test_somebody_else_than_root(self) -> None:
        with mock.patch(
            "nixfleet_agent.operator.hold.HoldStore.release", side_effect=PermissionError(13, "Permission denied", "/x")
        ):
            self.fails(1, "Permission denied: /x: run it as root", ran=self.call("release"))
        refused = OSError(13, "Permission denied", "/x")
        with mock.patch("nixfleet_agent.durable.boundary", side_effect=refused):
            self.fails(1, "hold.json: Permission denied: run it as root", ran=self.call("hold", "--reason", "x"))


class Frame(HostCase):
    def test_version(self) -> None:
        self.assertEqual(self.bare("--version").out, f"nixfleet-agent {__version__}\n")

    def test_help_names_every_command_and_every_command_helps(self) -> None:
        overview = self.bare("--help")
        self.assertEqual(overview.code, 0)
        for command in COMMANDS:
            with self.subTest(command):
                self.assertRegex(overview.out, rf"(?m)^  {command} ")
                helped = self.bare(command, "--help")
                self.assertEqual((helped.code, helped.err), (0, ""))
                for flag in ("--config", "--json", "--debug"):
                    self.assertIn(flag, helped.out)

    def test_to_ask_a_running_agent_takes_none_of_its_weight(self) -> None:
        """`status` is what one types ten times in a row: it answers before what only the daemon needs is loaded."""
        code = "import sys, nixfleet_agent.commands.status, nixfleet_agent.config.load; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for heavy in ("cryptography", "OpenSSL", "requests", "schedule", "nixfleet_agent.state_machine"):
            self.assertNotIn(heavy, loaded)

    def test_nothing_at_all_is_a_usage_error(self) -> None:
        ran = self.bare()
        self.assertEqual(ran.code, 2)
        self.assertIn("usage:", ran.err)

    def test_the_common_flags_are_taken_before_and_after_command_and_action(self) -> None:
        config = str(self.write_config())
        for words in (
            ["--config", config, "--json", "queue", "list"],
            ["queue", "--config", config, "--json", "list"],
            ["queue", "--json", "list", "--config", config],
            ["queue", "list", "--config", config, "--json", "--debug"],
            ["--machine-id=other", f"--config={config}", "queue", "list", "--json"],
        ):
            with self.subTest(words):
                ran = self.bare(*words)
                self.assertEqual((ran.code, ran.out), (0, "[]\n"), ran)

    def test_flags_alone_mean_run_as_the_unit_files_of_the_rust_agent_have_it(self) -> None:
        flags = ["--control-plane-url", "https://cp", "--machine-id", "run", "--trust-file=/t", "--state-dir", "/s"]
        self.assertEqual(split_command(flags), ("run", flags))
        self.assertEqual(split_command(["--config", "f", "status", "--json"]), ("status", ["--config", "f", "--json"]))
        self.assertEqual(split_command([]), (None, []))
        self.assertEqual(split_command(["--debug", "--help"]), (None, []))

    def test_the_daemon_lists_the_flags_of_the_configuration(self) -> None:
        helped = self.bare("run", "--help").out
        for key in CONFIG_FLAGS:
            self.assertIn("--" + key.replace("_", "-"), helped)

    def test_colour_only_on_a_terminal_that_wants_it(self) -> None:
        config = str(self.write_config())
        command = [sys.executable, "-m", "nixfleet_agent", "check", "--local", "--config", config]
        plain = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]})
        self.assertNotIn("\x1b", plain.stdout)
        for variables, coloured in (
            ({"TERM": "xterm"}, True),
            ({"TERM": "xterm", "NO_COLOR": "1"}, False),
            ({"TERM": "dumb"}, False),
        ):
            with self.subTest(variables):
                self.assertEqual("\x1b[32m" in self._on_terminal(command, variables), coloured)

    @staticmethod
    def _on_terminal(command: list[str], variables: dict[str, str]) -> str:
        ours, theirs = pty.openpty()
        child = subprocess.Popen(command, stdout=theirs, env={"PATH": os.environ["PATH"], **variables})
        os.close(theirs)
        shown = b""
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            while True:
                try:
                    part = terminal.read(4096)
                except OSError:
                    break  # Linux says EIO when the other end is closed
                if not part:
                    break
                shown += part
        child.wait()
        return shown.decode()

    def test_a_reader_that_goes_away_early_is_no_fault(self) -> None:
        config = str(self.write_config())
        command = f"{sys.executable} -m nixfleet_agent check --print-config --config {config} | head -n 1"
        for _ in range(3):
            ran = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
            self.assertEqual(ran.stderr, "")
            self.assertTrue(ran.stdout)

    def test_a_full_disk_behind_stdout_is_one_line(self) -> None:
        config = str(self.write_config())
        for words in (["--version"], ["--help"], ["check", "--print-config", "--config", config]):
            for unbuffered in ("", "1"):
                with self.subTest(words, unbuffered=unbuffered), Path("/dev/full").open("w") as full:
                    ran = self._process(words, stdout=full, environ={"PYTHONUNBUFFERED": unbuffered})
                    said = "nixfleet-agent: can't write to stdout: No space left on device\n"
                    self.assertEqual((ran.returncode, ran.stderr), (1, said))

    def test_a_closed_stdout_is_nothing_to_write_to(self) -> None:
        config = str(self.write_config())
        for words in (["--version"], ["check", "--print-config"], ["hold", "--reason", "x", "--json"]):
            with self.subTest(words):
                line = shlex.join([sys.executable, "-m", "nixfleet_agent", *words, "--config", config])
                ran = subprocess.run(["/bin/sh", "-c", f"{line} >&-"], capture_output=True, text=True, check=False)
                self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        self.assertTrue((self.state / "hold.json").exists())

    def test_with_stderr_closed_an_error_does_not_get_into_what_a_script_reads(self) -> None:
        line = shlex.join([sys.executable, "-m", "nixfleet_agent", "frobnicate"])
        ran = subprocess.run(["/bin/sh", "-c", f"{line} 2>&-"], capture_output=True, text=True, check=False)
        self.assertEqual((ran.returncode, ran.stdout), (2, ""))

    def test_a_letter_that_the_terminal_does_not_have_is_escaped(self) -> None:
        self.call("hold", "--reason", "für Kim")
        words = ["status", "--config", str(self.write_config())]
        ran = self._process(words, stdout=subprocess.PIPE, environ={"PYTHONIOENCODING": "ascii"})
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertIn("f\\xfcr Kim", ran.stdout)

    @staticmethod
    def _process(words: list[str], *, stdout: Any, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nixfleet_agent", *words]
        variables = {"PATH": os.environ["PATH"], **environ}
        return subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, env=variables, timeout=60
        )

    def test_the_help_of_an_action_says_what_it_does(self) -> None:
        for words, says in (
            (("queue", "drop"), "Give events up"),
            (("quarantine", "clear"), "Let a closure be tried again"),
            (("rollback", "give-up"), "Leave the host as it is"),
        ):
            self.assertIn(says, self.bare(*words, "--help").out)

    def test_the_help_shows_how_a_command_is_typed(self) -> None:
        for command in COMMANDS:
            with self.subTest(command):
                self.assertRegex(self.bare(command, "--help").out, rf"(?m)^examples:\n  nixfleet-agent {command}")

    def test_version_and_help_load_nothing_heavy(self) -> None:
        heavy = {"requests", "OpenSSL", "cryptography", "jsonschema", "prometheus_client", "ssl", "logging", "tomllib"}
        for flag in ("--version", "--help"):
            code = (
                "import sys; before = set(sys.modules); from nixfleet_agent.cli import main; main([sys.argv[1]]); "
                "print('LOADED', *sorted(set(sys.modules) - before), file=sys.stderr)"
            )
            ran = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, check=True)
            loaded = set(re.split(r"\s+", ran.stderr))
            self.assertIn("LOADED", loaded)
            self.assertEqual(loaded & heavy, set())


if __name__ == "__main__":
    unittest.main()
