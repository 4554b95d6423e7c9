"""The long poll worker over real mTLS: what CI signed for this host goes to the reducer, and nothing else does."""

from __future__ import annotations

import json
import random
import threading
import unittest
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from nixfleet_agent import durable
from nixfleet_agent.config.model import TuningConfig
from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.runtime.dispatch.check import Gates
from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.rollout.inputs import Activate, Answer, ReplayRequested
from nixfleet_agent.runtime.workers.longpoll import LongPollWorker
from nixfleet_agent.state_machine.states import Policy
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.artifacts.release_base import FLEET_PATH, ROLLOUT, ReleaseTestCase, rollout_path, target
from tests.runtime.harness import until
from tests.runtime.parts import services
from tests.support.behaviours import Hang, Reply, Request
from tests.support.clock import PATIENCE
from tests.support.signing import CiSigner, Release, closure_name, manifest_value

PATH = "/v1/agent/dispatch"
RUNNING = closure_name("running")


class Longest(random.Random):
    """Full jitter without the jitter: always the longest wait."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


class Token(ShutdownToken):
    """Shows its event, on which the worker waits when it is at rest; for the reducer it waits on one of its own."""

    @property
    def event(self) -> threading.Event:
        return self._set


class LongPollTestCase(ReleaseTestCase):
    """A server that answers every poll at once, and a reducer that says what the test has put in ``answers``."""

    def setUp(self) -> None:
        super().setUp()
        self.config = self.configure(tuning=TuningConfig(backoff_initial=2.0, backoff_max=8.0))
        self.bodies: list[bytes | Reply] = []
        self.server.route("GET", PATH, handler=self._next_body)
        self.answers: list[tuple[Answer, str]] = []
        self.accepted: list[Acceptance] = []
        self.replays: list[ReplayRequested] = []
        self.until: list[float] = []
        self.hold: str | None = None
        self.window: str | None = None
        self.told_accepted: list[str] = []
        self.quarantine: str | None = None
        self.known: set[str] = set()
        self.read_current: Callable[[], str] = lambda: RUNNING
        self.shutdown = Token(self.clock)
        self.inputs = InputQueue(self.shutdown)
        self.on_activate: Callable[[], object] = lambda: None
        self.threads: list[threading.Thread] = []
        self.addCleanup(self.stop)
        self._start(self._reduce)
        self.worker = self.new_worker()

    def new_worker(self) -> LongPollWorker:
        gates = Gates(
            knows=lambda rollout_id: rollout_id in self.known,
            hold=lambda: self.hold,
            quarantined=lambda channel, closure: self.quarantine,
            read_current=lambda: self.read_current(),
            window=lambda: self.window,
            accepted=self.told_accepted.append,
        )
        parts = services(
            config=self.config,
            shutdown=self.shutdown,
            clock=self.clock,
            inputs=self.inputs,
            control_plane=self.control_plane,
            cache=self.cache,
            board=self.board,
        )
        return LongPollWorker(parts, gates, Longest())

    def _start(self, body: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=body)
        thread.start()
        self.threads.append(thread)
        return thread

    def _reduce(self) -> None:
        shutdown, inputs = self.shutdown, self.inputs
        while not shutdown.is_set:
            item = inputs.get(0.02)
            if isinstance(item, Activate):
                self.on_activate()
                self.until.append(item.until)
                answer, reason = self.answers.pop(0) if self.answers else (Answer.ACCEPTED, "")
                if answer is Answer.ACCEPTED:
                    self.accepted.append(item.acceptance)
                    self.known.add(item.acceptance.rollout_id)
                item.ack.reply(answer, reason)
            elif isinstance(item, ReplayRequested):
                self.replays.append(item)

    def _next_body(self, request: Request) -> Reply:
        body = self.bodies.pop(0) if self.bodies else Reply(204)
        return body if isinstance(body, Reply) else Reply(200, body)

    def stop(self) -> None:
        self.shutdown.set()
        self.control_plane.abort()
        for thread in self.threads:
            thread.join(30)
            self.assertFalse(thread.is_alive())

    def dispatch(self, release: Release, **changes: Any) -> bytes:
        body = {
            "hostname": "web-01",
            "rollout_id": release.rollout_id("stable"),
            "target_closure": target(release),
            "soak_due_at": format_time(self.clock.now() + timedelta(minutes=3)),
            "enqueued_at": format_time(self.clock.now()),
        }
        return json.dumps({**body, **changes}).encode()

    def run_worker(self, *bodies: bytes | Reply) -> None:
        """Start the worker, with these as the first answers, and let it come to rest after the first."""
        self.bodies += bodies
        self._start(self.worker.run)
        self.rest()

    def rest(self) -> None:
        """Until the worker sleeps, and not for the reducer's answer."""
        self.clock.until_waiting(on=self.shutdown.event)

    def seconds(self, count: int) -> None:
        """Let ``count`` seconds go by, the worker coming to rest after each."""
        for _ in range(count):
            self.clock.advance(1)
            self.rest()

    def until_asked(self, path: str) -> None:
        """Until the server has a request for ``path`` (which it may never answer)."""
        until(lambda: bool(self.asked(path)), f"a request for {path}")

    def waits(self) -> list[str]:
        """The ``wait`` of each poll so far."""
        return [request.query["wait"][0] for request in self.asked(PATH)]

    def pending(self) -> Any:
        """What is on disk as pending, None when nothing is."""
        path = self.state_dir / "pending-dispatch.json"
        return json.loads(path.read_bytes()) if path.exists() else None

    def refusals(self) -> list[tuple[str, str]]:
        """Outcome and label of what the status board shows."""
        return [(entry["outcome"], entry["label"]) for entry in self.board.snapshot().get("refusals", [])]

    def counted(self, name: str) -> dict[str, int]:
        return {next(iter(labels))[1]: n for (counter, labels), n in self.board.counters().items() if counter == name}


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


