"""Dispatches that the long poll refuses for good, or keeps for later."""

from __future__ import annotations

import unittest

from nixfleet_agent.runtime.rollout.inputs import Answer
from tests.artifacts.release_base import FLEET_PATH, ROLLOUT, rollout_path, target
from tests.runtime.workers.longpoll_case import LongPollTestCase
from tests.support.behaviours import Reply
from tests.support.signing import CiSigner, closure_name, manifest_value


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


if __name__ == "__main__":
    unittest.main()
