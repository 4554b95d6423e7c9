"""The base of the pipeline's tests: a nixery per class, a host per test, and no process left behind."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from nixfleet_agent.activation.context import Context, Retrying, RunningDownload, Waiting
from nixfleet_agent.activation.host import read_boot_id
from nixfleet_agent.activation.model import ROLLBACK_AND_HALT, Forward, ForwardOutcome, Rollback
from nixfleet_agent.activation.pipeline import Pipeline
from nixfleet_agent.activation.records import Record, Records
from nixfleet_agent.threads.backoff import Backoff
from nixfleet_agent.threads.clock import Clock, SystemClock
from tests.support.nix import Nixery, NixHost

ROLLOUT = "stable@abc1"
PATIENCE_SECS = 60.0


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition that other processes bring about; its value."""
    clock, pause = SystemClock(), threading.Event()
    deadline = clock.monotonic() + PATIENCE_SECS
    while not (value := condition()):
        if clock.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE_SECS:g} s: {what}")
        pause.wait(0.015)
    return value


def processes_of(root: Path) -> dict[int, str]:
    """Living processes that were started for a host, except this one: its paths are in their environment."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                environment = Path(f"/proc/{name}/environ").read_bytes()
                if f"{root}/".encode() in environment and "\nState:\tZ" not in Path(f"/proc/{name}/status").read_text():
                    found[int(name)] = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return found


class PipelineCase(unittest.TestCase):
    """``self.host`` runs ``self.v1``; ``self.reason`` is what the pipeline is interrupted for."""

    nixery: ClassVar[Nixery]
    v1: ClassVar[str]
    v2: ClassVar[str]

    @classmethod
    def setUpClass(cls) -> None:
        cls.nixery = Nixery()
        cls.addClassCleanup(cls.nixery.close)
        cls.v1 = cls.nixery.system("v1")
        cls.v2 = cls.nixery.system("v2")

    def setUp(self) -> None:
        name = Path(tempfile.mkdtemp(dir=self.nixery.folder, prefix="host-")).name
        self.host: NixHost = self.nixery.host(name)
        self.host.boot(self.v1)
        self.clock: Clock = SystemClock()
        self.reason: str | None = None
        self.wake = threading.Event()
        self.asked = 0
        self.methods: list[str] = []
        self.waits: list[Waiting | None] = []
        self.consent: Callable[[Forward], str | None] = lambda intent: None
        self.running_download: Callable[[str], RunningDownload | None] = lambda closure: None
        self.phases: list[tuple[str, float]] = []
        self.after_phase: dict[str, Callable[[], object]] = {}
        self.log = logging.getLogger(f"test.{name}")
        self.log.propagate = False
        self.log.addHandler(logging.NullHandler())
        self.addCleanup(self._nothing_is_left)

    def _nothing_is_left(self) -> None:
        """Nothing may run when a test is over; a success's wrapper needs a moment to go."""
        try:
            until(lambda: not processes_of(self.host.root), "the end of every process of the host")
        except AssertionError:
            left = processes_of(self.host.root)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            self.fail(f"left running: {left}")

    def pipeline(self) -> Pipeline:
        """A new pipeline on the host, as after a start of the agent."""
        context = Context(
            self.host.activation,
            self.host.state_dir,
            self.clock,
            self.interrupted,
            lambda seconds: void(self.wake.wait(seconds)),
            self.log,
            on_phase=self.note_phase,
            retrying=Retrying(lambda: Backoff(0.05, 0.4), self.waits.append, recheck_secs=0.05),
            consent=lambda intent, check: self.consent(intent),
            running_download=lambda closure: self.running_download(closure),
            base_environment=self.host.environment,
        )
        return Pipeline(context)

    def interrupted(self) -> str | None:
        """What the pipeline asks at each turn of each wait."""
        self.asked += 1
        return self.reason

    def note_phase(self, name: str, seconds: float) -> None:
        """Keep what was reported, and do what the test wants done at the end of that step."""
        self.phases.append((name, seconds))
        self.after_phase.pop(name, lambda: None)()

    def ring(self, seconds: int = 600) -> None:
        """The guard's time of so many seconds is over, now: end the `sleep` that it waits in."""

        def asleep() -> list[int]:
            return [pid for pid, line in processes_of(self.host.root).items() if line.startswith(f"sleep {seconds}")]

        # It says that it waits a moment before it does.
        (pid,) = until(asleep, "that a guard waits")
        os.kill(pid, signal.SIGTERM)

    def interrupt(self, reason: str) -> None:
        """Tell the pipeline to leave what it does."""
        self.reason = reason
        self.wake.set()

    def intent(self, target: str, prior: str | None = None, policy: str = ROLLBACK_AND_HALT) -> Forward:
        return Forward(ROLLOUT, target, self.v1 if prior is None else prior, policy)

    def forward(self, target: str, policy: str = ROLLBACK_AND_HALT) -> ForwardOutcome:
        """From v1 to the target, as rollout ROLLOUT."""
        return self.pipeline().forward(self.intent(target, policy=policy), self.methods.append)

    def resume(self, target: str, *, started: bool = True, policy: str = ROLLBACK_AND_HALT) -> ForwardOutcome:
        return self.pipeline().resume(self.intent(target, policy=policy), self.methods.append, started)

    def back(self, failed: str, *, fired: bool = True, observed: str | None = None) -> Rollback:
        """From the failed closure back to v1."""
        return Rollback(ROLLOUT, self.v1, failed, fired, observed)

    def program(self, name: str, script: str) -> None:
        """Put a script of that name before the real program."""
        programs = self.host.root / "programs"
        programs.mkdir(exist_ok=True)
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
        self.host.environment["PATH"] = f"{programs}:{os.environ['PATH']}"

    def records(self, direction: str) -> list[Record]:
        """The host's switch records of one direction."""
        records = Records(self.host.state_dir, read_boot_id())
        return [record for record in records.all() if record.intent.direction == direction]

    def in_thread(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """Start work in a thread; calling the answer waits for its result."""
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(work()), name="test-pipeline")
        thread.start()

        def result() -> Any:
            thread.join(PATIENCE_SECS)
            self.assertFalse(thread.is_alive(), "the pipeline does not return")
            return results[0]

        return result


def void(_: object) -> None:
    """Drop a value where None is asked for."""