class RefusedForGood(LongPollTestCase):
    def refused(self, label: str, body: bytes) -> None:
        """``body`` is refused once, with ``label``, and never tried again."""
        with self.assertLogs("nixfleet_agent.longpoll", "ERROR") as logs:
            self.run_worker(body)
            self.seconds(1)
        self.assertEqual(len(logs.output), 1)
        polls = len(self.asked(rollout_path()))
        self.seconds(20)
        self.assertEqual(len(self.asked(rollout_path())), polls)
        self.assertEqual(self.refusals(), [("refused", label)])
        self.assertEqual(self.counted("dispatches_refused"), {label: 1})
        self.assertEqual((self.accepted, self.pending()), ([], None))

    def test_a_closure_that_ci_did_not_sign_for_this_host(self) -> None:
        release = self.publish()
        self.refused("closure_mismatch", self.dispatch(release, target_closure=target(release, "web-02")))

    def test_a_manifest_that_does_not_name_this_host(self) -> None:
        release = self.publish(self.release(hosts={"web-02": "stable"}))
        self.refused("host_not_in_manifest", self.dispatch(release))

    def test_a_manifest_that_names_this_host_twice(self) -> None:
        release = self.publish()
        value = manifest_value(release.fleet, "stable", release.closures, signed_at=self.clock.now())
        self.serve_artifact(rollout_path(), self.ci.sign({**value, "hostSet": [value["hostSet"][0]] * 2}))
        self.refused("duplicate_host", self.dispatch(release))

    def test_a_manifest_that_another_key_signed(self) -> None:
        release = self.publish()
        self.serve_artifact(rollout_path(), CiSigner().sign(release.rollout("stable").value))
        self.refused("bad_signature", self.dispatch(release))

    def test_a_manifest_of_another_rollout(self) -> None:
        release = self.publish()
        self.serve_artifact(rollout_path("stable@aaaa"), release.rollout("stable"))
        with self.assertLogs("nixfleet_agent.longpoll", "ERROR"):
            self.run_worker(self.dispatch(release, rollout_id="stable@aaaa"))
            self.seconds(1)
        self.assertEqual(self.refusals(), [("refused", "rollout_id")])

    def test_a_manifest_that_does_not_have_its_form(self) -> None:
        release = self.publish()
        self.serve_artifact(rollout_path(), self.ci.sign({**release.rollout("stable").value, "hostSet": {}}))
        self.refused("schema", self.dispatch(release))

    def test_a_dispatch_for_another_host(self) -> None:
        self.refused("host", self.dispatch(self.publish(), hostname="web-02"))

    def test_names_that_are_paths(self) -> None:
        release = self.publish()
        self.refused("pattern", self.dispatch(release, rollout_id="stable@../../../etc/passwd"))

    def test_closures_that_are_paths(self) -> None:
        self.refused("pattern", self.dispatch(self.publish(), target_closure="../" + closure_name("x")))

    def test_a_body_that_two_readers_understand_differently(self) -> None:
        release = self.publish()
        self.refused("pattern", b'{"hostname":"web-02",' + self.dispatch(release)[1:])

    def test_a_body_that_is_no_dispatch(self) -> None:
        self.refused("pattern", b'["\x1b[2J"]')

    def test_what_is_refused_does_not_replace_what_is_pending(self) -> None:
        release = self.release()
        with self.assertLogs("nixfleet_agent.longpoll", "ERROR"):
            self.run_worker(self.dispatch(release), self.dispatch(release, hostname="web-02"), b"{}")
            self.seconds(4)
        self.assertEqual(self.pending()["dispatch"]["hostname"], "web-01")


