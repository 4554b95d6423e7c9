"""The first certificate of a host: what is tried, how often, and when it is given up."""

from __future__ import annotations

import itertools
import logging
import unittest
from datetime import timedelta

from nixfleet_agent.identity.certificate import load_certificate
from tests.certificates.identity_base import ENROLL, PROOF, RENEW
from tests.runtime.workers.cert_renewal_case import WorkerTestCase
from tests.support.behaviours import Reply, Request, page
from tests.support.tls import DAY, Authority, now


class Enrolling(WorkerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.cert_path.unlink()
        self.write_token(expiresAt=self.stamp(timedelta(days=3)))
        self.start(self.config(bootstrap_token_file=self.token_path))

    def test_a_host_without_a_certificate_enrolls_at_once(self) -> None:
        self.run_for(1)
        self.assertEqual(self.issued[0], load_certificate(self.cert_path).leaf)
        self.assertEqual("valid", self.certificate_status().state)
        self.run_for(3600)
        self.assertEqual(1, len(self.asked(ENROLL)))

    def test_a_cold_start_is_asked_again_every_ten_times_the_initial_backoff(self) -> None:
        times: list[float] = []

        def cold(request: Request) -> Reply:
            times.append(self.clock.monotonic())
            return Reply(503, b"control plane not ready")

        self.server.route(*ENROLL, cold)
        records = self.run_for(120)
        gaps = {round(later - earlier, 6) for earlier, later in itertools.pairwise(times)}
        self.assertEqual({10.0}, gaps)
        self.assertEqual(1, len(self.said(records, logging.WARNING)))
        self.server.route(*ENROLL, self.sign)
        self.run_for(60)
        self.assertTrue(self.cert_path.exists())

    def test_a_network_failure_is_retried_within_the_usual_backoff(self) -> None:
        self.server.route(*ENROLL, Reply(500), Reply(500), Reply(500), self.sign)
        self.run_for(20)
        self.assertTrue(self.cert_path.exists())

    def test_a_token_of_the_future_is_used_when_its_time_comes(self) -> None:
        self.write_token(issuedAt=self.stamp(timedelta(minutes=5)), expiresAt=self.stamp(timedelta(days=1)))
        self.run_for(290)
        self.assertEqual([], self.server.requests)
        self.run_for(60)
        self.assertTrue(self.cert_path.exists())

    def test_401_and_403_are_asked_again_for_the_tokens_whole_life_and_said_once(self) -> None:
        """The control plane reads its list of tokens and the fleet each minute: a new host is mostly too early."""
        for status in (401, 403):
            self.server.route(*ENROLL, Reply(status))
            before = len(self.asked(ENROLL))
            records = self.run_for(1200)
            asked = len(self.asked(ENROLL)) - before
            self.assertTrue(20 <= asked <= 100, asked)
            self.assertEqual(1, len(self.said(records, logging.WARNING)))
            self.assertEqual([], self.said(records, logging.ERROR))
            self.assertIn("until the token expires at", self.certificate_status().failure or "")
        self.server.route(*ENROLL, self.sign)
        self.run_for(120)
        self.assertTrue(self.cert_path.exists())
        self.assertEqual([], self.refusals)

    def test_the_end_of_the_tokens_life_is_final_and_handed_up(self) -> None:
        self.write_token(expiresAt=self.stamp(timedelta(minutes=15)))
        self.server.route(*ENROLL, Reply(401))
        self.run_for(800)
        self.assertEqual([], self.refusals)
        self.run_for(400)
        self.assertTrue(self.refusals)
        self.assertIn("expired", str(self.refusals[0]))

    def test_a_token_for_another_host_is_final_at_once(self) -> None:
        self.write_token(hostname="web-02")
        self.run_for(10)
        self.assertEqual([77], [error.exit_code for error in self.refusals])

    def test_a_token_that_was_used_is_asked_for_seldom_and_never_final(self) -> None:
        self.server.route(*ENROLL, Reply(409))
        records = self.run_for(3600)
        self.assertEqual([], self.refusals)
        self.assertLess(len(self.asked(ENROLL)), 20)
        self.assertEqual(1, len(self.said(records, logging.ERROR)))
        self.server.route(*ENROLL, self.sign)
        self.run_for(3600)
        self.assertTrue(self.cert_path.exists())

    def test_an_answer_of_an_unknown_issuer_is_taken_when_the_trust_changes(self) -> None:
        issuing = Authority("agents' CA")

        def leaf_only(request: Request) -> Reply:
            return self.answer(issuing.issue_for_csr(request.json()["csrPem"], not_after=now() + 60 * DAY))

        self.server.route(*ENROLL, leaf_only, Reply(409))
        self.run_for(600)
        self.assertFalse(self.cert_path.exists())
        self.ca.write_bytes(self.ca.read_bytes() + issuing.pem)
        asked = len(self.asked(ENROLL))
        self.run_for(61)
        self.assertEqual("valid", self.certificate_status().state)
        self.assertEqual(asked, len(self.asked(ENROLL)), "at the next look, without another word on the wire")

    def test_a_used_token_with_an_expired_certificate_does_not_stop_renewals(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01", not_before=now() - 9 * DAY, not_after=now() - DAY)
        self.server.route(*ENROLL, Reply(409))
        records = self.run_for(4 * 3600)
        self.assertGreater(len(self.asked(ENROLL)), 1)
        self.assertEqual([], self.refusals)
        # It goes on to renew, which a control plane may allow where the token is of no use any more.
        self.assertGreater(len(self.server.handshake_failures), 1)
        self.assertEqual(1, sum("used already" in message for message in self.said(records, logging.ERROR)))

    def test_a_front_that_answers_enrollments_does_not_stop_renewals(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01", not_before=now() - 9 * DAY, not_after=now() - DAY)
        self.server.route(*ENROLL, page(403))
        self.run_for(600)
        self.assertGreater(len(self.asked(ENROLL)), 0)
        self.assertGreater(len(self.server.handshake_failures), 0)

    def test_a_certificate_that_is_refused_is_replaced_with_the_token(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01")
        self.run_for(1)
        self.assertEqual([], self.asked(ENROLL), "a valid certificate leaves it unused")
        for proof, enrolls in ((Reply(200), False), (Reply(403), True)):
            self.server.route("GET", "/v1/x", Reply(403))
            self.server.route(*PROOF, proof)
            self.renewal._control_plane.get("/v1/x", deadline=5)
            self.run_for(120)
            self.assertEqual(enrolls, bool(self.asked(ENROLL)))
        self.assertEqual(self.issued[0], load_certificate(self.cert_path).leaf)

    def test_a_certificate_that_is_refused_without_a_token_is_said_once_until_it_is_let_in(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01")
        self.start(self.config())
        self.run_for(1)
        self.server.route("GET", "/v1/x", Reply(403), Reply(204))
        self.server.route(*PROOF, Reply(403))
        self.renewal._control_plane.get("/v1/x", deadline=5)
        records = self.run_for(1800)
        (said,) = self.said(records, logging.ERROR)
        self.assertIn("is refused (status 403)", said)
        self.assertIn("bootstrap token", self.certificate_status().failure or "")
        self.renewal._control_plane.get("/v1/x", deadline=5)
        self.run_for(61)
        self.assertIsNone(self.certificate_status().failure)

    def test_a_final_refusal_with_an_expired_certificate_in_memory_alone_is_not_handed_up(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01", not_before=now() - 9 * DAY, not_after=now() - DAY)
        self.mine.reload()
        self.cert_path.unlink()
        self.server.route(*ENROLL, Reply(409))
        self.run_for(600)
        self.assertGreater(len(self.asked(ENROLL)), 0)
        self.assertEqual([], self.refusals)

    def test_a_final_refusal_with_a_damaged_certificate_file_is_not_handed_up(self) -> None:
        self.cert_path.write_text("nonsense")
        self.server.route(*ENROLL, Reply(409))
        self.run_for(600)
        self.assertGreater(len(self.asked(ENROLL)), 0)
        self.assertEqual([], self.refusals)

    def test_an_expired_certificate_is_replaced_with_the_token(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01", not_before=now() - 9 * DAY, not_after=now() - DAY)
        self.run_for(1)
        self.assertEqual([], self.asked(RENEW))
        self.assertEqual(self.issued[0], load_certificate(self.cert_path).leaf)

    def test_a_valid_certificate_leaves_the_token_unused(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01")
        self.run_for(3600)
        self.assertEqual([], self.server.requests)

    def test_without_certificate_and_token_it_says_so_and_waits(self) -> None:
        self.start(self.config())
        records = self.run_for(3600)
        self.assertEqual("missing", self.certificate_status().state)
        self.assertIn("bootstrap_token_file", self.said(records, logging.ERROR)[0])
        self.assertEqual([], self.refusals)


if __name__ == "__main__":
    unittest.main()
