"""`check --offline`: judges a configuration and its files wherever they lie, and touches nothing of the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unittest

from tests.commands.host_case import HostCase, Ran
from tests.support.tls import DAY, now

#: Runs the command line with every access reported that Python's audit events know (PEP 578).
WATCHED = """
import sys
from nixfleet_agent.cli import main

def watch(event, arguments):
    if event.partition(".")[0] in ("socket", "subprocess", "os", "shutil", "open", "tempfile"):
        print(event, *map(repr, arguments), file=sys.stderr)

sys.addaudithook(watch)
sys.exit(main())
"""
#: Far above what a slow machine needs for the largest files (1.3 s where this was written).
AT_MOST_SECS = 30.0


class CheckOffline(HostCase):
    def check(self, *extra: str) -> Ran:
        return self.call("check", "--offline", *extra)

    def health(self, text: str) -> None:
        (self.folder / "health-checks.json").write_text(text)

    def whats(self, *extra: str) -> dict[str, str]:
        """Level of each finding by what was looked at."""
        return {item["what"]: item["level"] for item in self.check("--json", *extra).json}

    def test_a_machine_that_is_no_host_judges_a_configuration(self) -> None:
        self.settings = {"control_plane_url": "https://cp.example:8443", "machine_id": "web-01"}
        self.settings |= dict.fromkeys(("health_checks_file", "trust_file"), self.folder / "none.json")
        self.tables = ""
        ran = self.check("--strict")
        self.assertEqual((ran.code, ran.err), (0, ""), ran.out)
        self.assertEqual(self.whats(), {"program": "ok", "configuration": "ok", "health checks": "ok"})

    def test_what_this_host_is_like_does_not_refuse_a_good_release(self) -> None:
        self.authority.write_client(
            self.certificate, self.key, "other", not_before=now() - 2 * DAY, not_after=now() - DAY
        )
        (self.folder / "key").chmod(0o644)
        (self.folder / "current").unlink()
        self.trust.chmod(0o666)
        path = self.write_config()
        path.chmod(0o666)
        ran = self.bare("check", "--offline", "--config", str(path))
        self.assertEqual((ran.code, ran.err), (0, ""), ran.out)

    def test_each_mistake_of_the_configuration_is_a_line_and_exit_code_1(self) -> None:
        self.settings |= {"control_plane_url": "http://cp", "machine_di": "x", "renewal_threshold_fraction": 1.5}
        path = self.write_config()
        path.write_text(path.read_text().replace('"1.5"', "1.5"))
        ran = self.bare("check", "--offline", "--config", str(path))
        self.assertEqual((ran.code, ran.err), (1, ""))
        lines = ran.out.splitlines()
        self.assertTrue(all(line.startswith("fail  configuration ") for line in lines), ran.out)
        for word in ("machine_di", "less than 1, is 1.5"):
            self.assertEqual(len([line for line in lines if word in line]), 1, ran.out)
        path.write_text('control_plane_url = "http://cp"\nmachine_id = "web-01"\n')
        ran = self.bare("check", "--offline", "--config", str(path))
        self.assertEqual(ran.code, 1)
        self.assertIn("uses http, which is not safe: write https://HOST:PORT", ran.out)

    def test_a_file_that_is_not_there_is_a_mistake_of_the_call(self) -> None:
        ran = self.bare("check", "--offline", "--config", str(self.folder / "gone.toml"))
        self.assertEqual((ran.code, ran.err), (1, ""))
        self.assertIn("No such file", ran.out)

    def test_a_probe_that_can_only_fail_fails(self) -> None:
        for declaration in ('{"a": {"kind": "htpp"}}', '{"a": {"kind": "tcp", "port": 0}}', "["):
            with self.subTest(declaration):
                self.health(declaration)
                ran = self.check()
                self.assertEqual(ran.code, 1)
                self.assertIn("fail  health checks", ran.out)

    def test_an_unknown_word_warns_and_is_strictly_a_failure(self) -> None:
        for declaration in (
            {"kind": "tcp", "port": 1, "prot": 2},
            {"kind": "tcp", "port": 1, "url": "http://x"},
            {"kind": "tcp", "port": 1, "mode": "enforced"},
            {"kind": "evidence", "controls": {"a": {"mode": "obsreve"}}},
            {"kind": "evidence", "controls": {"a": {"reson": "x"}}},
        ):
            with self.subTest(declaration):
                self.health(json.dumps({"a": declaration}))
                self.assertEqual(self.check().code, 0)
                self.assertIn("warn  health checks", self.check().out)
                ran = self.check("--strict")
                self.assertEqual(ran.code, 1, ran.out)
                self.assertIn("fail  health checks", ran.out)

    def test_what_is_only_unusual_passes_strictly(self) -> None:
        self.health('{"a": {"kind": "exec", "command": "true", "intervalSeconds": 1, "timeoutSecs": 60}}')
        ran = self.check("--strict")
        self.assertEqual(ran.code, 0, ran.out)
        self.assertEqual(ran.out.count("warn  health checks"), 3, ran.out)

    def test_a_trust_file_and_a_ca_that_come_along_are_judged(self) -> None:
        self.assertEqual((self.whats()["trust file"], self.whats()["CA"]), ("ok", "ok"))
        self.trust.write_text('{"schemaVersion": 1, "ciReleaseKey": {}}')
        self.ca.write_text("x")
        self.assertEqual((self.whats()["trust file"], self.whats()["CA"]), ("fail", "fail"))
        self.trust.unlink()
        self.ca.unlink()
        self.assertEqual(self.check().code, 0)

    def test_a_program_that_is_not_whole_fails(self) -> None:
        without = "import sys; sys.modules['schedule'] = None\nfrom nixfleet_agent.cli import main\nsys.exit(main())"
        ran = self.run_python(without)
        self.assertEqual(ran.returncode, 1)
        self.assertRegex(ran.stdout, "(?m)^fail  program .*schedule.*install it again$")
        self.assertEqual(ran.stderr, "")

    def test_only_one_reach_can_be_asked_for(self) -> None:
        self.fails(2, "--local", "--offline", ran=self.check("--local"))

    def run_python(self, program: str, **options: object) -> subprocess.CompletedProcess[str]:
        """`check --offline` in a process of its own, which ends in bounded time."""
        arguments = ["check", "--offline", "--config", str(self.write_config())]
        command = [sys.executable, "-B", "-c", program, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=AT_MOST_SECS, env={"PATH": os.environ["PATH"]}
        )

    def test_it_calls_nobody_starts_nothing_writes_nothing_and_leaves_state_and_keys_alone(self) -> None:
        ran = self.run_python(WATCHED)
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)
        opened = [line for line in ran.stderr.splitlines() if line.startswith("open ")]
        self.assertTrue(any("agent.toml" in line for line in opened), "the hook sees nothing")
        for line in ran.stderr.splitlines():
            event, _, arguments = line.partition(" ")
            with self.subTest(line):
                if event == "socket.bind":
                    # The HTTP library, when it is imported, asks the kernel whether it knows IPv6 at all.
                    self.assertIn("('::1', 0)", arguments)
                    continue
                self.assertIn(event, ("open", "os.listdir", "os.scandir", "socket.__new__"))
                for private in (self.state, self.folder / "key", self.certificate):
                    self.assertNotIn(f"'{private}", arguments)
                if event == "open":
                    mode, flags = arguments.rsplit(" ", 2)[1:]
                    self.assertIn(mode, ("'r'", "'rb'", "None"))
                    self.assertEqual(int(flags) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT), 0)

    def test_a_pipe_in_the_place_of_any_file_is_not_waited_for(self) -> None:
        for key in ("trust_file", "ca_cert", "health_checks_file"):
            with self.subTest(key):
                pipe = self.folder / f"{key}.pipe"
                os.mkfifo(pipe)
                before, self.settings[key] = self.settings[key], pipe
                ran = self.run_python("import sys; from nixfleet_agent.cli import main; sys.exit(main())")
                self.assertEqual(ran.returncode, 1, ran.stdout)
                self.assertIn("not a regular file", ran.stdout)
                self.settings[key] = before

    def test_the_largest_files_take_bounded_time(self) -> None:
        for name, text in LARGEST.items():
            with self.subTest(name):
                self.health(text)
                ran = self.run_python("import sys; from nixfleet_agent.cli import main; sys.exit(main())")
                self.assertIn(ran.returncode, (0, 1), ran.stderr)
                self.assertNotIn("Traceback", ran.stderr)

    def test_the_largest_configuration_takes_bounded_time(self) -> None:
        for text in ("a." * 500_000 + "b = 1", "a = " + "[" * 1_000_000, ("a." * 499 + "b = 1\n") * 1040):
            with self.subTest(text[:20]):
                self.tables = text
                ran = self.run_python("import sys; from nixfleet_agent.cli import main; sys.exit(main())")
                self.assertEqual((ran.returncode, ran.stderr), (1, ""))
                self.assertIn("fail  configuration", ran.stdout)


def _largest() -> dict[str, str]:
    words = {f"k{number:05}": None for number in range(50_000)}
    probe = {"kind": "tcp", "port": 1}
    return {
        "many unknown keys": json.dumps({"a": probe | words}),
        "a long unknown key": json.dumps({"a": probe | {"k" * 1_000_000: 1}}),
        "a long unknown mode": json.dumps({"a": probe | {"mode": "enforc" * 160_000}}),
        "many probes": json.dumps({f"p{number}": {**probe, "prot": number} for number in range(1000)}),
        "deep": '{"a":' * 100_000,
    }


LARGEST = _largest()


if __name__ == "__main__":
    unittest.main()
