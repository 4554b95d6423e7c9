"""The reducer's queue: bounded, in order, periodic inputs replaced, and no cycle of threads can block on it."""

from __future__ import annotations

import errno
import random
import threading
import unittest
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from unittest import mock

from nixfleet_agent import durable
from nixfleet_agent.errors import StorageError
from nixfleet_agent.runtime.rollout.input_queue import CAPACITY, InputQueue
from nixfleet_agent.runtime.rollout.inputs import AdvanceTick, HostEvent, ManifestSetUpdated, ReplayRequested
from nixfleet_agent.threads.mailbox import Mailbox
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.runtime.harness import TARGET, TestHost
from tests.support.clock import PATIENCE, FakeClock

T0 = datetime(2026, 5, 16, tzinfo=timezone.utc)


def request(number: int) -> ReplayRequested:
    return ReplayRequested((), number)


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.shutdown = ShutdownToken(FakeClock())

    def queue(self, capacity: int = CAPACITY) -> InputQueue:
        return InputQueue(self.shutdown, capacity)

    def test_inputs_come_out_in_the_order_they_went_in(self) -> None:
        inputs = self.queue()
        for number in range(5):
            self.assertTrue(inputs.put(request(number)))
        self.assertEqual(inputs.depth(), 5)
        self.assertEqual([inputs.get(0) for _ in range(6)], [*map(request, range(5)), None])

    def test_a_periodic_input_that_still_waits_is_replaced_and_keeps_its_place(self) -> None:
        inputs = self.queue()
        inputs.put_latest(AdvanceTick("a"))
        inputs.put(request(1))
        for closure in "bcd":
            self.assertTrue(inputs.put_latest(AdvanceTick(closure)))
        updated = ManifestSetUpdated("f", T0, ())
        inputs.put_latest(updated)
        self.assertEqual(inputs.depth(), 3)
        self.assertEqual([inputs.get(0) for _ in range(4)], [AdvanceTick("d"), request(1), updated, None])
        inputs.put_latest(AdvanceTick("e"))
        self.assertEqual(inputs.get(0), AdvanceTick("e"))

    def test_a_periodic_input_never_waits_for_room(self) -> None:
        inputs = self.queue(1)
        inputs.put(request(1))
        self.assertFalse(inputs.put_latest(AdvanceTick("a")))
        self.assertEqual(inputs.get(0), request(1))
        self.assertIsNone(inputs.get(0), "the one that found no room has left nothing behind")
        self.assertTrue(inputs.put_latest(AdvanceTick("b")))
        self.assertEqual(inputs.get(0), AdvanceTick("b"))

    def test_a_worker_waits_for_room_and_loses_nothing(self) -> None:
        inputs = self.queue(1)
        inputs.put(request(1))
        put: list[bool] = []
        thread = threading.Thread(target=lambda: put.append(inputs.put(request(2))))
        thread.start()
        self.assertEqual(inputs.get(PATIENCE), request(1))
        self.assertEqual(inputs.get(PATIENCE), request(2))
        thread.join(PATIENCE)
        self.assertEqual(put, [True])

    def test_a_worker_that_waits_for_room_gives_up_at_shutdown(self) -> None:
        inputs = self.queue(1)
        inputs.put(request(1))
        put: list[bool] = []
        thread = threading.Thread(target=lambda: put.append(inputs.put(request(2))))
        thread.start()
        self.shutdown.set()
        thread.join(PATIENCE)
        self.assertEqual((put, inputs.depth()), ([False], 1))
        self.assertFalse(inputs.put(request(3)))

    def test_closing_wakes_a_reducer_that_waits_and_never_blocks(self) -> None:
        inputs = self.queue(1)
        got: list[object] = []
        thread = threading.Thread(target=lambda: got.append(inputs.get(None)))
        thread.start()
        inputs.close()
        thread.join(PATIENCE)
        self.assertEqual(got, [None])
        inputs.put(request(1))
        inputs.close()
        self.assertEqual(inputs.get(0), request(1))

    def test_many_workers_and_a_tiny_queue_never_block_each_other(self) -> None:
        # The reducer orders, each worker answers an order with inputs, and tickers tick all the while.
        clock = FakeClock()
        inputs = self.queue(2)
        mailbox: Mailbox[int] = Mailbox(clock, self.shutdown)
        seen: list[int] = []
        failures: list[str] = []

        def worker(number: int) -> None:
            for step in range(200):
                mailbox.peek()
                if not inputs.put(request(number * 1000 + step)):
                    failures.append(f"worker {number} was turned away")

        def ticker() -> None:
            while not self.shutdown.is_set:
                inputs.put_latest(AdvanceTick("x"))

        def reducer() -> None:
            while len(seen) < 4 * 200:
                item = inputs.get(PATIENCE)
                if item is None:
                    failures.append("nothing came")
                    return
                mailbox.put(len(seen))
                if isinstance(item, ReplayRequested):
                    seen.append(item.seq)

        workers = [threading.Thread(target=worker, args=(number,)) for number in range(4)]
        others = [threading.Thread(target=ticker), threading.Thread(target=reducer)]
        for thread in (*workers, *others):
            thread.start()
        others[1].join(PATIENCE)
        self.shutdown.set()
        for thread in (*workers, *others):
            thread.join(PATIENCE)
        self.assertEqual((failures, len(set(seen))), ([], 800))
        for number in range(4):
            mine = [seq for seq in seen if seq // 1000 == number]
            self.assertEqual(mine, sorted(mine))


class EverythingAtOnce(unittest.TestCase):
    """The real reducer behind a queue of two places, on a slow disk that often refuses, while all others are at it."""

    WORKERS, EVENTS = 4, 40

    def test_no_input_is_lost_no_order_changed_and_every_thread_ends(self) -> None:
        rng = random.Random(4)
        host = TestHost(self)
        host.capacity = 2
        host.start()
        host.soaking("stable@aa", soak_floor=600)
        over = threading.Event()
        pool = ThreadPoolExecutor(self.WORKERS + 5)
        self.addCleanup(pool.shutdown, wait=False)

        def until_over(act: Callable[[], object]) -> Callable[[], None]:
            def body() -> None:
                while not over.wait(rng.random() * 0.002):
                    act()

            return body

        def disk(step: str, path: Path) -> None:
            over.wait(rng.random() * 0.001)
            if threading.current_thread().name == "reducer" and rng.random() < 0.05:
                raise OSError(rng.choice((errno.EIO, errno.ENOSPC)), "refused by the test")

        def tells(number: int) -> None:
            for event in range(self.EVENTS):
                name = f"{number}-{event:02}"
                host.put(HostEvent("stable@aa", host.event("ProbeObservedFirst", probe_name=name)))

        def deliver() -> None:
            path = host.journal.first("stable@aa")
            if path is None:
                return
            try:
                host.journal.delivered("stable@aa", path)
            except StorageError:
                # As the worker does: a rescan that saw it just before it was delivered takes it back in a moment.
                if path.exists():
                    raise

        with mock.patch.object(durable, "boundary", disk):
            workers = [pool.submit(tells, number) for number in range(self.WORKERS)]
            others = [
                pool.submit(until_over(act))
                for act in (
                    deliver,
                    host.journal.rescan_queue,
                    lambda: host.inputs.put_latest(AdvanceTick(TARGET)),
                    lambda: host.inputs.put(ReplayRequested(("stable@aa",), rng.randrange(100))),
                    lambda: host.clock.advance(1),
                )
            ]
            self.addCleanup(over.set)
            for worker in workers:
                worker.result(PATIENCE)
            host.settle()
            over.set()
            for other in others:
                other.result(PATIENCE)
        log = host.journal.read("stable@aa")
        self.assertEqual([entry.seq for entry in log], list(range(len(log))))
        named = [str(entry.event["probeName"]) for entry in log if entry.kind == "ProbeObservedFirst"]
        for number in range(self.WORKERS):
            mine = [name for name in named if name.startswith(f"{number}-")]
            self.assertEqual(mine, [f"{number}-{event:02}" for event in range(self.EVENTS)])


if __name__ == "__main__":
    unittest.main()