class KeptForLater(LongPollTestCase):
    def test_a_rollout_just_published_is_fetched_anew_until_it_is_there(self) -> None:
        release = self.release()
        with self.assertLogs("nixfleet_agent.longpoll", "WARNING") as logs:
            self.run_worker(self.dispatch(release))
            self.seconds(10)
        self.assertEqual(len(logs.output), 1)
        self.assertEqual(self.refusals(), [("kept", "status_404")])
        self.assertEqual(self.pending()["dispatch"]["rollout_id"], ROLLOUT)
        self.assertEqual(self.board.snapshot()["dispatch"]["label"], "status_404")
        self.publish(release)
        self.seconds(10)
        self.assertEqual(len(self.accepted), 1)
        self.assertIsNone(self.pending())
        self.assertIsNone(self.board.snapshot()["dispatch"])

    def test_the_long_poll_goes_on_with_a_short_wait(self) -> None:
        self.run_worker(self.dispatch(self.release()))
        self.seconds(6)
        self.assertEqual(self.waits()[0], "60")
        self.assertGreater(len(self.waits()), 3)
        self.assertTrue(all(1 <= int(wait) <= 8 for wait in self.waits()[1:]), self.waits())

    def test_stale_artifacts_pass_once_they_are_signed_again(self) -> None:
        release = self.publish()
        self.clock.advance(62 * 60)
        self.run_worker(self.dispatch(release))
        self.seconds(1)
        self.assertEqual(self.refusals(), [("kept", "stale")])
        self.publish()
        self.seconds(10)
        self.assertEqual(len(self.accepted), 1)

    def test_a_clock_that_is_behind_is_named_and_passes(self) -> None:
        release = self.publish()
        self.store.raise_marks(fleet=self.clock.now())
        self.clock.step(-7200)
        self.run_worker(self.dispatch(release))
        self.seconds(1)
        self.assertEqual(self.refusals(), [("kept", "clock_behind")])
        self.clock.step(7200)
        self.seconds(10)
        self.assertEqual(len(self.accepted), 1)

    def test_a_trust_file_that_is_invalid_keeps_it(self) -> None:
        release = self.publish()
        self.trust_path.write_bytes(b"")
        self.run_worker(self.dispatch(release))
        self.seconds(1)
        self.assertEqual(self.refusals(), [("kept", "trust_file")])
        self.trust_path.write_bytes(self.ci.trust_bytes())
        self.seconds(10)
        self.assertEqual(len(self.accepted), 1)

    def test_the_reducer_that_can_not_now_is_asked_again_with_everything_verified_again(self) -> None:
        release = self.publish()
        self.answers = [(Answer.NOT_NOW, "the rollback of stable@1 comes first")]
        self.run_worker(self.dispatch(release))
        self.seconds(1)
        self.assertIn("rollback", self.board.snapshot()["dispatch"]["reason"])
        self.assertIsNotNone(self.pending())
        self.seconds(10)
        self.assertEqual(len(self.accepted), 1)
        self.assertEqual((len(self.asked(rollout_path())), len(self.asked(FLEET_PATH))), (2, 2))

    def test_a_newer_dispatch_replaces_it(self) -> None:
        old = self.release()
        self.run_worker(self.dispatch(old))
        self.seconds(1)
        new = self.publish(self.release(commit="bbbb"))
        self.bodies.append(self.dispatch(new))
        self.seconds(10)
        self.assertEqual([got.rollout_id for got in self.accepted], ["stable@bbbb"])
        self.assertIsNone(self.pending())
        self.assertEqual(self.counted("dispatches")["replaced"], 1)

    def test_longer_than_the_channels_window_it_is_given_up(self) -> None:
        release = self.release(freshness_minutes=2)
        self.publish(release)
        self.cache.fetch_fleet()
        self.server.route("GET", rollout_path(), Reply(404))
        self.run_worker(self.dispatch(release))
        self.seconds(115)
        self.assertIsNotNone(self.pending())
        with self.assertLogs("nixfleet_agent.longpoll", "ERROR"):
            self.seconds(20)
        self.assertIsNone(self.pending())
        self.assertEqual(self.refusals()[-1], ("expired", "expired"))


