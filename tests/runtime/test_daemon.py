"""The daemon as a process of its own: its signals, its exit codes, and an end within two seconds whatever waits."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import unittest
import urllib.request
from pathlib import Path
from typing import Any

from nixfleet_agent.runtime.state_dir import LOCK_NAME
from nixfleet_agent.telemetry.status_socket import SOCKET_NAME, ask
from tests.commands.host_case import MACHINE, HostCase
from tests.runtime.harness import until
from tests.support.behaviours import Hang
from tests.support.tls import DAY

TOP = Path(__file__).resolve().parents[2]
#: Every worker of an agent that serves no metrics, and the main thread.
THREADS = {"MainThread", "reducer", "activation", "advance_ticker", "cert_renewal", "heartbeat", "longpoll"} | {
    "hooks",
    "manifest_poll",
    "reboot",
    "outbound",
    "probe",
}
#: An open long poll lasts longer. That two seconds are enough is measured by tests.faults.
STOP_SECS = 10.0
#: A defect put into the agent before it starts.
_REDUCER_DIES = """
from nixfleet_agent.runtime.rollout.reducer import Reducer
def die(self, tick): raise KeyError("a defect of the reducer")
Reducer._on_tick = die
"""
_TICKER_DIES_ONCE = """
from nixfleet_agent.runtime.workers.advance_ticker import AdvanceTicker
real, died = AdvanceTicker.run, []
def run(self):
    if not died:
        died.append(True)
        raise KeyError("a defect of the ticker")
    real(self)
AdvanceTicker.run = run
"""
_MAIN_DIES = """
from nixfleet_agent.runtime import daemon
def die(self): raise KeyError("a defect of the main thread")
daemon.MainLoop._look_around = die
"""
_A_PROBE_HANGS = """
import threading
threading.Thread(target=threading.Event().wait, name="probe db").start()
"""
_IGNORES_CHILDREN = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
_RUN = "import sys\n{defect}\nfrom nixfleet_agent.cli import main\nsys.exit(main(['run', '--config', sys.argv[1]]))"


class Case(HostCase):
    def start(self, defect: str = "", config_mode: int | None = None) -> subprocess.Popen[bytes]:
        """The agent of this host; its log is a file, for a pipe that nobody empties would stop it."""
        self.tables += '[logging]\nformat = "json"\n' if "[logging]" not in self.tables else ""
        self.log_file = self.folder / f"log-{len(list(self.folder.glob('log-*')))}"
        config = self.write_config()
        if config_mode is not None:
            config.chmod(config_mode)
        command = [sys.executable, "-c", _RUN.format(defect=defect), str(config)]
        with self.log_file.open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=TOP)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def started(self) -> subprocess.Popen[bytes]:
        process = self.start()
        self.until_logged("started")
        return process

    def lines(self) -> list[dict[str, Any]]:
        """The complete lines of the log; what is no JSON (a last word on stderr) as a message."""
        found = []
        for line in self.log_file.read_text().split("\n")[:-1]:
            try:
                found.append(json.loads(line))
            except ValueError:
                found.append({"message": line})
        return found

    def until_logged(self, text: str) -> None:
        until(lambda: any(str(line.get("message")).startswith(text) for line in self.lines()), f"{text!r} in the log")

    def ended(self, process: subprocess.Popen[bytes], within: float = 15.0) -> int:
        try:
            return process.wait(within)
        except subprocess.TimeoutExpired:
            self.fail(f"not ended within {within:g} s: {self.log_file.read_text()[-2000:]}")

    def terminated(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
        """Tell it to stop: it ends with 0, in time."""
        began = time.monotonic()
        process.send_signal(number)
        self.assertEqual(self.ended(process), 0, self.log_file.read_text()[-2000:])
        self.assertLess(time.monotonic() - began, STOP_SECS)


class Scraped(Case):
    def test_an_agent_with_metrics_serves_and_writes_them(self) -> None:
        """The whole program, for what it leaves out of its memory must not be missing here."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        textfile = self.folder / "agent.prom"
        self.tables += f'[metrics]\nlisten = "127.0.0.1:{port}"\ntextfile = "{textfile}"\n'
        process = self.started()
        until(textfile.exists, "the textfile")
        self.assertIn("nixfleet_agent_build_info", textfile.read_text())
        for path, says in (("/metrics", "nixfleet_agent_build_info"), ("/healthz", "ok")):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                self.assertIn(says, answer.read().decode())
        self.terminated(process)


