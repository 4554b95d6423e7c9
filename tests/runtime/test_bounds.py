"""What must stay bounded on bad days: a wait without a sign of life, the main thread's patience, and memory."""

from __future__ import annotations

import errno
import os
import threading
import unittest
from unittest import mock

from nixfleet_agent.journal.reserve import SIZE
from nixfleet_agent.runtime.rollout import event_writer
from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.rollout.inputs import Answer, HealthChecksReload, HostEvent, ReplayRequested
from nixfleet_agent.state_machine import ProbeStatus, State
from nixfleet_agent.telemetry.status import MOST_LABEL_SETS, StatusBoard
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.runtime.harness import TARGET, TestHost, bad_disk, until
from tests.support.clock import FakeClock


class AFullQueue(unittest.TestCase):
    def setUp(self) -> None:
        self.shutdown = ShutdownToken(FakeClock())
        self.inputs = InputQueue(self.shutdown, 1)
        self.inputs.put(ReplayRequested((), 1))

    def test_a_worker_that_waits_for_room_shows_life(self) -> None:
        signs = threading.Semaphore(0)
        waiting = threading.Thread(target=self.inputs.put, args=(ReplayRequested((), 2), signs.release))
        waiting.start()
        for _ in range(3):
            self.assertTrue(signs.acquire(timeout=30))
        self.shutdown.set()
        waiting.join(30)
        self.assertFalse(waiting.is_alive())

    def test_a_reload_never_blocks_the_main_thread_which_has_signals_to_answer(self) -> None:
        self.assertFalse(self.inputs.put_latest(HealthChecksReload()))
        self.inputs.get(0)
        self.assertTrue(self.inputs.put_latest(HealthChecksReload()))
        self.assertTrue(self.inputs.put_latest(HealthChecksReload()), "one that waits is enough")
        self.assertEqual(self.inputs.get(0), HealthChecksReload())
        self.assertIsNone(self.inputs.get(0))


class AReducerThatWaitsForTheDisk(unittest.TestCase):
    def test_shows_life_however_long_the_waits_between_two_tries_are(self) -> None:
        host = TestHost(self)
        host.retry_secs = 3600.0
        host.start()
        with bad_disk() as disk, mock.patch.object(event_writer, "NAP", 0.02):
            host.dispatch("stable@aa", TARGET)
            disk.break_down(errno.EIO)
            host.put(HostEvent("stable@aa", host.event("ActivationStarted")))
            disk.until_refused()
            for _ in range(3):
                host.clock.advance(500)
                until(lambda: host.reducer.silent_for() == 0, "a sign of life")
            host.stop()


class AReserveThatHadNoRoom(unittest.TestCase):
    def test_is_made_once_there_is_some(self) -> None:
        with mock.patch.object(os, "posix_fallocate", side_effect=OSError(errno.ENOSPC, "full")):
            host = TestHost(self)
            host.start()
        self.assertFalse((host.state_dir / "reserve").exists())
        host.dispatch("stable@aa", TARGET)
        self.assertEqual((host.state_dir / "reserve").stat().st_size, SIZE)


class ALongOutage(unittest.TestCase):
    def test_restarts_in_it_journal_no_unchanged_result_again(self) -> None:
        host = TestHost(self)
        host.start()
        host.soaking("stable@aa", soak_floor=600)
        for status in (ProbeStatus.FAIL, ProbeStatus.PASS):
            host.tell("stable@aa", "ProbeResult", status=status)
        for _ in range(3):
            host.clock.advance(3600)
            host.restart(TARGET)
            host.declare("stable@aa", "web")
            before = host.log("stable@aa")
            self.assertIs(host.tell("stable@aa", "ProbeResult", status=ProbeStatus.PASS), Answer.NOT_NOW)
            self.assertEqual(host.log("stable@aa"), before)
        self.assertIs(host.tell("stable@aa", "ProbeResult", status=ProbeStatus.FAIL), Answer.ACCEPTED)
        host.tell("stable@aa", "ProbeResult", status=ProbeStatus.PASS)
        host.clock.advance(36_000)
        host.tick()
        self.assertIs(host.record().state, State.CONVERGED, "what was noted in memory counts all the same")


class Counters(unittest.TestCase):
    def test_names_that_each_release_makes_up_do_not_fill_the_memory(self) -> None:
        board = StatusBoard()
        for number in range(3 * MOST_LABEL_SETS):
            board.count("probe_results", probe=f"p{number}", status="pass")
        board.count("probe_results", probe="p1", status="pass")
        board.count("transitions", before="Pending", after="Activating")
        counters = board.counters()
        self.assertEqual(len(counters), MOST_LABEL_SETS + 2)
        self.assertEqual(counters["probe_results", (("probe", "other"), ("status", "other"))], 2 * MOST_LABEL_SETS)
        self.assertEqual(counters["probe_results", (("probe", "p1"), ("status", "pass"))], 2)
        self.assertEqual(sum(counters.values()), 3 * MOST_LABEL_SETS + 2)


if __name__ == "__main__":
    unittest.main()
