"""A thousand resets in the middle of every kind of run leave no thread, child or descriptor behind."""

from __future__ import annotations

import gc
import json
import os
import socket
import threading
import time
import unittest
from unittest import mock

from nixfleet_agent.probes import runners
from nixfleet_agent.probes.declarations import ProbeDecl
from nixfleet_agent.probes.runners import RunnerContext, RunnerOutcome
from nixfleet_agent.runtime.rollout.orders import StopProbes
from nixfleet_agent.threads.cancel import CancelToken
from tests.probes.support import children, descriptors
from tests.probes.worker_case import WorkerCase
from tests.support.tls import Authority

RESETS = 1000


class Begun:
    """The runner, counting how many runs of the latest set have begun."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._set: CancelToken | None = None
        self._count = 0

    def run(self, decl: ProbeDecl, ctx: RunnerContext) -> RunnerOutcome:
        with self._changed:
            if ctx.cancel is not self._set:
                self._set, self._count = ctx.cancel, 0
            self._count += 1
            self._changed.notify_all()
        return runners.run(decl, ctx)

    def wait(self, before: CancelToken | None, count: int) -> None:
        """Until ``count`` runs of the set after ``before`` have begun."""
        with self._changed:
            begun = self._changed.wait_for(lambda: self._set is not before and self._count >= count, 30)
        if not begun:
            raise AssertionError(f"{count} runs never began")

    @property
    def latest(self) -> CancelToken | None:
        return self._set


class Resets(WorkerCase):
    def setUp(self) -> None:
        super().setUp()
        # Each set loads the trusted authorities; those of the machine would take two thirds of the test's time.
        authorities = {
            "SSL_CERT_FILE": str(Authority().write_ca(self.folder / "ca.pem")),
            "SSL_CERT_DIR": "/nonexistent",
        }
        self.enterContext(mock.patch.dict(os.environ, authorities))
        self.begun = Begun()

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

        with self.working(self.begun.run):
            self.many_resets(100, len(declarations))
            before = self.settled()
            self.many_resets(RESETS, len(declarations))
            self.assertEqual(self.settled(), before)
            self.assertEqual(children(), set())

    def many_resets(self, count: int, probes: int) -> None:
        """Each after another number of runs has begun; none is the moment in which the threads are being made."""
        for number in range(count):
            self.told.events.clear()
            before = self.begun.latest
            self.reset(f"stable@{number:x}")
            self.told.wait(lambda: bool(self.told.topologies()), "the topology", 30)
            if number % (probes + 1):
                self.begun.wait(before, number % (probes + 1))
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