class Children(Case):
    def test_their_ends_are_seen_where_a_parent_ignored_them(self) -> None:
        """Otherwise every child, a failed switch too, would seem to have ended with code 0."""
        process = self.start(_IGNORES_CHILDREN)
        self.until_logged("started")
        (ignored,) = re.findall(r"(?m)^SigIgn:\t(.*)$", Path(f"/proc/{process.pid}/status").read_text())
        self.assertEqual(int(ignored, 16) >> (signal.SIGCHLD - 1) & 1, 0)
        self.terminated(process)


class Ends(Case):
    def test_with_0_and_in_time_while_the_control_plane_is_away(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number):
                self.terminated(self.started(), number)
                self.assertEqual(self.lines()[-1]["message"], "stopped")

    def test_with_0_and_in_time_while_a_long_poll_is_open(self) -> None:
        self.authority.write_client(self.certificate, self.key, MACHINE, not_after=self.now + 60 * DAY)
        server = self.serve()
        server.route("GET", "/v1/agent/dispatch", Hang())
        server.route("POST", "/v1/agent/heartbeat", Hang())
        process = self.start()
        asked = {"/v1/agent/dispatch", "/v1/agent/heartbeat"}
        until(lambda: asked <= {request.path.partition("?")[0] for request in server.requests}, "both requests")
        self.terminated(process)

    def test_with_0_and_in_time_while_a_thread_below_a_worker_hangs(self) -> None:
        """One of a probe set that was stopped long ago: no worker knows it any more."""
        process = self.start(_A_PROBE_HANGS)
        self.until_logged("started")
        self.terminated(process)
        self.assertEqual(self.lines()[-1]["message"], "left behind: probe db")

    def test_with_75_where_another_agent_has_the_state_directory_and_leaves_that_alone(self) -> None:
        first = self.started()
        second = self.start()
        self.assertEqual(self.ended(second), 75)
        self.assertIn(f"another agent (pid {first.pid})", self.log_file.read_text())
        self.assertEqual((self.state / LOCK_NAME).read_text(), f"{first.pid}\n")
        self.assertIsNone(first.poll())
        self.terminated(first)

    def test_with_78_without_anything_to_verify_against(self) -> None:
        for content in (b"{", None):
            with self.subTest(content):
                self.trust.unlink(missing_ok=True)
                if content is not None:
                    self.trust.write_bytes(content)
                self.assertEqual(self.ended(self.start()), 78)
                self.assertIn(str(self.trust), self.log_file.read_text())

    def test_with_78_and_one_line_where_others_may_change_what_it_believes(self) -> None:
        config = self.folder / "agent.toml"
        self.write_config()
        for path in (config, self.trust, self.ca, self.state, self.folder):
            with self.subTest(path.name):
                mode = path.stat().st_mode & 0o7777
                path.chmod(mode | 0o002)
                log = self.start(config_mode=path.stat().st_mode & 0o7777 if path == config else None)
                self.assertEqual(self.ended(log), 78)
                (line,) = self.log_file.read_text().splitlines()
                self.assertRegex(line, rf"^nixfleet-agent: .*can be changed by others .*: run `chmod go-w {path}`$")
                self.assertEqual(list(self.state.iterdir()), [])
                path.chmod(mode)

    def test_with_70_when_the_reducer_dies(self) -> None:
        self.assertEqual(self.ended(self.start(_REDUCER_DIES)), 70)
        death = next(line for line in self.lines() if "reducer died" in str(line["message"]))
        self.assertIn("a defect of the reducer", json.dumps(death))

    def test_with_70_when_the_main_thread_dies_and_not_as_a_shell_that_nobody_looks_after(self) -> None:
        process = self.start(_MAIN_DIES)
        self.until_logged("started")
        process.send_signal(signal.SIGUSR1)
        self.assertEqual(self.ended(process), 70)
        self.assertIn("a defect of the main thread", self.log_file.read_text())


