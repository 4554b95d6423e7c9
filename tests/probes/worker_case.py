"""A probe worker on a fake clock, and what it told."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nixfleet_agent.config.model import Config, TuningConfig
from nixfleet_agent.probes import runners
from nixfleet_agent.probes.runners import RunnerOutcome
from nixfleet_agent.runtime.rollout.inputs import HostEvent
from nixfleet_agent.runtime.rollout.orders import ProbeOrder, ResetProbes
from nixfleet_agent.runtime.workers.probe import ProbeWorker
from nixfleet_agent.state_machine.events import (
    Event,
    LocalProbeResult,
    LocalProbeTopologyDeclared,
)
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.threads.mailbox import Mailbox
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.probes.support import MACHINE

ROLLOUT = "stable@abc"


NEXT = "stable@def"


class Told:
    """Everything the worker emitted, with the times; a test can wait for a condition on it."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Event]] = []
        self.times: list[float] = []
        self.room = threading.Event()
        self.room.set()
        self._changed = threading.Condition()

    def emit(self, item: HostEvent) -> bool:
        self.room.wait(10)
        with self._changed:
            self.events.append((item.rollout_id, item.event))
            self.times.append(time.monotonic())
            self._changed.notify_all()
        return True

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = 5.0) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise AssertionError(f"never came: {what}; told so far: {self.kinds()}")

    def kinds(self, probe: str | None = None) -> list[str]:
        return [e.kind for _, e in self.events if probe is None or getattr(e, "probe_name", None) == probe]

    def results(self, probe: str) -> list[LocalProbeResult]:
        return [e for _, e in self.events if isinstance(e, LocalProbeResult) and e.probe_name == probe]

    def topologies(self) -> list[LocalProbeTopologyDeclared]:
        return [e for _, e in self.events if isinstance(e, LocalProbeTopologyDeclared)]


class WorkerCase(unittest.TestCase):
    min_interval = 0.05

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.file = self.folder / "health-checks.json"
        self.told = Told()
        self.clock = SystemClock()
        self.shutdown = ShutdownToken(self.clock)
        self.mailbox: Mailbox[ProbeOrder] = Mailbox(self.clock, self.shutdown)
        self.config = Config(
            control_plane_url="https://cp.example",
            machine_id=MACHINE,
            health_checks_file=self.file,
            ssh_host_key_file=self.folder / "key",
            tuning=TuningConfig(probe_min_interval=self.min_interval),
        )

    def declare(self, **declarations: Any) -> None:
        replacement = self.folder / "new"
        replacement.write_text(json.dumps(declarations), encoding="utf-8")
        replacement.rename(self.file)

    def worker(self, runner: Any = runners.run) -> ProbeWorker:
        return ProbeWorker(
            self.shutdown, self.clock, config=self.config, mailbox=self.mailbox, emit=self.told.emit, runner=runner
        )

    @contextlib.contextmanager
    def working(self, runner: Any = runners.run) -> Iterator[ProbeWorker]:
        worker = self.worker(runner)
        thread = threading.Thread(target=worker.run, name="probe")
        thread.start()
        try:
            yield worker
        finally:
            self.told.room.set()
            self.shutdown.set()
            thread.join(30)
        self.assertFalse(thread.is_alive(), "the worker did not stop")

    def reset(self, rollout_id: str = ROLLOUT) -> None:
        self.mailbox.put(ResetProbes(rollout_id))


def port(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {"kind": "tcp", "port": number, **fields}


def always(outcome: RunnerOutcome) -> Any:
    return lambda decl, ctx: outcome
