"""When a signal may end a command, and when it waits."""

from __future__ import annotations

import signal
import threading
import unittest

from nixfleet_agent.threads.interrupts import ENDING, held, terminable, uninterrupted


def send(number: signal.Signals) -> None:
    signal.raise_signal(number)  # in this thread: the kernel may give one for the process to any other


class Interrupts(unittest.TestCase):
    def setUp(self) -> None:
        self.before = [signal.getsignal(number) for number in ENDING]
        self.enterContext(terminable())

    def test_each_of_them_ends_it_at_once(self) -> None:
        for number in ENDING:
            with self.subTest(number), self.assertRaises(KeyboardInterrupt):
                send(number)
                self.fail("it went on")

    def test_one_that_comes_while_something_is_started_waits_until_that_is_noted(self) -> None:
        noted = []
        with self.assertRaises(KeyboardInterrupt):
            with held():
                with held():
                    send(signal.SIGTERM)
                    noted.append("started")
                noted.append("and noted")
            self.fail("it was forgotten")
        self.assertEqual(noted, ["started", "and noted"])
        with held():
            pass  # it is over: nothing is left of it

    def test_an_error_in_the_block_is_the_one_that_is_told(self) -> None:
        with self.assertRaises(OSError), held():
            send(signal.SIGTERM)
            raise OSError("no room")

    def test_a_block_of_another_thread_holds_nothing(self) -> None:
        inside, leave = threading.Event(), threading.Event()

        def other() -> None:
            with held():
                inside.set()
                leave.wait()

        thread = threading.Thread(target=other)
        thread.start()
        inside.wait()
        try:
            with self.assertRaises(KeyboardInterrupt):
                send(signal.SIGINT)
                self.fail("it waited")
        finally:
            leave.set()
            thread.join()

    def test_none_interrupts_the_cleaning_up(self) -> None:
        with uninterrupted():
            for number in ENDING:
                send(number)
        with self.assertRaises(KeyboardInterrupt):
            send(signal.SIGINT)

    def test_afterwards_they_do_what_they_did_before(self) -> None:
        self.doCleanups()
        self.assertEqual([signal.getsignal(number) for number in ENDING], self.before)

    def test_one_that_was_started_with_nohup_minds_no_closed_terminal(self) -> None:
        self.addCleanup(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_IGN))
        with terminable():
            self.assertEqual(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)


if __name__ == "__main__":
    unittest.main()
