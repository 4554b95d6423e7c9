"""One host without workers: the real journal, the real reducer in its thread, and the mailboxes laid open.

As a test uses it:

    host = TestHost(self)                          # state directory, clock; nothing runs yet
    host.start(current=PRIOR)                      # opens, recovers, starts the reducer, waits until it is idle
    host.dispatch("stable@aa", TARGET)             # -> (Answer, reason)
    host.tell("stable@aa", "ActivationStarted")    # -> Answer
    host.restart(current=TARGET)                   # the next process on the same directory
"""

from __future__ import annotations

import tempfile
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from nixfleet_agent import durable
from nixfleet_agent.config.model import ActivationConfig
from nixfleet_agent.journal.entries import parse_name
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.journal.reserve import Reserve
from nixfleet_agent.runtime.rollout.applier import Applier
from nixfleet_agent.runtime.rollout.decisions import Rules
from nixfleet_agent.runtime.rollout.input_queue import CAPACITY, InputQueue
from nixfleet_agent.runtime.rollout.inputs import (
    Acceptance,
    Ack,
    Activate,
    AdvanceTick,
    Answer,
    HostEvent,
    ReducerInput,
    SwitchStarting,
)
from nixfleet_agent.runtime.rollout.orders import ActivationOrder, ProbeOrder, outranks
from nixfleet_agent.runtime.rollout.recovery import Guards, recover
from nixfleet_agent.runtime.rollout.reducer import Reducer
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.state_machine import KINDS, Policy, RecordTransition, RolloutRecord
from nixfleet_agent.telemetry.status import RolloutsView, StatusBoard
from nixfleet_agent.threads.mailbox import Mailbox
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.runtime.parts import config, services
from tests.state_machine.machine import SAMPLES, declared
from tests.support.clock import PATIENCE, FakeClock

HOSTNAME = "web-01"
PRIOR, TARGET, NEWER, THIRD = ("a" * 32 + "-prior", "b" * 32 + "-target", "d" * 32 + "-newer", "c" * 32 + "-third")
ROLLBACK, HALT = Policy.ROLLBACK_AND_HALT, Policy.HALT


def until(condition: Callable[[], bool], what: str, between: Callable[[], None] = lambda: None) -> None:
    """Block until ``condition`` holds, which another thread will see to; ``between`` is called before each look."""
    deadline = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never: {what}")
        between()
        pause.wait(0.0005)


def temporary(test: unittest.TestCase) -> Path:
    folder = tempfile.TemporaryDirectory()
    test.addCleanup(folder.cleanup)
    return Path(folder.name)


