"""The init script with the real agent: start, status, reload, a crash, restart, stop, and a wrong configuration."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.commands.host_case import HostCase
from tests.support.behaviours import Reply, Request

SCRIPT = Path(__file__).resolve().parents[2] / "packaging" / "nixfleet-agent.init"
PATIENCE = 60.0
#: prctl(2): orphans below this process become its children.
SET_CHILD_SUBREAPER = 36


class Init(HostCase):
    def setUp(self) -> None:
        super().setUp()
        self.polled = threading.Semaphore(0)
        server = self.serve()
        server.route("GET", "/v1/agent/dispatch", self.poll)
        self.log_file = self.folder / "agent.log"
        launcher = self.folder / "nixfleet-agent"
        launcher.write_text(f'#!/bin/sh\nexec {sys.executable} -m nixfleet_agent "$@"\n')
        launcher.chmod(0o755)
        self.defaults = self.folder / "defaults"
        self.defaults.write_text(
            f"DAEMON={launcher}\nDAEMON_ARGS='run --config {self.write_config()}'\n"
            f"PIDFILE={self.folder / 'pid'}\nLOGFILE={self.log_file}\nRESPAWN=1\n"
        )
        self.addCleanup(self.script, "stop")

    def poll(self, request: Request) -> Reply:
        self.polled.release()
        return Reply(204)

    def script(self, action: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": os.environ["PATH"], "DEFAULTS": str(self.defaults), "PYTHONPATH": str(SCRIPT.parents[1])}
        return subprocess.run(
            [str(SCRIPT), action], env=environ, capture_output=True, text=True, check=False, timeout=60
        )

    def until(self, true: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            self.assertLess(time.monotonic(), deadline, f"{what}; the log:\n{self.log_text()}")
            time.sleep(0.05)

    def log_text(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def agent_pid(self) -> int:
        return int((self.state / "lock").read_text())

    def test_a_life(self) -> None:
        self.assertEqual(self.script("status").returncode, 3)
        self.assertEqual(self.script("start").returncode, 0)
        self.assertTrue(self.polled.acquire(timeout=PATIENCE), self.log_text())
        self.assertEqual(self.script("status").returncode, 0)
        first = self.agent_pid()

        again = self.script("start")
        self.assertEqual((again.returncode, "already running" in again.stdout), (0, True))
        self.assertEqual(self.agent_pid(), first)

        self.assertEqual(self.script("reload").returncode, 0)
        self.until(lambda: "reloaded certificate" in self.log_text(), "the reload is not in the log")

        os.kill(first, signal.SIGKILL)
        self.until(lambda: self.log_text().count('"message": "started"') == 2, "it was not started again")
        self.assertNotEqual(self.agent_pid(), first)

        second = self.agent_pid()
        self.assertEqual(self.script("restart").returncode, 0)
        self.until(lambda: self.log_text().count('"message": "started"') == 3, "it was not restarted")
        self.assertNotEqual(self.agent_pid(), second)

        began = time.monotonic()
        self.assertEqual(self.script("stop").returncode, 0)
        self.assertLess(time.monotonic() - began, 8.0)
        self.assertEqual(self.script("status").returncode, 3)
        self.assertEqual(len(re.findall(r'"message": "stopped"', self.log_text())), 2)
        self.assertEqual(self.script("stop").returncode, 0, "to stop what does not run is no failure")

    def test_a_first_process_that_reaps_nobody_holds_up_no_stop(self) -> None:
        """As in many a container: what has ended stays in the table of processes for ever."""
        libc = ctypes.CDLL(None, use_errno=True)
        self.assertEqual(libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0)
        self.addCleanup(libc.prctl, SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        self.assertEqual(self.script("start").returncode, 0)
        self.assertTrue(self.polled.acquire(timeout=PATIENCE), self.log_text())
        supervisor = int((self.folder / "pid").read_text())
        began = time.monotonic()
        self.assertEqual(self.script("stop").returncode, 0)
        self.assertLess(time.monotonic() - began, 10.0)
        self.assertEqual(Path(f"/proc/{supervisor}/stat").read_text().split()[2], "Z", "nobody has reaped it")
        self.assertEqual(self.script("status").returncode, 3)
        os.waitpid(supervisor, 0)

    def test_a_wrong_configuration_fails_the_start_and_is_not_tried_again(self) -> None:
        self.settings["zzz"] = "1"
        self.write_config()
        ran = self.script("start")
        self.assertEqual(ran.returncode, 1, ran.stdout)
        self.assertIn(str(self.log_file), ran.stdout + ran.stderr)
        self.assertEqual(self.log_text().count("unknown key 'zzz'"), 1)
        self.assertIn("unknown key 'zzz'", ran.stderr, "the reason is on the terminal too")
        self.assertEqual(self.script("status").returncode, 3)

    def test_a_stranger_to_the_script(self) -> None:
        ran = self.script("frobnicate")
        self.assertEqual(ran.returncode, 2)
        self.assertIn("Usage:", ran.stderr)
