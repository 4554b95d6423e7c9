"""Signed artifacts from the wire and from disk: verified before they count, judged again when they are used."""

from __future__ import annotations

import threading
import unittest
from datetime import timedelta
from unittest import mock

from nixfleet_agent.artifacts import fetch
from nixfleet_agent.artifacts.fetch import UnavailableError
from nixfleet_agent.errors import TransportError
from nixfleet_agent.state_machine.states import Policy
from nixfleet_agent.trust import errors
from tests.artifacts.release_base import FLEET_PATH, MINUTE, ROLLOUT, ReleaseTestCase, rollout_path, target
from tests.support.behaviours import Reply, Request
from tests.support.clock import PATIENCE
from tests.support.signing import CiSigner, Signed, closure_name, manifest_value


class Fetching(ReleaseTestCase):
    def test_a_good_fleet_lifts_its_mark(self) -> None:
        release = self.publish()
        self.assertEqual(self.cache.fetch_fleet().hash, release.fleet.hash)
        self.assertEqual(self.store.marks.fleet, self.clock.now())

    def test_accept_headers_are_those_of_the_protocol(self) -> None:
        self.publish()
        self.cache.fetch_fleet()
        accepts = {request.path: request.headers["Accept"] for request in self.server.requests}
        self.assertEqual(accepts, {FLEET_PATH: "application/json", f"{FLEET_PATH}/sig": "application/octet-stream"})

    def test_unchanged_by_the_servers_word_is_judged_and_not_fetched(self) -> None:
        self.publish(etags=True)
        first = self.cache.fetch_fleet()
        self.assertIs(self.cache.fetch_fleet(), first)
        self.assertIsNotNone(self.asked(FLEET_PATH)[1].headers["If-None-Match"])
        self.clock.advance(62 * 60)
        self.assertRaises(errors.StaleError, self.cache.fetch_fleet)
        manifest = self.cache.fetch_manifest(ROLLOUT, window=None)
        self.assertIs(self.cache.fetch_manifest(ROLLOUT, window=None), manifest)

    def test_anew_asks_for_the_bytes(self) -> None:
        self.publish(etags=True)
        self.cache.fetch_fleet()
        self.cache.fetch_fleet(anew=True)
        self.assertIsNone(self.asked(FLEET_PATH)[1].headers["If-None-Match"])

    def test_unchanged_without_having_asked_is_no_artifact(self) -> None:
        self.publish()
        self.server.route("GET", FLEET_PATH, Reply(304))
        self.assertRaises(UnavailableError, self.cache.fetch_fleet)

    def test_a_tag_that_no_header_may_have_is_not_sent_back(self) -> None:
        release = self.publish()
        for tag in ('"caf\xe9"', '"a b"', '"' + "x" * 300 + '"', '"a"b"', "\x7f"):
            with self.subTest(tag):
                self.server.route("GET", FLEET_PATH, Reply(200, release.fleet.raw, {"ETag": tag}))
                self.cache.fetch_fleet()
                self.cache.fetch_fleet()
                self.assertIsNone(self.asked(FLEET_PATH)[-1].headers["If-None-Match"])
        for tag in ('"abc"', 'W/"abc"', "unquoted"):
            with self.subTest(tag):
                self.server.route("GET", FLEET_PATH, Reply(200, release.fleet.raw, {"ETag": tag}))
                self.cache.fetch_fleet()
                self.cache.fetch_fleet()
                self.assertEqual(self.asked(FLEET_PATH)[-1].headers["If-None-Match"], tag)

    def test_after_any_4xx_the_tag_is_dropped(self) -> None:
        """A front that objects to the tag would otherwise keep the host from every fleet to come."""
        release = self.publish(etags=True)
        for get in (self.cache.fetch_fleet, lambda: self.cache.fetch_manifest(ROLLOUT, window=None)):
            path = FLEET_PATH if get == self.cache.fetch_fleet else rollout_path()
            get()
            self.server.route("GET", path, Reply(400, b"bad header"))
            self.assertRaises(UnavailableError, get)
            self.assertIsNotNone(self.asked(path)[-1].headers["If-None-Match"])
            self.publish(release, etags=True)
            get()
            self.assertIsNone(self.asked(path)[-1].headers["If-None-Match"])
        self.server.route("GET", FLEET_PATH, Reply(503))
        self.assertRaises(UnavailableError, self.cache.fetch_fleet)
        self.publish(release, etags=True)
        self.cache.fetch_fleet()
        self.assertIsNotNone(self.asked(FLEET_PATH)[-1].headers["If-None-Match"])

    def test_one_artifact_is_fetched_at_a_time(self) -> None:
        release, together, most = self.publish(), [0], []

        def count(request: Request) -> Reply:
            together[0] += 1
            most.append(together[0])
            threading.Event().wait(0.1)
            together[0] -= 1
            return Reply(200, release.fleet.raw)

        self.server.route("GET", FLEET_PATH, handler=count)
        threads = [threading.Thread(target=self.cache.fetch_fleet) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        self.assertEqual(most, [1, 1, 1])

    def test_who_waits_for_another_ones_artifact_waits_no_longer_than_for_its_own(self) -> None:
        self.publish()
        short, caught = mock.patch.object(fetch, "BODY_DEADLINE", 0.2), self.assertRaises(TransportError)
        with short, self.cache._turn(), caught:
            self.cache.fetch_fleet()
        self.assertEqual(caught.exception.kind, "timeout")
        self.cache.fetch_fleet()

    def test_an_answer_that_is_no_artifact_says_when_to_come_again(self) -> None:
        self.server.route("GET", FLEET_PATH, Reply(503, b"later\x1b[31m", {"Retry-After": "7"}))
        with self.assertRaises(UnavailableError) as caught:
            self.cache.fetch_fleet()
        self.assertEqual((caught.exception.retry_after, caught.exception.kind), (7.0, "status_503"))
        self.assertNotIn("\x1b", str(caught.exception))

    def test_a_publication_between_body_and_signature_is_fetched_once_more(self) -> None:
        release = self.publish()
        old = CiSigner().sign(release.fleet.value)
        self.server.route("GET", f"{FLEET_PATH}/sig", Reply(200, old.signature), Reply(200, release.fleet.signature))
        self.assertEqual(self.cache.fetch_fleet().hash, release.fleet.hash)
        self.assertEqual(len(self.asked(FLEET_PATH)), 2)
        self.assertEqual(self.failures(), {})

    def test_a_bad_signature_is_refused_after_the_second_look_and_counted_once(self) -> None:
        release = self.release()
        self.serve_artifact(FLEET_PATH, Signed(release.fleet.raw, bytes(64)))
        self.assertRaises(errors.BadSignatureError, self.cache.fetch_fleet)
        self.assertEqual(self.failures(), {"bad_signature": 1})
        self.assertIsNone(self.store.marks.fleet)

    def test_a_body_over_the_limit_is_not_read_to_its_end(self) -> None:
        self.server.route("GET", f"{FLEET_PATH}/sig", Reply(200, bytes(5000)))
        self.server.route("GET", FLEET_PATH, Reply(200, b"{}"))
        with self.assertRaises(TransportError) as caught:
            self.cache.fetch_fleet()
        self.assertEqual(caught.exception.kind, "too_large")

    def test_a_replay_inside_its_window_is_refused(self) -> None:
        old = self.release()
        self.clock.advance(10)
        self.publish()
        self.cache.fetch_fleet()
        self.cache.terms(ROLLOUT, "web-01", target(old))
        self.publish(old)
        self.assertRaises(errors.OlderThanAcceptedError, self.cache.fetch_fleet)
        with self.assertRaises(errors.OlderThanAcceptedError):
            self.cache.terms(ROLLOUT, "web-01", target(old), anew=True)

    def test_a_trust_file_that_became_invalid_fails_closed(self) -> None:
        self.publish()
        self.cache.fetch_fleet()
        self.trust_path.write_bytes(b"{}")
        self.assertRaises(errors.TrustFileError, self.cache.fetch_fleet)

    def test_a_key_that_was_taken_out_is_not_believed_for_bytes_seen_before(self) -> None:
        self.publish(etags=True)
        self.cache.fetch_fleet()
        self.trust_path.write_bytes(CiSigner().trust_bytes())
        self.assertRaises(errors.BadSignatureError, self.cache.fetch_fleet)

    def test_an_id_that_leaves_its_folder_is_never_asked_for(self) -> None:
        for bad in ("../fleet.resolved", "stable@../../x", "stable@abc\n", "stable@"):
            with self.subTest(bad=bad), self.assertRaises(Exception) as caught:
                self.cache.fetch_manifest(bad, window=None)
            self.assertIn("rollout id", str(caught.exception))
        self.assertEqual(self.server.requests, [])


class Resolving(ReleaseTestCase):
    def test_terms_are_the_signed_ones_and_lift_the_marks(self) -> None:
        release = self.publish(self.release(policy="halt", soak_minutes=4, freshness_minutes=30))
        terms = self.cache.terms(ROLLOUT, "web-01", target(release))
        self.assertEqual((terms.resolved.policy, terms.resolved.soak_floor_minutes), (Policy.HALT, 4))
        self.assertEqual(terms.window, 30 * MINUTE)
        self.assertEqual(terms.marks.channels, {"stable": self.clock.now()})
        self.assertEqual(terms.marks, self.store.marks)

    def test_a_manifest_of_a_channel_that_the_host_left_and_came_back_to_is_not_older_than_what_it_accepted(
        self,
    ) -> None:
        """The newest fleet has the host on the channel again, so nothing but the host's own mark stands in the way."""
        old = self.release(hosts={"web-01": "edge"}, commit="aaaa111")
        self.clock.advance(10)
        left = self.publish(self.release(hosts={"web-01": "stable"}, commit="bbbb222"))
        self.cache.terms(left.rollout_id("stable"), "web-01", target(left))
        self.clock.advance(10)
        self.publish(old)
        again = self.publish(self.release(hosts={"web-01": "edge"}, commit="cccc333"))
        for cache in (self.cache, self.restarted()[1]):
            with self.assertRaises(errors.OlderThanAcceptedError):
                cache.terms(old.rollout_id("edge"), "web-01", target(old))
            self.cache.flush()
        self.cache.terms(again.rollout_id("edge"), "web-01", target(again))

    def test_what_is_remembered_is_judged_at_the_moment_it_is_asked_for_and_nobody_is_asked(self) -> None:
        release = self.publish(self.release(freshness_minutes=30))
        fleet = self.cache.fetch_fleet()
        with self.assertRaisesRegex(TransportError, "not at hand"):
            self.cache.known_terms(ROLLOUT, "web-01", target(release))
        self.cache.fetch_pinned(ROLLOUT, fleet)
        asked, marks = len(self.server.requests), self.store.marks
        terms = self.cache.known_terms(ROLLOUT, "web-01", target(release))
        self.assertEqual((terms.manifest.manifest.rollout_id, terms.window), (ROLLOUT, 30 * MINUTE))
        for hostname, closure, refusal in (
            ("web-01", closure_name("other"), errors.ClosureMismatchError),
            ("web-09", target(release), errors.HostNotInManifestError),
        ):
            self.assertRaises(refusal, self.cache.known_terms, ROLLOUT, hostname, closure)
        self.clock.advance(32 * 60)
        self.assertRaises(errors.StaleError, self.cache.known_terms, ROLLOUT, "web-01", target(release))
        self.clock.step(-32 * 60)
        self.trust_path.write_bytes(CiSigner().trust_bytes())
        self.assertRaises(errors.BadSignatureError, self.cache.known_terms, ROLLOUT, "web-01", target(release))
        self.assertEqual((len(self.server.requests), self.store.marks), (asked, marks))

    def test_what_is_remembered_is_refused_once_a_newer_manifest_was_accepted(self) -> None:
        old = self.publish(self.release(hosts={"web-01": "stable"}))
        self.cache.fetch_pinned(ROLLOUT, self.cache.fetch_fleet())
        self.clock.advance(10)
        newer = self.publish(self.release(hosts={"web-01": "edge"}, commit="cccc333"))
        self.cache.terms(newer.rollout_id("edge"), "web-01", target(newer))
        self.assertRaises(errors.VerificationError, self.cache.known_terms, ROLLOUT, "web-01", target(old))

    def test_the_configured_window_overrides_the_signed_one(self) -> None:
        release = self.publish()
        self.config = self.configure(manifest_freshness_window_secs=120.0)
        cache = self.new_cache(self.store)
        self.clock.advance(181)
        with self.assertRaises(errors.StaleError):
            cache.terms(ROLLOUT, "web-01", target(release))
        self.assertEqual(cache.window_of("stable"), timedelta(seconds=120))

    def test_another_closure_is_refused_before_the_fleet_is_asked_for(self) -> None:
        self.publish()
        with self.assertRaises(errors.ClosureMismatchError):
            self.cache.terms(ROLLOUT, "web-01", closure_name("evil"))
        self.assertEqual(self.asked(FLEET_PATH), [])
        self.assertEqual(self.store.marks.channels, {})
        self.assertEqual(self.failures(), {"closure_mismatch": 1})

    def test_the_pinned_fleet_at_hand_is_not_fetched_again(self) -> None:
        release = self.publish()
        self.cache.fetch_fleet()
        self.cache.terms(ROLLOUT, "web-01", target(release))
        self.assertEqual(len(self.asked(FLEET_PATH)), 1)
        self.cache.terms(ROLLOUT, "web-01", target(release), anew=True)
        self.assertEqual(len(self.asked(FLEET_PATH)), 2)

    def test_the_pinned_fleet_at_hand_is_not_used_once_it_is_stale(self) -> None:
        release = self.publish()
        self.cache.fetch_fleet()
        self.clock.advance(62 * 60)
        with self.assertRaises(errors.StaleError):
            self.cache.terms(ROLLOUT, "web-01", target(release))
        self.assertEqual(len(self.asked(FLEET_PATH)), 2)

    def test_a_fleet_one_step_behind_is_fetched_once_more(self) -> None:
        old = self.release()
        self.clock.advance(1)
        new = self.publish()
        self.server.route("GET", FLEET_PATH, Reply(200, old.fleet.raw), Reply(200, new.fleet.raw))
        self.server.route("GET", f"{FLEET_PATH}/sig", Reply(200, old.fleet.signature), Reply(200, new.fleet.signature))
        self.assertEqual(self.cache.terms(ROLLOUT, "web-01", target(new)).fleet.hash, new.fleet.hash)
        self.assertEqual(len(self.asked(FLEET_PATH)), 2)

    def test_a_fleet_that_stays_behind_is_a_mismatch(self) -> None:
        old = self.release()
        self.clock.advance(1)
        new = self.publish()
        self.serve_artifact(FLEET_PATH, old.fleet)
        with self.assertRaises(errors.FleetPinMismatchError):
            self.cache.terms(ROLLOUT, "web-01", target(new))
        self.assertEqual(self.store.marks.channels, {})

    def test_a_fleet_signed_later_serves_for_policy(self) -> None:
        old = self.publish()
        self.clock.advance(5)
        newer = self.release(policy="halt", commit="aaaa")
        self.serve_artifact(FLEET_PATH, newer.fleet)
        self.assertEqual(self.cache.terms(ROLLOUT, "web-01", target(old)).resolved.policy, Policy.HALT)

    def test_a_manifest_of_another_rollout_under_this_ones_name(self) -> None:
        release = self.publish()
        self.serve_artifact(rollout_path("stable@aaaa"), release.rollout("stable"))
        with self.assertRaises(errors.RolloutIdMismatchError):
            self.cache.terms("stable@aaaa", "web-01", target(release))

    def test_pinned_fetches_once_more_where_a_cache_pins_another_fleet(self) -> None:
        release = self.publish()
        fleet = self.cache.fetch_fleet()
        value = manifest_value(release.fleet, "stable", release.closures, signed_at=self.clock.now())
        other = self.ci.sign({**value, "fleetResolvedHash": "0" * 64})
        good = release.rollout("stable")
        self.server.route("GET", rollout_path(), Reply(200, other.raw), Reply(200, good.raw))
        self.server.route("GET", f"{rollout_path()}/sig", Reply(200, other.signature), Reply(200, good.signature))
        self.assertEqual(self.cache.fetch_pinned(ROLLOUT, fleet).hash, good.hash)
        self.serve_artifact(rollout_path(), other)
        self.assertRaises(errors.FleetPinMismatchError, self.cache.fetch_pinned, ROLLOUT, fleet)


if __name__ == "__main__":
    unittest.main()
