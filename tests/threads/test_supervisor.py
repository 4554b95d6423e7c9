"""Supervision: a worker that dies is started again, ever more slowly; a vital one takes the process down."""

from __future__ import annotations

import queue
import threading
import unittest
from collections.abc import Callable
from typing import ClassVar
from unittest import mock

from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.threads.supervisor import RESTART_FORGIVEN, Supervisor, WorkerDied
from nixfleet_agent.threads.worker import Worker
from tests.support.clock import PATIENCE, FakeClock


class Scripted(Worker):
    """Does what the test says, once for each start."""

    name: ClassVar[str] = "scripted"

    def __init__(self, shutdown: ShutdownToken, clock: FakeClock | SystemClock, act: Callable[[], object]) -> None:
        super().__init__(shutdown, clock)
        self.act = act
        self.threads: list[str] = []

    def run(self) -> None:
        self.threads.append(threading.current_thread().name)
        self.act()


class Vital(Scripted):
    name: ClassVar[str] = "vital"


def explode() -> None:
    raise KeyError("boom")


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = FakeClock()
        self.shutdown = ShutdownToken(self.clock)
        self.events: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.restarts: list[str] = []
        self.addCleanup(self.shutdown.set)

    def supervise(self, act: Callable[[], object], vital: Callable[[], object] | None = None) -> Supervisor:
        self.worker = Scripted(self.shutdown, self.clock, act)
        self.vital = Vital(self.shutdown, self.clock, vital or (lambda: self.shutdown.wait(None)))
        self.supervisor = Supervisor(
            [self.worker], self.vital, self.shutdown, self.clock, self.events, self.restarts.append
        )
        self.supervisor.start()
        return self.supervisor

    def death(self) -> WorkerDied:
        died = self.events.get(timeout=PATIENCE)
        assert isinstance(died, WorkerDied)
        return died

    def test_every_thread_has_the_name_of_its_worker(self) -> None:
        self.supervise(lambda: self.shutdown.wait(None))
        self.clock.until_waiting(2)
        self.assertEqual((self.worker.threads, self.vital.threads), (["scripted"], ["vital"]))
        self.shutdown.set()
        self.assertEqual(self.supervisor.join(PATIENCE), [])

    def test_a_death_is_logged_with_its_stack_and_restarted_ever_more_slowly(self) -> None:
        supervisor = self.supervise(explode)
        for wait in (1, 2, 4, 8, 16, 32, 60, 60):
            death = self.death()
            self.assertIsInstance(death.error, KeyError)
            with self.assertLogs("nixfleet_agent.supervisor", "ERROR") as logs:
                self.assertTrue(supervisor.died(death))
            self.assertIn("explode", logs.output[0], "the stack is missing")
            self.assertEqual(supervisor.restart_due(), self.clock.monotonic() + wait)
            started = len(self.worker.threads)
            self.clock.advance(wait - 0.5)
            supervisor.restart_due()
            self.assertEqual(len(self.worker.threads), started)
            self.clock.advance(0.5)
            with self.assertLogs("nixfleet_agent.supervisor", "WARNING"):
                self.assertIsNone(supervisor.restart_due())
        self.death()
        self.assertEqual(self.restarts, ["scripted"] * 8)

    def test_a_worker_that_ran_for_long_is_restarted_quickly_again(self) -> None:
        supervisor = self.supervise(explode)
        for _ in range(3):
            supervisor.died(self.death())
            self.clock.advance(60)
            supervisor.restart_due()
        died = self.death()
        self.clock.advance(RESTART_FORGIVEN)
        supervisor.died(died)
        self.assertEqual(supervisor.restart_due(), self.clock.monotonic() + 1)

    def test_one_whose_thread_the_system_has_no_room_for_is_tried_again(self) -> None:
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            self.supervise(lambda: self.shutdown.wait(None))
        deaths = {death.worker.name: death for death in (self.death(), self.death())}
        self.assertEqual(self.supervisor.join(0), [])
        with self.assertLogs("nixfleet_agent.supervisor", "WARNING"):
            self.assertFalse(self.supervisor.died(deaths["vital"]))
            self.assertTrue(self.supervisor.died(deaths["scripted"]))
            self.clock.advance(1)
            self.supervisor.restart_due()
        self.clock.until_waiting(1)
        self.assertEqual(self.worker.threads, ["scripted"])

    def test_one_that_ends_without_being_told_to_is_restarted_too(self) -> None:
        for act in (lambda: None, lambda: exec("raise SystemExit(3)")):
            with self.subTest(act=act):
                supervisor = self.supervise(act)
                death = self.death()
                self.assertIsNone(death.error)
                with self.assertLogs("nixfleet_agent.supervisor", "ERROR") as logs:
                    self.assertTrue(supervisor.died(death))
                self.assertIn("without being told", logs.output[0])
                self.assertIsNotNone(supervisor.restart_due())

    def test_the_death_of_a_vital_one_is_not_survived(self) -> None:
        supervisor = self.supervise(lambda: self.shutdown.wait(None), vital=explode)
        with self.assertLogs("nixfleet_agent.supervisor", "ERROR"):
            self.assertFalse(supervisor.died(self.death()))
        self.assertIsNone(supervisor.restart_due())

    def test_at_shutdown_everybody_ends_and_nobody_is_restarted(self) -> None:
        supervisor = self.supervise(lambda: self.shutdown.wait(None))
        self.shutdown.set()
        with self.assertNoLogs("nixfleet_agent.supervisor"):
            for _ in range(2):
                self.assertTrue(supervisor.died(self.death()))
        self.assertIsNone(supervisor.restart_due())
        self.assertEqual(supervisor.join(PATIENCE), [])

    def test_one_that_gives_no_sign_of_life_within_its_limit_is_named(self) -> None:
        self.vital_limit = 10_000.0
        supervisor = self.supervise(lambda: self.shutdown.wait(None))
        self.vital.limit = self.vital_limit
        self.clock.advance(self.worker.limit)
        self.assertEqual(supervisor.silent(), [])
        self.clock.advance(0.001)
        self.assertEqual(supervisor.silent(), ["scripted"])
        self.assertTrue(supervisor.endangered())
        self.worker.alive()
        self.assertEqual(supervisor.silent(), [])
        self.assertFalse(supervisor.endangered())

    def test_one_that_only_tells_of_the_agent_is_named_and_endangers_nothing(self) -> None:
        """A folder for metrics that hangs must not end an agent that may be in the middle of a rollback."""
        supervisor = self.supervise(lambda: self.shutdown.wait(None))
        self.vital.limit = 10_000.0
        with mock.patch.object(Scripted, "telemetry", True):
            self.clock.advance(self.worker.limit + 1)
            self.assertEqual(supervisor.silent(), ["scripted"])
            self.assertFalse(supervisor.endangered())

    def test_one_that_waits_for_its_restart_is_not_taken_for_silent(self) -> None:
        supervisor = self.supervise(explode)
        self.vital.limit = 10_000.0
        supervisor.died(self.death())
        self.clock.advance(self.worker.limit + 1)
        self.assertEqual(supervisor.silent(), [])
        supervisor.restart_due()
        self.assertEqual(supervisor.silent(), [])

    def test_joining_ends_by_its_deadline_and_names_who_is_left(self) -> None:
        clock = SystemClock()
        self.shutdown = ShutdownToken(clock)
        stuck = threading.Event()
        self.addCleanup(stuck.set)
        worker = Scripted(self.shutdown, clock, lambda: stuck.wait(PATIENCE))
        vital = Vital(self.shutdown, clock, lambda: self.shutdown.wait(None))
        supervisor = Supervisor([worker], vital, self.shutdown, clock, self.events, self.restarts.append)
        supervisor.start()
        self.shutdown.set()
        before = clock.monotonic()
        self.assertEqual(supervisor.join(0.05), ["scripted"])
        self.assertLess(clock.monotonic() - before, PATIENCE / 2)
        stuck.set()
        self.assertEqual(supervisor.join(PATIENCE), [])


class TheBase(unittest.TestCase):
    def test_a_worker_without_a_loop_says_so(self) -> None:
        class Unfinished(Worker):
            name = "unfinished"

        clock = FakeClock()
        with self.assertRaises(RuntimeError):
            Unfinished(ShutdownToken(clock), clock).run()


if __name__ == "__main__":
    unittest.main()
