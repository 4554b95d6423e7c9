"""The order to stop reaches every form of wait, once, and nothing that has left its block."""

from __future__ import annotations

import os
import select
import threading
import unittest

from nixfleet_agent.threads.cancel import CancelToken


class Stopping(unittest.TestCase):
    def test_callbacks_run_once_when_it_is_set_and_at_once_when_it_was(self) -> None:
        cancel, calls = CancelToken(), []
        with cancel.calling(lambda: calls.append("before")):
            cancel.set()
            cancel.set()
        self.assertEqual(calls, ["before"])
        with cancel.calling(lambda: calls.append("after")):
            self.assertEqual(calls, ["before", "after"])

    def test_after_its_block_a_callback_never_runs(self) -> None:
        cancel, calls = CancelToken(), []
        with cancel.calling(lambda: calls.append("late")):
            pass
        cancel.set()
        self.assertEqual(calls, [])

    def test_a_block_ends_only_when_its_running_callback_has(self) -> None:
        """Otherwise the callback could kill a process id that was given to somebody else."""
        cancel, entered, leave, order = CancelToken(), threading.Event(), threading.Event(), []

        def callback() -> None:
            entered.set()
            leave.wait(30)
            order.append("callback")

        registered = threading.Event()

        def block() -> None:
            with cancel.calling(callback):
                registered.set()
                entered.wait(30)
            order.append("left")

        blocker = threading.Thread(target=block)
        blocker.start()
        registered.wait(30)
        setter = threading.Thread(target=cancel.set)
        setter.start()
        entered.wait(30)
        blocker.join(0.05)
        self.assertEqual(order, [])
        leave.set()
        for thread in (blocker, setter):
            thread.join(30)
        self.assertEqual(order, ["callback", "left"])


class Descriptor(unittest.TestCase):
    def readable(self, token: CancelToken, milliseconds: int = 0) -> bool:
        poll = select.poll()
        poll.register(token.fileno(), select.POLLIN)
        return bool(poll.poll(milliseconds))

    def test_it_becomes_readable_when_the_token_is_set_and_is_from_the_start_when_it_was(self) -> None:
        token = CancelToken()
        self.addCleanup(token.close)
        self.assertFalse(self.readable(token))
        setter = threading.Timer(0.05, token.set)
        setter.start()
        self.assertTrue(self.readable(token, 30_000))
        setter.join()
        late = CancelToken()
        self.addCleanup(late.close)
        late.set()
        self.assertTrue(self.readable(late))

    def test_many_threads_that_ask_for_it_at_once_get_the_same_one(self) -> None:
        token, ready, found = CancelToken(), threading.Barrier(8), []
        self.addCleanup(token.close)

        def ask() -> None:
            ready.wait(30)
            found.append(token.fileno())

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self.assertEqual(len(found), 8)
        self.assertEqual(len(set(found)), 1)

    def test_closing_gives_every_descriptor_back_also_again_and_without_one(self) -> None:
        before = set(os.listdir("/proc/self/fd"))
        for ask in (True, False):
            token = CancelToken()
            if ask:
                token.fileno()
            token.close()
            token.close()
            self.assertTrue(token.is_set)
        self.assertEqual(set(os.listdir("/proc/self/fd")), before)


if __name__ == "__main__":
    unittest.main()
