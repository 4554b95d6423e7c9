"""Mailboxes: the latest order wins, but no forward order ever replaces a rollback, and shutdown wakes who waits."""

from __future__ import annotations

import threading
import unittest

from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.runtime.rollout.orders import ActivationOrder, Release, outranks
from nixfleet_agent.threads.mailbox import Mailbox
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.support.clock import PATIENCE, FakeClock

FORWARD = Forward("stable@aa", "target", "prior", "halt")
NEWER = Forward("stable@bb", "newer", "prior", "halt")
BACK = Rollback("stable@aa", "prior", "target", True, None)
RELEASE = Release("stable@aa")


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = FakeClock()
        self.shutdown = ShutdownToken(self.clock)
        self.mailbox: Mailbox[ActivationOrder] = Mailbox(self.clock, self.shutdown, outranks)

    def test_the_latest_order_wins(self) -> None:
        self.assertTrue(self.mailbox.put(FORWARD))
        self.assertTrue(self.mailbox.put(NEWER))
        self.assertEqual(self.mailbox.peek(), NEWER)
        self.assertEqual(self.mailbox.take(0), NEWER)
        self.assertIsNone(self.mailbox.peek())
        self.assertFalse(self.mailbox.filled.is_set())
        self.assertIsNone(self.mailbox.take(0))

    def test_no_forward_order_replaces_a_rollback_that_waits(self) -> None:
        self.mailbox.put(BACK)
        self.assertFalse(self.mailbox.put(NEWER))
        self.assertEqual(self.mailbox.take(0), BACK)

    def test_but_one_that_inherits_what_it_owes_does(self) -> None:
        self.mailbox.put(BACK)
        self.assertTrue(self.mailbox.put(NEWER, replace=True))
        self.assertEqual(self.mailbox.take(0), NEWER)

    def test_a_rollback_replaces_everything(self) -> None:
        for waiting in (FORWARD, BACK, RELEASE):
            self.mailbox.put(waiting, replace=True)
            self.assertTrue(self.mailbox.put(BACK))
            self.assertEqual(self.mailbox.take(0), BACK)

    def test_letting_go_replaces_no_work(self) -> None:
        for waiting in (FORWARD, BACK):
            self.mailbox.put(waiting, replace=True)
            self.assertFalse(self.mailbox.put(RELEASE))
            self.assertEqual(self.mailbox.take(0), waiting)
        self.assertTrue(self.mailbox.put(RELEASE))
        self.assertTrue(self.mailbox.put(FORWARD))
        self.assertEqual(self.mailbox.take(0), FORWARD)

    def taken_in_a_thread(self, timeout: float | None) -> tuple[threading.Thread, list[ActivationOrder | None]]:
        taken: list[ActivationOrder | None] = []
        thread = threading.Thread(target=lambda: taken.append(self.mailbox.take(timeout)))
        thread.start()
        self.addCleanup(thread.join, PATIENCE)
        self.addCleanup(self.shutdown.set)
        self.clock.until_waiting(1)
        return thread, taken

    def test_a_worker_that_waits_is_woken_by_an_order(self) -> None:
        thread, taken = self.taken_in_a_thread(None)
        self.mailbox.put(FORWARD)
        thread.join(PATIENCE)
        self.assertEqual(taken, [FORWARD])

    def test_by_the_end_of_its_patience(self) -> None:
        thread, taken = self.taken_in_a_thread(60)
        self.clock.advance(60)
        thread.join(PATIENCE)
        self.assertEqual(taken, [None])

    def test_and_by_shutdown_with_nothing_in_hand(self) -> None:
        thread, taken = self.taken_in_a_thread(None)
        self.shutdown.set()
        thread.join(PATIENCE)
        self.mailbox.put(FORWARD)
        self.assertEqual((taken, self.mailbox.take(None)), ([None], None))
        self.assertTrue(self.mailbox.filled.is_set(), "whoever waits in the middle of its work is woken as well")


class TheShutdownToken(unittest.TestCase):
    def test_sets_every_wake_up_that_it_tracks_also_those_made_afterwards(self) -> None:
        clock = FakeClock()
        token = ShutdownToken(clock)
        tracked, forgotten, given = token.wakeup(), token.wakeup(), threading.Event()
        self.assertIs(token.wakeup(given), given)
        token.forget(forgotten)
        token.forget(forgotten)
        self.assertFalse(token.wait(0))
        token.set()
        self.assertTrue(token.wait(3600))
        self.assertTrue(token.is_set and tracked.is_set() and given.is_set() and token.wakeup().is_set())
        self.assertFalse(forgotten.is_set())


if __name__ == "__main__":
    unittest.main()
