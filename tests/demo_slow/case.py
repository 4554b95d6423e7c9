"""A demo as a user runs it: a process, judged by its exit code, by the disk, and by what it leaves behind."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any

from nixfleet_agent.demo.processes import MARK_VARIABLE, remove_tree

#: Seconds; several times what a story takes on a loaded machine of two cores.
PATIENCE = 170.0
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


def children(parent: int) -> list[int]:
    """The processes that a process has started, whichever of its threads did."""
    tasks = Path(f"/proc/{parent}/task").iterdir()
    return sorted(int(pid) for task in tasks for pid in (task / "children").read_text().split())


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
        self.assert_exactly_once_in_order()
        return document

    def start(self, *arguments: str, wrapper: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start one, with its output in a pipe; ``wrapper`` is a command that becomes it."""
        process = subprocess.Popen(
            [*wrapper, *COMMAND, "--dir", str(self.folder), *arguments],
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

    def assert_host_ends(self, host: dict[str, Any], version: str, states: dict[str, str]) -> None:
        """The host runs and would boot ``version``, has exactly these states, and owes the control plane nothing."""
        name = host["name"]
        self.assertEqual(host["states"], states, name)
        self.assertEqual((self.running(name), self.profile(name)), (version, version), name)
        self.assertEqual(self.queue(name), [], name)

    def assert_ends(self, document: dict[str, Any], version: str, states: dict[str, str]) -> None:
        for host in document["hosts"]:
            self.assert_host_ends(host, version, states)

    def assert_exactly_once_in_order(self) -> None:
        for key, events in self.logs().items():
            self.assertEqual([seq for seq, _ in events], list(range(1, len(events) + 1)), key)
