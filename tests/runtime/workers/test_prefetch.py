"""The prefetch worker on real Nix: what it brings, what it leaves alone, and that only its status line ever changes."""

from __future__ import annotations

import os
import subprocess
import time
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from nixfleet_agent.activation.model import Completed, Rollback
from nixfleet_agent.prefetch import gentle, oversight
from nixfleet_agent.prefetch.decision import State
from nixfleet_agent.telemetry.status import RolloutsView
from tests.activation.case import until
from tests.runtime.workers.prefetch_case import NEXT_ROLLOUT, PrefetchCase


def niceness(pid: int) -> int:
    """As the kernel has it."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16])


class FetchingTest(PrefetchCase):
    def test_the_next_release_is_in_the_store_and_ready_before_its_turn(self) -> None:
        self.start()
        self.announce(self.v2)
        ready = self.until_state(State.READY)
        self.assertEqual((ready.rollout_id, ready.target_closure, ready.obstacles), (NEXT_ROLLOUT, self.v2, ()))
        self.assertIsNotNone(ready.ready_at)
        self.assertEqual(self.held(), self.v2)
        self.host.collect_garbage()
        self.assertTrue(self.host.has(self.v2), "its root holds it")
        self.assertEqual((self.host.running(), self.host.switches()), (self.v1, [f"dry-activate {self.v2}"]))
        self.until_asleep()

    def test_a_newer_release_takes_the_place_of_the_one_that_was_fetched(self) -> None:
        newer = self.nixery.system("newer")
        self.start()
        self.announce(self.v2)
        self.until_state(State.READY)
        self.announce(newer, "stable@cc")
        self.until_state(State.READY, newer)
        self.assertEqual(self.held(), newer)
        self.host.collect_garbage()
        self.assertEqual((self.host.has(newer), self.host.has(self.v2)), (True, False))

    def test_a_newer_release_ends_the_download_of_the_older_one(self) -> None:
        old, newer = self.big("outdated"), self.nixery.system("newest")
        self.nixery.server.drip = (1024, 0.1)
        self.enterContext(mock.patch.object(oversight, "WANTED_SECS", 0.2))
        self.start()
        self.announce(old)
        until(self.nars, "it is being fetched")
        self.announce(newer, "stable@cc")
        self.until_state(State.READY, newer)
        self.assertEqual((self.held(), self.host.has(old)), (newer, False))

    def test_how_far_it_is_can_be_seen(self) -> None:
        target = self.big("shown")
        self.nixery.server.drip = (4096, 0.1)
        self.enterContext(mock.patch.object(oversight, "LOOK_SECS", 0.1))
        self.start()
        self.announce(target)
        until(lambda: self.status is not None and self.status.percent, "it is said")
        status = self.status
        assert status is not None and status.percent is not None and status.total_bytes is not None
        self.assertEqual(status.state, State.FETCHING)
        self.assertGreater(status.fetched_bytes, 0)
        self.assertAlmostEqual(status.total_bytes, 400_000, delta=20_000)
        self.assertEqual(status.percent, status.fetched_bytes * 100 // status.total_bytes)

    def test_what_is_in_the_store_already_is_held_without_asking_a_cache_or_waiting(self) -> None:
        self.host.nix("nix-store", "--realise", f"/nix/store/{self.v2}")
        self.nixery.server.requests.clear()
        self.stop()
        self.begin(spread_secs=3600.0)
        self.start()
        self.announce(self.v2)
        self.until_state(State.READY)
        self.assertEqual((self.held(), self.nixery.server.requests), (self.v2, []))

    def test_starts_are_spread_over_the_window(self) -> None:
        self.begin(spread_secs=3600.0)
        starts = []
        for n in range(100):
            self.announce(self.v2, f"stable@{n:02x}")
            self.worker._decide()
            assert self.worker._job is not None
            starts.append((self.worker._job.starts_at - self.clock.monotonic()) / 3600)
        quarters = [sum(n / 4 <= start < (n + 1) / 4 for start in starts) for n in range(4)]
        self.assertEqual(sum(quarters), 100)
        self.assertTrue(all(15 <= count <= 35 for count in quarters), quarters)
        self.start()
        waiting = self.until_state(State.WAITING)
        until(lambda: self.status is not None and self.status.next_try_at, "it is said when it starts")
        self.assertIn("its start is spread", str(waiting.reason or (self.status and self.status.reason)))
        self.assertEqual(self.nars(), [])

    def test_it_runs_at_the_lowest_priority(self) -> None:
        self.nixery.server.drip = (1024, 0.1)
        self.start()
        self.announce(self.big("gentle"))
        until(self.nars, "it is being fetched")
        (pid,) = self.nix_processes()

        def priorities() -> tuple[int, str]:
            said = subprocess.run(["ionice", "-p", str(pid)], capture_output=True, text=True, check=True)
            return niceness(pid), said.stdout

        # They are set by programs that start after Nix has.
        until(lambda: priorities() == (19, "idle\n"), "both priorities are the lowest")

    def test_a_nix_that_can_not_limit_a_rate_is_told_of_once_and_fetches(self) -> None:
        self.program("nix", 'echo "cores = 0"')
        self.enterContext(mock.patch.dict(os.environ, self.host.environment))
        self.stop()
        self.begin(max_rate=100)
        self.start()
        with self.assertLogs("nixfleet_agent.prefetch", "WARNING") as logs:
            self.announce(self.v2)
            self.until_state(State.READY)
            newer = self.nixery.system("unlimited")
            self.announce(newer, "stable@cc")
            self.until_state(State.READY, newer)
        self.assertEqual([line for line in logs.output if "no setting download-speed" in line], logs.output)
        self.assertEqual(len(logs.output), 1)

    def arguments(self) -> Path:
        """Of every call of nix-store from now on, in this file."""
        log = self.host.root / "arguments"
        real = "$(PATH=${PATH#*:} command -v nix-store)"
        self.program("nix-store", f'echo "$*" >>{log}; exec {real} "$@"')
        self.enterContext(mock.patch.dict(os.environ, self.host.environment))
        return log

    def test_a_nix_that_can_gets_the_rate(self) -> None:
        self.program("nix", 'echo "download-speed = 0"')
        log = self.arguments()
        self.stop()
        self.begin(max_rate=100.4)
        self.start()
        self.announce(self.v2)
        self.until_state(State.READY)
        self.assertIn("--option download-speed 100 ", log.read_text())

    def test_a_nix_that_does_not_tell_gets_the_rate_and_is_asked_again(self) -> None:
        self.program("nix", "exit 1")
        log = self.arguments()
        self.stop()
        self.begin(max_rate=100)
        self.start()
        with self.assertNoLogs("nixfleet_agent.prefetch", "WARNING"):
            self.announce(self.v2)
            self.until_state(State.READY)
        self.assertIn("--option download-speed 100 ", log.read_text())
        log.unlink()
        self.program("nix", 'echo "cores = 0"')
        with self.assertLogs("nixfleet_agent.prefetch", "WARNING"):
            newer = self.nixery.system("asked-again")
            self.announce(newer, "stable@cc")
            self.until_state(State.READY, newer)
        self.assertNotIn("download-speed", log.read_text())


class TurnTest(PrefetchCase):
    """Whoever has its turn comes first."""

    def fetching(self, name: str, **changes: Any) -> str:
        """A large release that is being fetched, slowly."""
        target = self.big(name)
        self.nixery.server.drip = (4096, 0.03)
        self.start()
        self.announce(target)
        until(self.nars, "it is being fetched")
        return target

    def test_its_turn_takes_over_the_download_that_runs_and_no_byte_comes_twice(self) -> None:
        target = self.fetching("taken")
        (pid,) = self.nix_processes()
        with self.handover.at_work(target):
            result = self.in_thread(lambda: self.forward(target))
            until(lambda: niceness(pid) == niceness(os.getpid()), "it hurries")
            self.assertEqual(result(), Completed(target, 0, ()))
        self.assertEqual(len(self.nars()), 1, self.nars())
        until(lambda: not self.root.is_symlink(), "it runs, so its root goes")
        self.until_asleep()
        self.assertIsNone(self.status)

    def test_a_turn_that_waits_for_something_else_first_leaves_the_download_running(self) -> None:
        self.enterContext(mock.patch.object(oversight, "WANTED_SECS", 0.1))
        self.enterContext(mock.patch.object(oversight, "LOOK_SECS", 0.1))
        target = self.fetching("waiting")
        record = mock.Mock(target_closure=target, rollout_id=NEXT_ROLLOUT, terminal=False)
        self.board.publish_rollouts(RolloutsView(NEXT_ROLLOUT, True, records=(record,)))
        self.ran_here.add(NEXT_ROLLOUT)
        with self.handover.at_work(target):
            until(lambda: self.status is not None and self.status.fetched_bytes > 200_000, "it goes on")
            self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertEqual(len(self.nars()), 1)

    def test_a_download_that_stands_still_is_ended_by_its_turn_which_begins_again(self) -> None:
        target = self.big("standing")
        self.host.configure(realise_stall_secs=1.0)
        self.nixery.server.stall_after = 100_000
        self.start()
        self.announce(target)
        until(self.nars, "it is being fetched")
        with self.handover.at_work(target):
            result = self.in_thread(lambda: self.forward(target))
            until(lambda: self.waits, "a try that failed")
            self.nixery.server.stall_after = None
            self.assertEqual(result(), Completed(target, 0, ()))

    def test_one_with_a_limited_rate_is_not_taken_over(self) -> None:
        target = self.big("limited")
        self.nixery.server.drip = (4096, 0.03)
        with mock.patch.object(gentle.Rate, "options", lambda self: ("--option", "connect-timeout", "9")):
            self.start()
            self.announce(target)
            until(self.nars, "it is being fetched")
            with self.handover.at_work(target):
                until(lambda: not self.nix_processes(), "it ends")
                self.assertEqual(self.forward(target), Completed(target, 0, ()))

    def test_the_turn_of_another_release_stops_it_at_once_and_it_goes_on_afterwards(self) -> None:
        target = self.fetching("stopped")
        began = time.monotonic()
        with self.handover.at_work(self.v2):
            until(lambda: not self.nix_processes(), "it is stopped")
            self.assertLess(time.monotonic() - began, 2.0)
            waiting = self.until_state(State.WAITING)
            self.assertIn("is at work", str(waiting.reason))
            self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))
        self.nixery.server.drip = None
        self.until_state(State.READY, target)

    def test_a_rollback_stops_it_at_once(self) -> None:
        self.fetching("rolled")
        with self.handover.at_work(None):
            until(lambda: not self.nix_processes(), "it is stopped")
            self.pipeline().rollback(Rollback("stable@aa", self.v1, self.v2, False, None))

    def test_shutdown_stops_it_and_leaves_no_root(self) -> None:
        self.fetching("shut")
        began = time.monotonic()
        self.stop()
        self.assertLess(time.monotonic() - began, 2.0)
        self.assertFalse(self.root.is_symlink())

    def test_shutdown_waits_for_no_program_that_sets_a_priority(self) -> None:
        mark = self.host.root / "asked"
        self.program("renice", f"touch {mark}; exec sleep 60")
        self.enterContext(mock.patch.dict(os.environ, self.host.environment))
        self.start()
        self.announce(self.big("nice"))
        until(mark.exists, "the priority is being set")
        began = time.monotonic()
        self.stop()
        self.assertLess(time.monotonic() - began, 2.0)
        self.assertEqual(self.nix_processes(), {})

    def test_what_runs_since_is_compared_again(self) -> None:
        self.start()
        self.announce(self.v2)
        self.until_state(State.READY)
        other = self.nixery.system("other")
        with self.handover.at_work(other):
            self.host.boot(other)
        until(lambda: len(self.host.switches()) == 2, "it is looked at again")


if __name__ == "__main__":
    unittest.main()
