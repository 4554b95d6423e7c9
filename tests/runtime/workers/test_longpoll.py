"""The long poll worker over real mTLS: what CI signed for this host goes to the reducer, and nothing else does."""

from __future__ import annotations

import threading
import unittest
from datetime import timedelta
from pathlib import Path
from unittest import mock

from nixfleet_agent import durable
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.rollout.inputs import Answer, ReplayRequested
from nixfleet_agent.state_machine.states import Policy
from tests.artifacts.release_base import FLEET_PATH, ROLLOUT, rollout_path, target
from tests.runtime.harness import until
from tests.runtime.workers.longpoll_case import RUNNING, LongPollTestCase, Token
from tests.support.behaviours import Hang
from tests.support.clock import PATIENCE


class Accepting(LongPollTestCase):
    def test_hands_over_what_was_signed_and_the_closure_that_runs(self) -> None:
        release = self.publish(self.release(soak_minutes=7, policy="halt", freshness_minutes=30))
        self.run_worker(self.dispatch(release))
        self.seconds(1)
        (got,) = self.accepted
        self.assertEqual((got.rollout_id, got.target_closure, got.current_closure), (ROLLOUT, target(release), RUNNING))
        self.assertEqual((got.soak_floor, got.policy), (7, Policy.HALT))
        self.assertEqual((got.fleet_hash, got.manifest_hash), (release.fleet.hash, release.rollout("stable").hash))
        self.assertEqual(got.marks["channels"], {"stable": "2026-05-16T01:00:00.000000Z"})
        self.assertIsNone(self.pending())
        self.assertEqual(self.counted("dispatches"), {"received": 1, "accepted": 1})

    def test_it_is_durable_before_the_reducer_hears_of_it_and_nothing_is_cached_before_the_acknowledgement(
        self,
    ) -> None:
        release = self.publish()
        steps: list[str] = []
        before, durable.boundary = durable.boundary, lambda step, path: steps.append(f"{step} {path.name}")
        self.addCleanup(setattr, durable, "boundary", before)
        at_reducer: list[list[str]] = []
        self.on_activate = lambda: at_reducer.append(list(steps))
        self.run_worker(self.dispatch(release))
        self.seconds(1)
        written = [f"{step} pending-dispatch.json" for step in ("create", "fsync", "rename")] + ["fsync-dir state"]
        self.assertEqual(at_reducer, [written])
        # The acknowledgement is written and sent by others now: no fsync of this worker competes with theirs.
        self.assertEqual(steps, [*written, "remove pending-dispatch.json"])

    def test_a_slow_disk_holds_up_no_request_but_the_reducer_hears_of_it_afterwards(self) -> None:
        release = self.publish()
        disk_works = threading.Event()
        before = durable.boundary

        def boundary(step: str, path: Path) -> None:
            disk_works.wait(PATIENCE)

        durable.boundary = boundary
        self.addCleanup(setattr, durable, "boundary", before)
        self.addCleanup(disk_works.set)
        heard: list[bool] = []
        self.on_activate = lambda: heard.append(disk_works.is_set())
        self.bodies.append(self.dispatch(release))
        self._start(self.worker.run)
        self.until_asked(f"{FLEET_PATH}/sig")  # the last of all, and the disk has not answered yet
        disk_works.set()
        self.rest()
        self.assertEqual(heard, [True])

    def test_what_verified_for_a_dispatch_that_must_wait_is_cached_and_marked_at_once(self) -> None:
        release = self.publish()
        self.quarantine = "it failed here"
        self.run_worker(self.dispatch(release))
        self.seconds(1)
        self.assertEqual(self.accepted, [])
        self.assertTrue((self.state_dir / "fleet" / "fleet.resolved.json").exists())
        self.assertEqual(self.marks_on_disk()["channels"], {"stable": "2026-05-16T01:00:00.000000Z"})

    def test_a_dispatch_of_a_rollout_that_ran_here_is_dropped_without_a_request(self) -> None:
        release = self.publish()
        self.known.add(ROLLOUT)
        self.run_worker(self.dispatch(release))
        self.seconds(1)
        self.assertEqual((self.accepted, self.pending()), ([], None))
        self.assertEqual(self.counted("dispatches"), {"received": 1, "repeat": 1})
        self.assertEqual(self.asked(rollout_path()), [])

    def test_a_dispatch_of_a_rollout_that_ran_here_asks_for_its_whole_log_and_is_said_once(self) -> None:
        """Whoever asks for it again has lost what was told of it."""
        release = self.publish()
        self.known.add(ROLLOUT)
        with self.assertLogs("nixfleet_agent.longpoll", "INFO") as logs:
            self.run_worker(self.dispatch(release), self.dispatch(release))
            self.seconds(1)
            until(lambda: len(self.replays) == 2, "both asked")
        self.assertEqual(self.replays, [ReplayRequested((ROLLOUT,), 1)] * 2)
        self.assertEqual(sum("repeat" in line for line in logs.output), 1)

    def test_a_planner_that_gives_a_pending_turn_again_at_each_tick_costs_nothing(self) -> None:
        """New times on the same turn are no news: it is logged once, and nothing is fetched before its next try."""
        self.hold = "audit"
        release = self.publish()
        with self.assertLogs("nixfleet_agent.longpoll", "INFO") as logs:
            self.run_worker(self.dispatch(release))
            self.seconds(1)
            asked = len(self.asked(rollout_path()))
            for second in range(3):
                at = format_time(self.clock.now() + timedelta(seconds=second))
                self.bodies.append(self.dispatch(release, enqueued_at=at, soak_due_at=at))
                self.seconds(1)
        self.assertEqual(len(self.asked(rollout_path())), asked)
        self.assertEqual(self.counted("dispatches"), {"received": 4, "kept": 1})
        self.assertEqual(sum("kept for later" in line for line in logs.output), 1)
        self.assertFalse(any("replaces" in line for line in logs.output))

    def test_a_repeat_of_what_ran_here_does_not_replace_what_is_pending(self) -> None:
        """The queue of the control plane forgets what it has handed out: what is kept may never come again."""
        kept = self.dispatch(self.release(commit="fff000"))
        self.known.add(ROLLOUT)
        self.run_worker(kept, self.dispatch(self.release()))
        self.seconds(1)
        self.assertEqual(self.counted("dispatches"), {"received": 2, "repeat": 1, "kept": 1})
        self.assertEqual(self.pending()["dispatch"]["rollout_id"], "stable@fff000")
        with mock.patch.object(durable, "write", side_effect=AssertionError("a repeat is written to disk")):
            self.bodies.append(self.dispatch(self.release()))
            self.seconds(2)
        self.assertEqual(self.counted("dispatches")["repeat"], 2)

    def test_what_was_verified_may_wait_a_minute_for_the_reducer_and_no_longer(self) -> None:
        self.run_worker(self.dispatch(self.publish()))
        self.seconds(1)
        self.assertEqual(self.until, [self.clock.monotonic() - 1 + 60.0])

    def test_the_control_plane_makes_a_soak_at_most_a_day_longer_than_it_is_signed_for(self) -> None:
        at = "9999-12-31T23:59:59.999999Z"
        self.run_worker(self.dispatch(self.publish(self.release(soak_minutes=7)), soak_due_at=at))
        self.seconds(1)
        [acceptance] = self.accepted
        self.assertEqual(acceptance.soak_due_at, acceptance.accepted_at + timedelta(days=1, minutes=7))

    def test_the_reducers_repeat_ends_it_too(self) -> None:
        self.answers = [(Answer.REPEAT, "ran already")]
        self.run_worker(self.dispatch(self.publish()))
        self.seconds(1)
        self.assertIsNone(self.pending())

    def test_a_dispatch_left_by_the_last_process_is_taken_up(self) -> None:
        release = self.publish()
        self.server.route("GET", rollout_path(), Hang())
        self.bodies.append(self.dispatch(release))
        self._start(self.worker.run)
        self.until_asked(rollout_path())
        self.stop()
        self.assertEqual(self.pending()["dispatch"]["rollout_id"], ROLLOUT)

        self.shutdown = Token(self.clock)
        self.inputs = InputQueue(self.shutdown)
        self.control_plane = self.connect(self.server)
        self.store, self.cache = self.restarted()
        self._start(self._reduce)
        self.publish(release)
        self.worker = self.new_worker()
        self.run_worker()
        self.seconds(1)
        self.assertEqual([a.target_closure for a in self.accepted], [target(release)])
        self.assertIsNone(self.pending())

    def test_a_full_disk_does_not_lose_a_dispatch_that_can_be_accepted(self) -> None:
        release = self.publish()
        (self.state_dir / "pending-dispatch.json").mkdir()
        with self.assertLogs("nixfleet_agent.longpoll", "WARNING") as logs:
            self.run_worker(self.dispatch(release))
            self.seconds(1)
        self.assertIn("kept in memory only", "".join(logs.output))
        self.assertEqual(len(self.accepted), 1)

    def test_a_dispatch_that_could_not_be_written_outlives_the_workers_restart(self) -> None:
        release = self.publish()
        (self.state_dir / "pending-dispatch.json").mkdir()
        calls = iter([RuntimeError("unforeseen")])

        def current() -> str:
            for error in calls:
                raise error
            return RUNNING

        self.read_current = current
        self.bodies.append(self.dispatch(release))
        with self.assertLogs("nixfleet_agent.longpoll", "WARNING"):
            with self.assertRaisesRegex(RuntimeError, "unforeseen"):
                self._until_it_dies()
            self.run_worker()
        self.assertEqual([got.rollout_id for got in self.accepted], [ROLLOUT])

    def _until_it_dies(self) -> None:
        died: list[Exception] = []

        def run() -> None:
            try:
                self.worker.run()
            except RuntimeError as error:
                died.append(error)

        # A second at a time, and only while it sleeps: a clock that ran ahead of a slow machine would have the Dispatch
        # expire before its first try, and nothing to die of.
        thread = self._start(run)
        while thread.is_alive():
            if self.clock.waits(self.shutdown.event):
                self.clock.advance(1)
            thread.join(0.01)
        raise died[0]


if __name__ == "__main__":
    unittest.main()
