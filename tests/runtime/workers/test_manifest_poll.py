"""The manifest poll over real mTLS: a set of what verifies, and what fails leaves what was there before."""

from __future__ import annotations

import json
import threading
import unittest

from nixfleet_agent.runtime.first_signed import FILE_NAME
from nixfleet_agent.runtime.release import RELEASE, SignedRelease
from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.rollout.inputs import ManifestSetUpdated
from nixfleet_agent.runtime.workers.manifest_poll import ManifestPollWorker
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.artifacts.release_base import FLEET_PATH, ReleaseTestCase, rollout_path, target
from tests.runtime.parts import services
from tests.support.behaviours import Reply
from tests.support.signing import CiSigner, Signed

BOTH = ("edge@def4567abc", "stable@def4567abc")


class ManifestPoll(ReleaseTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.shutdown = ShutdownToken(self.clock)
        self.inputs = InputQueue(self.shutdown)
        self.worker = self.started()
        self.addCleanup(self.control_plane.abort)
        self.addCleanup(self.shutdown.set)

    def started(self) -> ManifestPollWorker:
        """The worker of a process that has just begun."""
        self.board.publish(RELEASE, None)
        return ManifestPollWorker(
            services(
                shutdown=self.shutdown,
                clock=self.clock,
                inputs=self.inputs,
                cache=self.cache,
                board=self.board,
                config=self.config,
            )
        )

    def updated(self) -> ManifestSetUpdated | None:
        item = self.inputs.get(0.0)
        assert item is None or isinstance(item, ManifestSetUpdated)
        return item

    def test_the_set_has_a_rollout_for_each_channel_with_hosts_and_is_cached_on_disk(self) -> None:
        release = self.publish()
        self.assertTrue(self.worker.poll())
        self.assertEqual(self.updated(), ManifestSetUpdated(release.fleet.hash, self.clock.now(), BOTH))
        cached = sorted(path.name for path in (self.state_dir / "rollouts").iterdir())
        self.assertEqual(cached, [f"{rollout}.{suffix}" for rollout in BOTH for suffix in ("json", "sig")])
        self.assertEqual(set(self.marks_on_disk()["channels"]), {"edge", "stable"})

    def test_what_ci_signed_for_this_host_is_at_hand_and_forgotten_when_it_leaves_the_fleet(self) -> None:
        release, first = self.publish(), self.clock.now()
        self.worker.poll()
        self.assertEqual(self.board.read(RELEASE), SignedRelease(BOTH[1], target(release), first, first))
        self.clock.advance(60)
        self.publish()  # signed again, the same closures
        self.worker.poll()
        self.assertEqual(self.board.read(RELEASE), SignedRelease(BOTH[1], target(release), self.clock.now(), first))
        self.clock.advance(60)
        self.publish(self.release(hosts={"web-02": "stable"}))
        self.worker.poll()
        self.assertIsNone(self.board.read(RELEASE))

    def test_how_long_a_release_is_withheld_does_not_begin_anew_with_the_agent(self) -> None:
        release, first = self.publish(), self.clock.now()
        self.worker.poll()
        for _ in range(2):
            self.clock.advance(3600)
            self.publish()  # signed again, the same closures
            worker = self.started()
            worker.poll()
            self.assertEqual(self.board.read(RELEASE), SignedRelease(BOTH[1], target(release), self.clock.now(), first))
        (self.state_dir / FILE_NAME).write_text('{"rolloutId": 1}')
        worker = self.started()
        with self.assertLogs("nixfleet_agent.manifest_poll", "WARNING") as logs:
            worker.poll()
        self.assertIn("counts from now on", logs.output[0])
        self.assertEqual(json.loads((self.state_dir / FILE_NAME).read_text())["targetClosure"], target(release))

    def test_a_disk_that_refuses_costs_nothing_else(self) -> None:
        (self.state_dir / FILE_NAME).mkdir()
        self.publish()
        with self.assertLogs("nixfleet_agent.manifest_poll", "WARNING"):
            self.assertTrue(self.worker.poll())
        self.assertIsNotNone(self.board.read(RELEASE))

    def test_a_fleet_that_fails_keeps_the_set(self) -> None:
        self.publish()
        self.worker.poll()
        self.updated()
        for broken in (Reply(503), Reply(200, b"{}"), Reply(404)):
            self.server.route("GET", FLEET_PATH, broken)
            with self.assertLogs("nixfleet_agent.manifest_poll", "WARNING"):
                self.assertFalse(self.worker.poll())
            self.assertIsNone(self.updated())

    def test_what_the_long_poll_accepted_is_cached_without_a_fleet_too(self) -> None:
        release = self.publish()
        self.cache.terms("stable@def4567abc", "web-01", target(release))
        self.server.route("GET", FLEET_PATH, Reply(503))
        self.assertFalse((self.state_dir / "rollouts").exists())
        with self.assertLogs("nixfleet_agent.manifest_poll", "WARNING"):
            self.assertFalse(self.worker.poll())
        self.assertTrue((self.state_dir / "rollouts" / "stable@def4567abc.json").exists())
        self.assertEqual(set(self.marks_on_disk()["channels"]), {"stable"})

    def test_a_channel_that_fails_keeps_its_previous_rollout_and_the_others_go_on(self) -> None:
        self.publish()
        self.worker.poll()
        self.updated()
        self.clock.advance(5)
        newer = self.publish(self.release(commit="bbbb"))
        stable = newer.rollout("stable")
        self.serve_artifact(rollout_path("stable@bbbb"), Signed(stable.raw, CiSigner().signature(stable.raw)))
        with self.assertLogs("nixfleet_agent.manifest_poll", "WARNING") as logs:
            self.worker.poll()
            self.worker.poll()
        self.assertEqual(len(logs.output), 1)
        got = self.updated()
        self.assertEqual(got and got.rollouts, ("edge@bbbb", "stable@def4567abc"))

    def test_a_manifest_that_pins_another_fleet_is_not_taken(self) -> None:
        self.publish()
        self.serve_artifact(FLEET_PATH, self.release(policy="halt").fleet)
        with self.assertLogs("nixfleet_agent.manifest_poll", "WARNING"):
            self.worker.poll()
        got = self.updated()
        self.assertEqual(got and got.rollouts, ())
        self.assertEqual(self.store.marks.channels, {})

    def test_a_commit_that_makes_no_rollout_id_is_not_asked_for(self) -> None:
        for commit in ("../../etc", "a" * 65, None):
            self.clock.advance(1)
            value = self.release().fleet.value
            value["meta"]["ciCommit"] = commit
            self.serve_artifact(FLEET_PATH, self.ci.sign(value))
            with self.subTest(commit=commit), self.assertLogs("nixfleet_agent.manifest_poll", "WARNING"):
                self.worker.poll()
        self.assertEqual({request.path for request in self.server.requests}, {FLEET_PATH, f"{FLEET_PATH}/sig"})

    def test_polls_at_once_and_every_interval_and_is_quiet_about_it(self) -> None:
        self.publish(etags=True)
        with self.assertNoLogs("nixfleet_agent", "INFO"):
            thread = threading.Thread(target=self.worker.run)
            thread.start()
            for turn in range(1, 4):
                self.clock.until_waiting()
                self.assertEqual(len(self.asked(FLEET_PATH)), turn)
                self.clock.advance(30)
            self.clock.until_waiting()
            self.shutdown.set()
            thread.join(30)
        self.assertFalse(thread.is_alive())

    def test_a_fleet_that_can_not_be_had_is_tried_again_before_the_interval_is_over(self) -> None:
        with self.assertLogs("nixfleet_agent.manifest_poll", "WARNING") as logs:
            thread = threading.Thread(target=self.worker.run)
            thread.start()
            self.clock.until_waiting()
            self.clock.advance(1)
            self.clock.until_waiting()
            self.shutdown.set()
            thread.join(30)
        self.assertEqual(len(self.asked(FLEET_PATH)), 2)
        self.assertEqual(len(logs.output), 1)


if __name__ == "__main__":
    unittest.main()