class Held(LongPollTestCase):
    def test_a_hold_keeps_it_without_further_requests_and_without_the_window_running(self) -> None:
        release = self.publish(self.release(freshness_minutes=1))
        self.hold = "release freeze"
        self.run_worker(self.dispatch(release))
        self.seconds(1)
        self.assertEqual(self.refusals(), [("kept", "hold")])
        self.assertTrue(self.pending()["held"])
        self.seconds(200)
        self.assertEqual(len(self.asked(rollout_path())), 1)
        self.assertEqual(self.accepted, [])
        self.hold = None
        self.publish(self.release(freshness_minutes=1))
        self.seconds(15)
        self.assertEqual(len(self.accepted), 1)

    def test_a_maintenance_window_that_is_not_open_keeps_it_as_a_hold_does(self) -> None:
        self.window = "no maintenance window is open"
        self.run_worker(self.dispatch(self.publish(self.release(freshness_minutes=1))))
        self.seconds(200)
        self.assertEqual((self.accepted, self.refusals()), ([], [("kept", "window")]))
        self.assertTrue(self.pending()["held"])
        self.assertEqual(self.told_accepted, [])
        self.window = None
        self.publish(self.release(freshness_minutes=1))
        self.seconds(15)
        self.assertEqual(len(self.accepted), 1)
        self.assertEqual(self.told_accepted, [ROLLOUT])

    def test_a_refusal_is_told_under_a_hold_too(self) -> None:
        release = self.publish()
        self.hold = "release freeze"
        with self.assertLogs("nixfleet_agent.longpoll", "ERROR"):
            self.run_worker(self.dispatch(release, target_closure=closure_name("evil")))
            self.seconds(1)
        self.assertEqual(self.refusals(), [("refused", "closure_mismatch")])

    def test_a_quarantined_closure_is_not_activated_until_it_is_cleared(self) -> None:
        release = self.publish()
        self.quarantine = "failed an hour ago"
        self.run_worker(self.dispatch(release))
        self.seconds(30)
        self.assertEqual((self.accepted, self.refusals()), ([], [("kept", "quarantine")]))
        self.quarantine = None
        self.seconds(10)
        self.assertEqual(len(self.accepted), 1)


class Polling(LongPollTestCase):
    def test_a_server_that_ignores_wait_is_asked_once_a_second(self) -> None:
        self.run_worker()
        self.seconds(20)
        self.assertEqual(len(self.asked(PATH)), 21)
        self.assertEqual(set(self.waits()), {"60"})

    def test_empty_and_null_bodies_are_no_work(self) -> None:
        self.run_worker(b"", b"null", b" null\n")
        self.seconds(4)
        self.assertEqual(self.counted("dispatches"), {})

    def test_errors_are_said_once_for_each_reason_and_backed_off(self) -> None:
        with self.assertLogs("nixfleet_agent.longpoll", "INFO") as logs:
            self.run_worker(*[Reply(503, b"no")] * 6, *[Reply(401)] * 2)
            while len(self.asked(PATH)) < 9:
                self.seconds(1)
            self.seconds(1)
        levels = [record.levelname for record in logs.records]
        self.assertEqual(levels, ["WARNING", "WARNING", "INFO"])

    def test_retry_after_is_honoured(self) -> None:
        self.run_worker(Reply(429, b"", {"Retry-After": "30"}))
        self.seconds(29)
        self.assertEqual(len(self.asked(PATH)), 1)
        self.seconds(2)
        self.assertGreaterEqual(len(self.asked(PATH)), 2)

    def test_redirects_are_not_followed(self) -> None:
        self.server.route("GET", "/elsewhere", Reply(200, self.dispatch(self.publish())))
        self.run_worker(Reply(302, b"", {"Location": self.server.url + "/elsewhere"}))
        self.seconds(5)
        self.assertEqual((self.asked("/elsewhere"), self.accepted), ([], []))

    def test_a_poll_that_hangs_ends_with_shutdown(self) -> None:
        self.server.route("GET", PATH, Hang())
        self._start(self.worker.run)
        self.until_asked(PATH)
        self.stop()


if __name__ == "__main__":
    unittest.main()
