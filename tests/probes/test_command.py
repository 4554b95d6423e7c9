"""The exec runner with real children that do what children should not."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
import threading
import time
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from nixfleet_agent.probes.declarations import ExecDecl
from nixfleet_agent.probes.fields import LONGEST_SECS
from nixfleet_agent.probes.runners import RunnerContext, RunnerOutcome, command, run
from tests.probes.support import ProbeCase, children, context, descriptors, stop_when


def probe(*argv: str, timeout: float = 5.0, ctx: RunnerContext | None = None, **fields: Any) -> RunnerOutcome:
    return run(ExecDecl(name="p", command=argv, timeout=timeout, **fields), ctx or context())


def shell(script: str, **options: Any) -> RunnerOutcome:
    return probe("/bin/sh", "-c", script, **options)


def running(pid: int) -> bool:
    """Not gone and not a zombie that its new parent has yet to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class CommandCase(ProbeCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.before = children()
        self.addCleanup(lambda: self.assertEqual(children(), self.before, "a child is left"))

    def pid_in(self, name: str) -> int:
        """The process id that a child wrote; waits until it is there."""
        path, deadline = self.folder / name, time.monotonic() + 30
        while not (path.exists() and path.read_text().endswith("\n")):
            self.assertLess(time.monotonic(), deadline, f"{name} was never written")
            threading.Event().wait(0.005)
        return int(path.read_text())

    def assert_gone(self, pid: int) -> None:
        deadline = time.monotonic() + 30
        while running(pid) and time.monotonic() < deadline:
            threading.Event().wait(0.005)
        self.assertFalse(running(pid), f"process {pid} outlived its probe")


class ExitCodes(CommandCase):
    def test_the_expected_code_passes_and_any_other_fails(self) -> None:
        self.assertTrue(probe("/bin/true").passed)
        self.assertTrue(shell("exit 3", expect_exit_code=3).passed)
        self.assertEqual(shell("exit 4").failure_reason, "exit code 4, expected exit code 0")
        self.assertEqual(probe("/bin/true", expect_exit_code=1).failure_reason, "exit code 0, expected exit code 1")

    def test_an_end_by_signal_fails_whatever_code_is_expected(self) -> None:
        outcome = shell("kill -KILL $$", expect_exit_code=137)
        self.assertEqual(outcome.failure_reason, "ended by signal SIGKILL, expected exit code 137")

    def test_the_reason_holds_the_end_of_the_output_on_one_line(self) -> None:
        outcome = shell("echo first; echo unit failed >&2; printf 'a\\tb\\033[31m'; exit 1")
        self.assertEqual(outcome.failure_reason, "exit code 1, expected exit code 0: first unit failed a b\\x1b[31m")

    def test_what_can_not_be_started_fails_with_the_systems_words(self) -> None:
        plain = self.folder / "plain"
        plain.write_text("x", encoding="ascii")
        broken = self.folder / "broken"
        broken.write_text("no program at all", encoding="ascii")
        broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
        cases = {
            "/nonexistent/program": "No such file or directory",
            str(plain): "Permission denied",
            str(broken): "Exec format error",
            str(self.folder): "Permission denied",
        }
        for program, words in cases.items():
            self.assertEqual(probe(program).failure_reason, f"can't run {program}: {words}")


class Surroundings(CommandCase):
    def test_no_shell_runs(self) -> None:
        outcome = probe("/bin/echo", "$HOME;", "exit", "7", expect_exit_code=1)
        self.assertIn("$HOME; exit 7", outcome.failure_reason or "")

    def test_there_is_no_input(self) -> None:
        own, (reading, writing) = os.dup(0), os.pipe()
        os.write(writing, b"what was meant for the agent")
        os.close(writing)
        os.dup2(reading, 0)
        os.close(reading)
        try:
            outcome = probe("/bin/cat", expect_exit_code=1)
        finally:
            os.dup2(own, 0)
            os.close(own)
        self.assertEqual(outcome.failure_reason, "exit code 0, expected exit code 1")

    def test_it_runs_at_the_root(self) -> None:
        self.assertEqual(shell("pwd; exit 1").failure_reason, "exit code 1, expected exit code 0: /")

    def test_it_leads_a_session_of_its_own(self) -> None:
        outcome = shell("echo $$; cut -d' ' -f5,6 /proc/$$/stat; exit 1")
        pid, group, session = (outcome.failure_reason or "").partition(": ")[2].split()
        self.assertEqual((group, session), (pid, pid))
        self.assertNotEqual(int(group), os.getpgrp())

    def test_it_can_not_speak_for_the_agent_to_the_service_manager(self) -> None:
        private = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "LISTEN_FDS": "1", "NIXFLEET_X": "s", "KEPT": "1"}
        with mock.patch.dict(os.environ, private):
            outcome = probe("/usr/bin/env", expect_exit_code=1)
        self.assertIn("KEPT=1", outcome.failure_reason or "")
        for name in private.keys() - {"KEPT"}:
            self.assertNotIn(name, outcome.failure_reason or "")

    def test_it_inherits_no_descriptor(self) -> None:
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        outcome = shell("cd /proc/self/fd && echo *; exit 1")
        numbers = set((outcome.failure_reason or "").partition(": ")[2].split())
        self.assertNotIn(str(writing), numbers)
        self.assertLessEqual(len(numbers), 4)