class GoesOn(Case):
    def test_after_a_worker_died(self) -> None:
        process = self.start(_TICKER_DIES_ONCE)
        self.until_logged("worker advance_ticker is started again")
        self.assertTrue(any("a defect of the ticker" in json.dumps(line) for line in self.lines()), "its stack")
        self.terminated(process)

    def test_and_tells_every_threads_stack_on_sigusr1(self) -> None:
        process = self.started()
        process.send_signal(signal.SIGUSR1)
        prefix = "stack of "

        def told() -> set[str]:
            messages = [str(line.get("message")) for line in self.lines() if line.get("stack")]
            return {message.removeprefix(prefix) for message in messages}

        until(lambda: told() >= THREADS, "the stack of every thread")
        self.terminated(process)

    def test_and_reads_its_log_level_and_its_trust_file_again_on_sighup(self) -> None:
        self.tables += '[logging]\nformat = "json"\nlevel = "info"\n'
        process = self.started()
        self.tables = self.tables.replace('"info"', '"error"')
        self.write_config()
        self.trust.write_bytes(b"{")
        process.send_signal(signal.SIGHUP)
        self.until_logged("reload:")
        before = len(self.lines())
        process.send_signal(signal.SIGUSR1)  # told at info, which is not logged any more
        process.send_signal(signal.SIGHUP)
        until(lambda: sum("reload:" in str(line["message"]) for line in self.lines()) == 2, "the second complaint")
        self.assertEqual({line.get("level") for line in self.lines()[before:]}, {"error"})
        self.terminated(process)

    def test_and_reads_its_maintenance_windows_again_and_keeps_the_old_ones_where_the_new_are_broken(self) -> None:
        self.tables += '[maintenance]\ntime_zone = "UTC"\nwindows = ["Sat", "Sat 04:00-06:00"]\n'
        process = self.started()
        self.until_logged("the maintenance windows 'Sat 04:00-06:00' and 'Sat' overlap")
        until((self.state / SOCKET_NAME).exists, "somebody who answers")
        self.tables = self.tables.replace('"Sat"', '"someday"')
        self.write_config()
        process.send_signal(signal.SIGHUP)
        self.until_logged("reload: 'maintenance.windows'")
        self.assertEqual(ask(self.state, "status")["maintenance"]["windows"], ["Sat", "Sat 04:00-06:00"])
        self.tables = self.tables.replace('"someday"', '"Sun", "Mon 01:00-02:00"')
        self.write_config()
        process.send_signal(signal.SIGHUP)
        self.until_logged("reloaded certificate")
        self.assertEqual(ask(self.state, "status")["maintenance"]["windows"][:2], ["Sun", "Mon 01:00-02:00"])
        self.terminated(process)

    def test_with_what_it_has_where_others_may_change_what_it_would_believe_on_sighup(self) -> None:
        process = self.started()
        for path in (self.trust, self.certificate, self.folder / "agent.toml"):
            path.chmod(0o666)
        process.send_signal(signal.SIGHUP)
        until(lambda: sum("can be changed by others" in str(line["message"]) for line in self.lines()) >= 3, "refusals")
        self.assertIn("can be changed by others", ask(self.state, "status")["trust_error"])
        self.terminated(process)

    def test_with_what_it_has_where_everything_on_disk_is_broken_on_sighup(self) -> None:
        process = self.started()
        config = self.folder / "agent.toml"
        for path in (config, self.trust, self.certificate):
            path.write_bytes(b"{")
        process.send_signal(signal.SIGHUP)
        until(lambda: sum("reload:" in str(line["message"]) for line in self.lines()) == 3, "all three complaints")
        for path in (config, self.trust, self.certificate):
            self.assertTrue(any(str(path) in str(line["message"]) for line in self.lines()), path)
        until((self.state / SOCKET_NAME).exists, "somebody who answers")
        self.assertIn("is not JSON", ask(self.state, "status")["trust_error"])
        self.terminated(process)


if __name__ == "__main__":
    unittest.main()
