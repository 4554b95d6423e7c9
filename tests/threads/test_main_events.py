"""What the main thread waits for: nothing rings unheard, whichever thread the kernel hands a signal to."""

from __future__ import annotations

import os
import signal
import threading
import time
import unittest

from nixfleet_agent.threads.main_events import signals

LONG = 20.0
WANTED = (signal.SIGUSR1, signal.SIGHUP)


class MainEventsTest(unittest.TestCase):
    def test_a_signal_that_another_thread_took_ends_the_wait(self) -> None:
        """Python runs handlers in the main thread only, and a main thread that sleeps in a queue is not woken."""
        with signals(WANTED) as events:
            other = threading.Timer(0.1, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1))
            other.start()
            began = time.monotonic()
            self.assertIs(events.wait(LONG), signal.SIGUSR1)
            self.assertLess(time.monotonic() - began, LONG / 2)
            other.join()

    def test_signals_come_in_order_and_none_is_lost(self) -> None:
        with signals(WANTED) as events:
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGHUP):
                os.kill(os.getpid(), number)
            found = [events.wait(LONG) for _ in range(3)]
            self.assertEqual(found, [signal.SIGHUP, signal.SIGUSR1, signal.SIGHUP])
            self.assertIsNone(events.wait(0.0))

    def test_what_a_thread_puts_ends_the_wait(self) -> None:
        with signals(()) as events:
            other = threading.Timer(0.05, events.put, ("news",))
            other.start()
            self.assertEqual(events.wait(LONG), "news")
            other.join()

    def test_a_bell_that_nobody_heard_blocks_nobody(self) -> None:
        with signals(()) as events:
            for number in range(70_000):  # a pipe has room for 65,536 bytes
                events.put(number)
            self.assertEqual(events.wait(0.0), 0)

    def test_a_wait_ends_by_itself_and_leaves_the_handlers_as_they_were(self) -> None:
        before = signal.getsignal(signal.SIGUSR1)
        with signals(WANTED) as events:
            self.assertIsNone(events.wait(0.01))
            self.assertNotEqual(signal.getsignal(signal.SIGUSR1), before)
        self.assertEqual(signal.getsignal(signal.SIGUSR1), before)
        self.assertEqual(signal.set_wakeup_fd(-1), -1)