class TimeLimit(CommandCase):
    def test_a_child_that_ignores_sigterm_is_killed_in_time(self) -> None:
        began = time.monotonic()
        outcome = shell(f"trap '' TERM INT HUP; echo $$ > {self.folder}/pid; while :; do sleep 1; done", timeout=1)
        self.assert_quick(began, 2.0)
        self.assertIn("no end within 1 s: killed", outcome.failure_reason or "")
        self.assert_gone(self.pid_in("pid"))

    def test_the_longest_time_limit_can_be_waited_for(self) -> None:
        self.assertTrue(shell("sleep 0.1", timeout=LONGEST_SECS).passed)

    def test_its_whole_group_goes_with_it(self) -> None:
        script = f"sh -c 'trap \"\" TERM; echo $$ > {self.folder}/grandchild; sleep 60' & sleep 60"
        outcome = shell(script, timeout=1)
        self.assertIn("no end within", outcome.failure_reason or "")
        self.assert_gone(self.pid_in("grandchild"))

    def test_what_it_leaves_running_when_it_ends_is_killed_too(self) -> None:
        began = time.monotonic()
        script = f"sh -c 'echo $$ > {self.folder}/left; exec sleep 60' & while [ ! -s {self.folder}/left ]; do :; done"
        self.assertTrue(shell(script).passed)
        self.assert_quick(began, 2.0)
        self.assert_gone(self.pid_in("left"))

    def test_a_stopped_child_is_killed_too(self) -> None:
        outcome = shell("kill -STOP $$", timeout=0.3)
        self.assertIn("no end within 0.3 s", outcome.failure_reason or "")

    def test_a_daemon_that_keeps_the_output_open_delays_nothing(self) -> None:
        began = time.monotonic()
        self.assertTrue(shell(f"setsid sh -c 'echo $$ > {self.folder}/daemon; sleep 20' & sleep 0.1").passed)
        self.assert_quick(began, 2.0)
        daemon = self.pid_in("daemon")
        self.assertTrue(running(daemon))  # it left the group on purpose, as a service that is started does
        os.killpg(daemon, signal.SIGKILL)

    def test_being_stopped_kills_the_group_at_once(self) -> None:
        ctx = context()
        pid = self.folder / "pid"
        thread = stop_when(lambda: pid.exists() and pid.read_text().endswith("\n"), ctx.cancel)
        began = time.monotonic()
        outcome = shell(f"trap '' TERM; sleep 60 & echo $! > {pid}; wait", timeout=60, ctx=ctx)
        thread.join()
        self.assert_quick(began, 2.0)
        self.assertEqual(outcome.failure_reason, "stopped")
        self.assert_gone(self.pid_in("pid"))

    def test_stopped_before_it_started_it_does_nothing(self) -> None:
        ctx = context()
        ctx.cancel.set()
        began = time.monotonic()
        self.assertFalse(probe("/bin/sleep", "60", timeout=60, ctx=ctx).passed)
        self.assert_quick(began, 1.0)

    def test_without_a_kernel_that_reports_ends_it_is_asked(self) -> None:
        with mock.patch("os.pidfd_open", side_effect=OSError(38, "Function not implemented")):
            self.assertTrue(shell("sleep 0.1").passed)
            self.assertIn("no end within", shell("sleep 60", timeout=0.2).failure_reason or "")

    def test_a_child_that_even_a_kill_does_not_end_is_kept_until_it_does(self) -> None:
        ctx = context()
        stuck = mock.patch.object(command._Child, "kill_group", lambda child: None)
        with stuck, mock.patch.object(command, "_KILL_SECS", 0.05):
            outcome = probe("/bin/sleep", "0.4", timeout=0.1, ctx=ctx)
        self.assertIn("stuck in the kernel", outcome.failure_reason or "")
        self.assertEqual(ctx.unreaped.sweep(), 1)
        deadline = time.monotonic() + 30
        while ctx.unreaped.sweep() and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        self.assertEqual(ctx.unreaped.sweep(), 0)


class Output(CommandCase):
    def test_a_flood_fills_no_memory_and_burns_no_core(self) -> None:
        import tracemalloc

        tracemalloc.start()
        try:
            burnt = time.process_time()
            outcome = probe("/usr/bin/yes", "x" * 100, timeout=1.0)
            self.assertLess(time.process_time() - burnt, 0.3)
            self.assertLess(tracemalloc.get_traced_memory()[1], 2_000_000)
        finally:
            tracemalloc.stop()
        self.assertIn("no end within 1 s: killed: ", outcome.failure_reason or "")
        self.assertLessEqual(len((outcome.failure_reason or "").encode()), 512 + 14)

    def test_much_output_of_a_good_command_passes(self) -> None:
        self.assertTrue(probe("/usr/bin/head", "-c", "1500000", "/dev/zero").passed)

    def test_a_child_that_closes_its_output_is_still_waited_for(self) -> None:
        self.assertTrue(shell("exec >&- 2>&-; sleep 0.2; exit 5", expect_exit_code=5).passed)

    def test_bytes_that_are_no_text_do_no_harm(self) -> None:
        outcome = shell("printf '\\377\\376\\000x'; exit 1")
        self.assertIn("exit code 1", outcome.failure_reason or "")
        self.assertTrue((outcome.failure_reason or "").isprintable())


class Leaks(CommandCase):
    def test_no_run_leaves_a_descriptor_or_a_child(self) -> None:
        probe("/bin/true")
        before = descriptors()
        for _ in range(10):
            probe("/bin/true")
            probe("/nonexistent")
            shell("sleep 60 & sleep 60", timeout=0.02)
        self.assertEqual(descriptors(), before)


if __name__ == "__main__":
    unittest.main()