class TestHost:
    """See the module."""

    __test__ = False

    def __init__(self, test: unittest.TestCase, state_dir: Path | None = None) -> None:
        self.test = test
        self.state_dir = state_dir or temporary(test)
        self.clock = FakeClock()
        self.current_system = self.state_dir / "current-system"
        self.current: str | None = PRIOR
        self.boot_id = "boot-1"
        self.transitions: list[RecordTransition] = []
        self.hooked: list[tuple[str, str, int]] = []
        self.kicks = 0
        self.retry_secs = 0.001
        self.capacity = CAPACITY
        self.quarantined: list[tuple[str, str]] = []
        self.died: list[BaseException] = []
        self.fired: set[str] = set()
        self.guards = Guards()
        self.running = False
        test.addCleanup(self.stop)

    # -- life ---------------------------------------------------------------------------------

    def start(self, current: str | None = PRIOR, *, settle: bool = True) -> None:
        self.current = current
        self.shutdown = ShutdownToken(self.clock)
        self.inputs = InputQueue(self.shutdown, self.capacity)
        self.board = StatusBoard()
        self.journal = Journal(self.state_dir, HOSTNAME)
        self.journal.open()
        self.activation: Mailbox[ActivationOrder] = Mailbox(self.clock, self.shutdown, outranks)
        self.probes: Mailbox[ProbeOrder] = Mailbox(self.clock, self.shutdown)
        self.reserve = Reserve(self.state_dir)
        self.reserve.ensure()
        applier = Applier(
            self.activation,
            self.probes,
            self.board,
            self._kicked,
            self.transitions.append,
            self._quarantined,
            lambda record, event: self.hooked.append((record.rollout_id, event.kind, event.seq)),
        )
        self.reducer = Reducer(
            self.services(),
            applier,
            Rules(threshold=120.0, repeat_interval=60.0, boot_id=self.boot_id),
            recover(self.journal, current, self.clock.monotonic(), self.fired, self.guards),
        )
        self._thread = threading.Thread(target=self._run, name="reducer")
        self._thread.start()
        self.running = True
        if settle:
            self.settle()

    def stop(self) -> None:
        """End the process; the files stay."""
        if not self.running:
            return
        self.running = False
        self.shutdown.set()
        self.inputs.close()
        self._thread.join(PATIENCE)
        self.test.assertFalse(self._thread.is_alive(), "the reducer does not end")
        self.test.assertEqual(self.died, [])

    def restart(self, current: str | None) -> None:
        self.stop()
        self.start(current)

    def _run(self) -> None:
        try:
            self.reducer.run()
        except BaseException as error:
            self.died.append(error)
            raise

    def services(self) -> Services:
        return services(
            config=replace(
                config(backoff_initial=self.retry_secs, backoff_max=self.retry_secs),
                activation=ActivationConfig(current_system=self.current_system),
            ),
            clock=self.clock,
            shutdown=self.shutdown,
            board=self.board,
            inputs=self.inputs,
            activation=self.activation,
            probes=self.probes,
            read_current=lambda: self.current,
            journal=self.journal,
            reserve=self.reserve,
        )

    def _kicked(self) -> None:
        self.kicks += 1

    def _quarantined(self, rollout_id: str, closure: str, reason: str) -> None:
        self.quarantined.append((rollout_id, closure))

    # -- inputs -------------------------------------------------------------------------------

    def put(self, item: ReducerInput) -> None:
        self.test.assertTrue(self.inputs.put(item))

    def settle(self) -> None:
        """Wait until everything that was put has been dealt with: an answered input has none before it."""
        self.asked(lambda ack: HostEvent("barrier@0", KINDS["Converged"].local(**SAMPLES["Converged"]), ack))

    def asked(self, make: Callable[[Ack], ReducerInput]) -> tuple[Answer, str]:
        ack = Ack(threading.Event())
        self.put(make(ack))
        self.test.assertTrue(ack.event.wait(PATIENCE), "the reducer does not answer")
        assert ack.value is not None
        return ack.value, ack.reason

    def dispatch(self, rollout_id: str, target: str, **changes: Any) -> tuple[Answer, str]:
        """An accepted Dispatch, or why it was not; settled."""
        answer = self.asked(lambda ack: Activate(self.acceptance(rollout_id, target, **changes), ack))
        self.settle()
        return answer

    def acceptance(self, rollout_id: str, target: str, **changes: Any) -> Acceptance:
        now = self.clock.now()
        values: dict[str, Any] = {
            "rollout_id": rollout_id,
            "target_closure": target,
            "current_closure": self.current,
            "soak_due_at": now,
            "accepted_at": now,
            "soak_floor": 5,
            "policy": ROLLBACK,
            "manifest_hash": "m" * 64,
            "manifest_signed_at": now,
            "fleet_hash": "f" * 64,
            "fleet_signed_at": now,
            "marks": {"fleet": "x"},
        }
        return Acceptance(**{**values, **changes})

    def event(self, kind: str, **changes: Any) -> Any:
        """A Local event that happens now."""
        shape = KINDS[kind].shape
        return KINDS[kind].local(**{**SAMPLES[kind], shape.stamp: self.clock.now(), **changes})

    def tell(self, rollout_id: str, kind: str, **changes: Any) -> Answer:
        event = self.event(kind, **changes)
        return self.asked(lambda ack: HostEvent(rollout_id, event, ack))[0]

    def switching(self, rollout_id: str) -> Answer:
        """It is said how it switches, and the switch begins where it may."""
        if self.tell(rollout_id, "ActivationStarted") is not Answer.ACCEPTED:
            return Answer.NOT_NOW
        answer = self.asked(lambda ack: SwitchStarting(rollout_id, ack))[0]
        if answer is Answer.ACCEPTED:
            self.fired.add(rollout_id)  # as the switch records say
        return answer

    def tick(self, current: str | None = "") -> None:
        """A second's tick; what runs is ``current`` from now on, where given."""
        self.current = self.current if current == "" else current
        self.put(AdvanceTick(self.current))
        self.settle()

    def let_it_retry(self, done: Callable[[], bool], what: str) -> None:
        """Move the clock past the reducer's waits until ``done``."""
        until(done, what, lambda: self.clock.advance(1))

    # -- shortcuts through a rollout ----------------------------------------------------------

    def soaking(self, rollout_id: str = "stable@aa", target: str = TARGET, **changes: Any) -> None:
        """Accepted, switched, its one enforce probe declared."""
        self.dispatch(rollout_id, target, **changes)
        self.switching(rollout_id)
        self.current = target
        self.tell(rollout_id, "ActivationCompleted", observed_current_closure=target)
        self.declare(rollout_id, "web")

    def declare(self, rollout_id: str, *names: str) -> None:
        self.tell(rollout_id, "ProbeTopologyDeclared", probes=tuple(declared(name) for name in names))

    # -- what came of it ----------------------------------------------------------------------

    def record(self, rollout_id: str = "stable@aa") -> RolloutRecord:
        return next(record for record in self.board.rollouts.records if record.rollout_id == rollout_id)

    @property
    def view(self) -> RolloutsView:
        return self.board.rollouts

    def names(self, folder: str) -> list[str]:
        path = self.state_dir / folder
        return sorted(entry.name for entry in path.iterdir()) if path.exists() else []

    def log(self, rollout_id: str = "stable@aa", *, folder: str | None = None) -> list[tuple[int, str]]:
        """(seq, kind) of the rollout's files, of all folders or of one."""
        folders = [folder] if folder else ["outbound-queue", f"outbound-sent/{rollout_id}", "outbound-rejected"]
        found = [parse_name(name, HOSTNAME) for each in folders for name in self.names(each)]
        return sorted((name.seq, name.kind) for name in found if name is not None and name.rollout_id == rollout_id)

    def order(self) -> ActivationOrder | None:
        """The order that waits for the activation worker, taken away."""
        order = self.activation.peek()
        if order is not None:
            self.activation.take(0)
        return order

    def probe_order(self) -> ProbeOrder | None:
        order = self.probes.peek()
        if order is not None:
            self.probes.take(0)
        return order


class BadDisk:
    """Fails chosen steps of durable writes until it is mended, and counts how often it was asked."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._errno: int | None = None
        self._wanted: Callable[[str, Path], bool] = lambda step, path: True
        self.refusals = 0
        self.steps: list[tuple[str, str]] = []

    def break_down(self, errno: int, wanted: Callable[[str, Path], bool] | None = None) -> None:
        with self._changed:
            self._errno = errno
            self._wanted = wanted or (lambda step, path: True)

    def mend(self) -> None:
        with self._changed:
            self._errno = None

    def until_refused(self, count: int = 1) -> None:
        """Block until the disk has refused ``count`` times."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.refusals >= count, PATIENCE):
                raise AssertionError(f"the disk was asked {self.refusals} times, not {count}")

    def __call__(self, step: str, path: Path) -> None:
        with self._changed:
            self.steps.append((step, path.name))
            if self._errno is None or not self._wanted(step, path):
                return
            self.refusals += 1
            self._changed.notify_all()
            raise OSError(self._errno, "refused by the test")


@contextmanager
def bad_disk() -> Iterator[BadDisk]:
    disk = BadDisk()
    with mock.patch.object(durable, "boundary", disk):
        yield disk
