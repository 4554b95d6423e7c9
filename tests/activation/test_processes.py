"""Children of the pipeline: always ended, always reaped, never in the way."""

from __future__ import annotations

import os
import unittest

from nixfleet_agent.activation import processes
from nixfleet_agent.activation.errors import CommandError, PhaseInterrupted
from nixfleet_agent.activation.host import group_members
from nixfleet_agent.threads.clock import SystemClock
from tests.activation.case import until


class RunTest(unittest.TestCase):
    def setUp(self) -> None:
        self.pids: list[int] = []

    def run_shell(self, script: str, timeout: float = 10.0, after: int | None = None) -> processes.Finished:
        turns = 0

        def check() -> None:
            nonlocal turns
            turns += 1
            if after is not None and turns > after:
                raise PhaseInterrupted("shutdown")

        return processes.run(
            ["/bin/sh", "-c", script],
            os.environ,
            clock=SystemClock(),
            timeout=timeout,
            check=check,
            on_start=self.pids.append,
        )

    def assert_reaped(self) -> None:
        with self.assertRaises(ChildProcessError):
            os.waitpid(self.pids[0], os.WNOHANG)
        until(lambda: not group_members(self.pids[0]), "the end of the child's whole group")

    def test_output_and_exit_code_come_back(self) -> None:
        done = self.run_shell("echo out; echo err >&2; exit 7")
        self.assertEqual(done, processes.Finished(7, b"out\n", b"err\n"))
        self.assert_reaped()

    def test_only_the_end_of_a_flood_is_kept(self) -> None:
        done = self.run_shell("head -c 10000000 /dev/zero >&2; echo end >&2")
        self.assertEqual((len(done.stderr), done.stderr[-4:]), (processes.KEPT_BYTES, b"end\n"))

    def test_an_answer_is_whole_or_an_error(self) -> None:
        def read(script: str) -> processes.Finished:
            command = ["/bin/sh", "-c", script]
            return processes.read(
                command, os.environ, clock=SystemClock(), timeout=10, check=lambda: None, limit=200_000
            )

        self.assertEqual(len(read("head -c 200000 /dev/zero").stdout), 200_000)
        with self.assertRaisesRegex(CommandError, "answered with more than 200000 bytes"):
            read("head -c 200001 /dev/zero")

    def test_the_deadline_ends_the_whole_group(self) -> None:
        with self.assertRaisesRegex(CommandError, "did not end within 0.2 s"):
            self.run_shell("sleep 60 & sleep 60", timeout=0.2)
        self.assert_reaped()

    def test_a_child_that_ignores_the_friendly_signal_is_ended_too(self) -> None:
        with self.assertRaises(PhaseInterrupted):
            self.run_shell("trap '' TERM; while :; do sleep 1; done", after=1)
        self.assert_reaped()

    def test_a_child_that_closes_its_output_is_still_followed(self) -> None:
        with self.assertRaises(CommandError):
            self.run_shell("exec >&- 2>&-; sleep 60", timeout=0.3)
        self.assert_reaped()
        self.assertEqual(self.run_shell("exec >&- 2>&-; sleep 0.2; exit 3").returncode, 3)

    def test_what_holds_the_output_open_does_not_hold_us(self) -> None:
        done = self.run_shell("sleep 60 & echo $!")
        os.kill(int(done.stdout), 9)
        self.assertEqual(done.returncode, 0)

    def test_a_missing_program_is_named(self) -> None:
        with self.assertRaisesRegex(CommandError, "can't run /no/such: No such file or directory"):
            processes.run(["/no/such"], {}, clock=SystemClock(), timeout=1, check=lambda: None)


if __name__ == "__main__":
    unittest.main()
