"""The next agent is tried by itself: this very agent as it is, and programs that are no good in every way."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import unittest
from pathlib import Path

from nixfleet_agent.runtime.own_unit import UnitStart
from nixfleet_agent.runtime.successor import Trial, Verdict, environment_of, try_successor
from nixfleet_agent.threads.clock import SystemClock

TOP = Path(__file__).resolve().parent.parent.parent
GOOD_CONFIG = "control_plane_url = 'https://cp.example'\nmachine_id = 'web-01'\nhealth_checks_file = '/none'\n"


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.config = self.folder / "agent.toml"
        self.config.write_text(GOOD_CONFIG)
        self.program = self.folder / "nixfleet-agent"
        self.program.write_text(f'#!/bin/sh\nPYTHONPATH={TOP} exec {sys.executable} -B -m nixfleet_agent "$@"\n')
        self.program.chmod(0o755)

    def script(self, text: str) -> None:
        self.program.write_text(f"#!/bin/sh\n{text}\n")

    def tried(self, *arguments: str, limit: float = 30.0, **fields: object) -> Trial:
        words = arguments or ("run", "--config", str(self.config))
        start = UnitStart((str(self.program), *words), **fields)  # type: ignore[arg-type]
        return try_successor(start, SystemClock(), lambda: None, limit=limit)


class ThisAgent(Case):
    def test_is_good_with_a_good_configuration_however_it_is_given(self) -> None:
        self.assertEqual(self.tried(), Trial(Verdict.GOOD))
        self.assertEqual(self.tried("--config", str(self.config)), Trial(Verdict.GOOD))
        variables = (("CONFIG", str(self.config)),)
        self.assertEqual(self.tried("run", "--config", "${CONFIG}", environment=variables), Trial(Verdict.GOOD))
        file = self.folder / "environment"
        file.write_text(f"# where it is\nNIXFLEET_AGENT_CONFIG='{self.config}'\n")
        self.assertEqual(self.tried("run", files=((file, False),)), Trial(Verdict.GOOD))

    def test_is_bad_with_one_that_it_refuses_and_says_why(self) -> None:
        self.config.write_text(GOOD_CONFIG + "renewal_threshold_fraction = 1.5\n")
        trial = self.tried()
        self.assertIs(trial.verdict, Verdict.BAD)
        self.assertIn("renewal_threshold_fraction", trial.words)
        variables = (("NIXFLEET_AGENT_TYPO", "x"),)
        self.config.write_text(GOOD_CONFIG)
        self.assertIn("NIXFLEET_AGENT_TYPO", self.tried(environment=variables).words)

    def test_is_bad_with_arguments_that_it_does_not_know(self) -> None:
        trial = self.tried("run", "--no-such-flag")
        self.assertIs(trial.verdict, Verdict.BAD)
        self.assertIn("no-such-flag", trial.words)

    def test_sees_nothing_of_the_running_agents_own_settings(self) -> None:
        start = UnitStart((str(self.program), "run", "--config", str(self.config)))
        base = {**os.environ, "NIXFLEET_AGENT_TYPO": "x", "NOTIFY_SOCKET": "/none", "PYTHONHOME": "/none"}
        self.assertEqual(try_successor(start, SystemClock(), lambda: None, base), Trial(Verdict.GOOD))


class OtherPrograms(Case):
    def test_a_missing_one_is_bad(self) -> None:
        self.program.unlink()
        trial = self.tried()
        self.assertEqual((trial.verdict, "can't run" in trial.words), (Verdict.BAD, True))

    def test_one_that_breaks_is_bad_with_its_last_words(self) -> None:
        for code in (1, 70, 78, 127):
            self.script(f"echo 'ImportError: no module named ssl' >&2; exit {code}")
            trial = self.tried()
            self.assertIs(trial.verdict, Verdict.BAD, code)
            self.assertIn("no module named ssl", trial.words)
            self.assertIn(f"exit code {code}", trial.words)
        self.script("kill -s SEGV $$")
        self.assertIn("signal 11", self.tried().words)

    def test_one_that_says_nothing_is_bad_even_when_it_ends_well(self) -> None:
        self.script("exit 0")
        self.assertIs(self.tried().verdict, Verdict.BAD)

    def test_one_that_hangs_is_ended_with_all_that_it_started(self) -> None:
        child = self.folder / "child"
        self.script(f"sleep 300 & echo $! >{child}; trap '' TERM; while :; do sleep 1; done")
        began = time.monotonic()
        trial = self.tried(limit=1.0)
        self.assertLess(time.monotonic() - began, 10)
        self.assertEqual((trial.verdict, "did not end within 1 s" in trial.words), (Verdict.BAD, True))
        stat = Path(f"/proc/{child.read_text().strip()}/stat")
        self.assertTrue(not stat.exists() or stat.read_text().rpartition(") ")[2].startswith("Z"))

    def test_one_that_floods_is_cut(self) -> None:
        self.script("head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 9")
        self.assertLess(len(self.tried().words), 600)

    def test_one_that_is_older_than_the_check_is_not_tried(self) -> None:
        self.script("echo usage >&2; exit 2")
        self.assertIs(self.tried().verdict, Verdict.UNTRIED)
        self.script("""echo '[{"what": "state directory", "level": "fail", "text": "x"}]'; exit 1""")
        self.assertIs(self.tried().verdict, Verdict.UNTRIED)

    def test_a_file_of_variables_that_must_be_there_and_is_not_is_bad(self) -> None:
        missing = self.folder / "missing"
        self.assertEqual(self.tried(files=((missing, True),)), Trial(Verdict.GOOD))
        trial = self.tried(files=((missing, False),))
        self.assertEqual((trial.verdict, str(missing) in trial.words), (Verdict.BAD, True))

    def test_variables_come_as_systemd_reads_them(self) -> None:
        file = self.folder / "environment"
        file.write_text("; no\n#X=1\nA=1 2\nB=\"3 4\"\nC='5'\nLONG=a\\\nb\nno line\nEMPTY=\n")
        start = UnitStart((str(self.program),), (("A", "0"), ("D", "6")), ((file, False),))
        found = environment_of(start, {"PATH": "/bin", "HOME": "/x", "LANG": "C"})
        wanted = {"A": "1 2", "B": "3 4", "C": "5", "D": "6", "LONG": "ab", "EMPTY": "", "PATH": "/bin", "LANG": "C"}
        self.assertEqual(found, wanted)


if __name__ == "__main__":
    unittest.main()
