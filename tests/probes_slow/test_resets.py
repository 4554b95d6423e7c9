"""A thousand resets in the middle of every kind of run leave no thread, child or descriptor behind."""

from __future__ import annotations

import gc
import json
import socket
import threading
import time
import unittest

from nixfleet_agent.runtime.orders import StopProbes
from nixfleet_agent.runtime.workers import probe_runners
from tests.probes.support import children, descriptors
from tests.probes.test_worker import WorkerCase

RESETS = 1000


class Resets(WorkerCase):
    def test_a_thousand_resets_leave_nothing_behind(self) -> None:
        silent = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.addCleanup(silent.close)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        declarations = {
            "http": {"kind": "http", "url": url, "timeoutSecs": 60},
            "https": {"kind": "http", "url": url.replace("http", "https"), "timeoutSecs": 60},
            "tcp": {"kind": "tcp", "port": 1},
            "name": {"kind": "tcp", "host": "localhost", "port": 1},
            "exec": {
                "kind": "exec",
                "command": ["/bin/sh", "-c", "trap '' TERM; sleep 9 & sleep 9"],
                "timeoutSecs": 60,
            },
            "quick": {"kind": "exec", "command": ["/bin/true"]},
            "evidence": {"kind": "evidence", "framework": "nis2"},
            "bad": {"kind": "none"},
        }
        self.file.write_text(json.dumps(declarations), encoding="utf-8")
        drained = threading.Thread(target=self.drain, args=(silent,))
        drained.start()
        self.addCleanup(drained.join)
        self.addCleanup(silent.shutdown, socket.SHUT_RDWR)

        with self.working(probe_runners.run):
            self.many_resets(100)
            before = self.settled()
            self.many_resets(RESETS)
            self.assertEqual(self.settled(), before)
            self.assertEqual(children(), set())

    def many_resets(self, count: int) -> None:
        for number in range(count):
            self.told.events.clear()
            self.reset(f"stable@{number:x}")
            self.told.wait(lambda: bool(self.told.topologies()), "the topology", 30)
            if number % 7 == 0:  # now and then let the runs get further
                threading.Event().wait(0.02)

    def settled(self) -> tuple[int, int]:
        """Threads and descriptors once all probes were told to stop and have ended."""
        self.mailbox.put(StopProbes())
        deadline, seen = time.monotonic() + 10, (0, 0)
        while time.monotonic() < deadline:
            gc.collect()
            threading.Event().wait(0.2)
            now = (threading.active_count(), descriptors())
            if now == seen and not any(t.name.startswith("probe ") for t in threading.enumerate()):
                break
            seen = now
        return seen

    def drain(self, listener: socket.socket) -> None:
        """Take connections and say nothing until the other side hangs up."""
        open_ones: list[socket.socket] = []
        while True:
            try:
                open_ones.append(listener.accept()[0])
            except OSError:
                break
            if len(open_ones) >= 8:
                open_ones.pop(0).close()
        for connection in open_ones:
            connection.close()


if __name__ == "__main__":
    unittest.main()
