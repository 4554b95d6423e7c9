"""The demo as a user runs it: a process, judged by its exit code, by the disk, and by what it leaves behind."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any

from nixfleet_agent.demo.agents import MARK_VARIABLE, remove_tree

PATIENCE = 170.0
ROLLED_BACK = {"v1": "Converged", "v2": "Converged", "v3": "Reverted"}
COMMAND = (sys.executable, "-m", "nixfleet_agent", "demo")


def marked(folder: Path) -> list[int]:
    """Processes that belong to the demo in this folder, found without the demo's own code."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"{MARK_VARIABLE}={folder}".encode() in environ.split(b"\0"):
                found.append(int(entry.name))
    return found


class DemoCase(unittest.TestCase):
    """One folder for the files of one demo."""

    def setUp(self) -> None:
        self.outer = Path(tempfile.mkdtemp(prefix="demo-test-")).resolve()
        self.folder = self.outer / "demo"
        self.addCleanup(remove_tree, self.outer)

    def demo(self, *arguments: str) -> dict[str, Any]:
        """Run to the end with ``--json``; its document. It must have succeeded and left no process."""
        done = subprocess.run(
            [*COMMAND, "--json", "--dir", str(self.folder), *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(marked(self.folder), [])
        document: dict[str, Any] = json.loads(done.stdout)
        self.assertEqual(document["problems"], [])
        return document

    def logs(self) -> dict[tuple[str, str], list[tuple[int, str]]]:
        """(host, rollout id) -> (seq, kind) in the order of arrival at the control plane."""
        logs: dict[tuple[str, str], list[tuple[int, str]]] = {}
        database = sqlite3.connect(self.folder / "cp" / "cp.sqlite")
        rows = database.execute("SELECT hostname, rollout_id, seq, kind FROM events ORDER BY received_at")
        for hostname, rollout_id, seq, kind in rows:
            logs.setdefault((hostname, rollout_id), []).append((seq, kind))
        database.close()
        return logs

    def running(self, name: str) -> str:
        """The version that a host runs, by its disk."""
        return (self.folder / "hosts" / name / "run" / "current-system").readlink().name.rpartition("-")[2]

    def profile(self, name: str) -> str:
        profiles = self.folder / "hosts" / name / "profiles"
        return (profiles / (profiles / "system").readlink()).readlink().name.rpartition("-")[2]

    def queue(self, name: str) -> list[str]:
        return [p.name for p in (self.folder / "hosts" / name / "state" / "outbound-queue").iterdir()]

    def assert_ends(self, document: dict[str, Any], version: str, states: dict[str, str]) -> None:
        """Every host runs and would boot ``version``, has these states, and owes the control plane nothing."""
        for host in document["hosts"]:
            name = host["name"]
            self.assertEqual(host["states"], states, name)
            self.assertEqual((self.running(name), self.profile(name)), (version, version), name)
            self.assertEqual(self.queue(name), [], name)

    def assert_exactly_once_in_order(self, logs: dict[tuple[str, str], list[tuple[int, str]]]) -> None:
        for key, events in logs.items():
            self.assertEqual([seq for seq, _ in events], list(range(1, len(events) + 1)), key)


class Plain(DemoCase):
    def test_two_releases_converge_and_the_third_is_taken_back_by_every_host(self) -> None:
        document = self.demo("--agents", "3")
        self.assertEqual(len(document["hosts"]), 3)
        self.assert_ends(document, "v2", ROLLED_BACK)
        logs = self.logs()
        self.assertEqual(len(logs), 9)
        self.assert_exactly_once_in_order(logs)
        for (name, _), events in logs.items():
            kinds = [kind for _, kind in events]
            self.assertEqual(
                kinds[:4], ["DispatchAck", "ActivationStarted", "ActivationCompleted", "ProbeTopologyDeclared"]
            )
            self.assertIn(kinds[-1], ("Converged", "RollbackComplete"), name)
        self.assertLess(document["seconds"], 45)


class Faults(DemoCase):
    """One story each; what the demo itself calls a good end is checked again from outside."""

    def test_kill(self) -> None:
        document = self.demo("--fault", "kill")
        self.assert_ends(document, "v2", ROLLED_BACK)
        self.assert_exactly_once_in_order(self.logs())

    def test_partition(self) -> None:
        document = self.demo("--fault", "partition", "--agents", "2")
        self.assert_ends(document, "v2", ROLLED_BACK)
        self.assert_exactly_once_in_order(self.logs())

    def test_slow(self) -> None:
        document = self.demo("--fault", "slow", "--agents", "2")
        self.assert_ends(document, "v2", ROLLED_BACK)
        self.assert_exactly_once_in_order(self.logs())

    def test_wipe_cp(self) -> None:
        document = self.demo("--fault", "wipe-cp", "--agents", "2")
        self.assert_ends(document, "v2", ROLLED_BACK)
        self.assert_exactly_once_in_order(self.logs())

    def test_bad_signature(self) -> None:
        document = self.demo("--fault", "bad-signature", "--agents", "2")
        self.refused(document, "bad_signature")

    def test_wrong_closure(self) -> None:
        document = self.demo("--fault", "wrong-closure", "--agents", "2")
        self.refused(document, "closure_mismatch")

    def refused(self, document: dict[str, Any], reason: str) -> None:
        self.assert_ends(document, "v1", {"v1": "Converged", "v2": "Pending"})
        self.assertEqual({rollout_id for _, rollout_id in self.logs()}, {next(iter(self.logs()))[1]})
        for host in document["hosts"]:
            log = (self.folder / "hosts" / host["name"] / "agent.log").read_text()
            self.assertIn(f'"{reason}"', log)

    def test_stale(self) -> None:
        document = self.demo("--fault", "stale", "--agents", "2")
        self.assert_ends(document, "v1", {"v1": "Converged"})
        self.assert_exactly_once_in_order(self.logs())


class Interrupted(DemoCase):
    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, "--dir", str(self.folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        self.addCleanup(process.stdout.close)
        return process

    def until(self, process: subprocess.Popen[str], words: str) -> str:
        """Read the output until a line has these words; what was read."""
        assert process.stdout is not None
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        read: list[str] = []
        try:
            while not read or (words not in read[-1] and read[-1]):
                read.append(process.stdout.readline())
        finally:
            watchdog.cancel()
            watchdog.join()
        self.assertIn(words, read[-1], "".join(read))
        return "".join(read)

    def test_ctrl_c_in_the_middle_of_a_switch_leaves_no_process_and_no_file(self) -> None:
        process = self.start("--agents", "2")
        self.until(process, "Activating")
        self.assertNotEqual(marked(self.folder), [])
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 130, output)
        self.assertIn("interrupted", output)
        self.assertNotIn("Traceback", output)
        self.assertEqual(marked(self.folder), [])
        self.assertFalse(self.folder.exists())

    def test_keep_serves_until_it_is_told_to_end(self) -> None:
        process = self.start("--agents", "1", "--fault", "bad-signature", "--keep")
        output = self.until(process, "In a browser")
        curl = re.search(r"curl --cacert (\S+) (\S+)", output)
        assert curl is not None
        answer = subprocess.run(curl.group(0).split(), capture_output=True, text=True, timeout=30, check=False)
        self.assertIn('"hostname": "web-01"', answer.stdout, answer.stderr)
        status = next(line.split() for line in output.splitlines() if " status --config" in line)
        told = subprocess.run(status, capture_output=True, text=True, timeout=30, check=False)
        self.assertEqual(told.returncode, 0, told.stdout + told.stderr)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(PATIENCE), 0)
        self.assertEqual(marked(self.folder), [])
        self.assertFalse(self.folder.exists())


if __name__ == "__main__":
    unittest.main()
