"""One try to enroll: what goes out, what is checked before and after, and what each failure means."""

from __future__ import annotations

import json
import unittest
from datetime import timedelta
from unittest import mock

from cryptography import x509

from nixfleet_agent.certificates.enrollment import (
    AnswerRefusedError,
    Enrollment,
    IssuerUnknownError,
    NotKnownYetError,
    NotReadyError,
)
from nixfleet_agent.errors import (
    EnrollmentRefusedError,
    IdentityError,
    ProtoError,
    StorageError,
    TransportError,
    TrustError,
)
from nixfleet_agent.identity import install
from nixfleet_agent.identity.certificate import load_certificate
from nixfleet_agent.identity.token import TokenMissingError, TokenNotYetValidError
from nixfleet_agent.net.failures import ForeignAnswerError
from nixfleet_agent.proto.times import format_time
from tests.certificates.identity_base import ENROLL, NONCE, REPORT, IdentityTestCase
from tests.support.behaviours import Reply, Request, page, refusal
from tests.support.tls import DAY, Authority, now, pem_of


class EnrollOnce(IdentityTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.cert_path.unlink()
        self.write_token()
        self.enrollment, _, self.mine = self.parts(self.config(bootstrap_token_file=self.token_path))

    def refusal(self, enrollment: Enrollment | None = None) -> str:
        with self.assertRaises(EnrollmentRefusedError) as caught:
            (enrollment or self.enrollment).enroll_once()
        self.assertEqual(77, caught.exception.exit_code)
        self.assertNotIn(NONCE, str(caught.exception))
        self.assertFalse(self.cert_path.exists())
        return str(caught.exception)

    def test_the_certificate_is_on_disk_and_in_use(self) -> None:
        new = self.enrollment.enroll_once()
        self.assertEqual(self.issued, [new.leaf])
        self.assertEqual(new, load_certificate(self.cert_path))
        self.assertEqual(0o644, self.cert_path.stat().st_mode & 0o777)
        current = self.mine.current()
        assert current is not None
        self.assertEqual(new, current.certificate)

    def test_the_request_carries_the_token_as_it_is_and_a_request_signed_by_the_host_key(self) -> None:
        self.enrollment.enroll_once()
        (request,) = self.asked(ENROLL)
        self.assertIsNone(request.client_serial)
        self.assertEqual(json.loads(self.token_path.read_text()), request.json()["token"])
        csr = x509.load_pem_x509_csr(request.json()["csrPem"].encode())
        self.assertTrue(csr.is_signature_valid)
        self.assertEqual("CN=web-01", csr.subject.rfc4514_string())
        self.assertEqual(self.key.public_raw, csr.public_key().public_bytes_raw())  # type: ignore[union-attr]

    def test_an_expired_certificate_is_replaced(self) -> None:
        self.fleet.write_client(self.cert_path, self.key, "web-01", not_before=now() - 9 * DAY, not_after=now() - DAY)
        new = self.enrollment.enroll_once()
        self.assertEqual(new, load_certificate(self.cert_path))
        self.assertFalse(install.is_unverified(self.cert_path))

    def test_a_token_for_another_host_or_key_or_out_of_date_is_refused_before_it_is_spent(self) -> None:
        cases = (
            ("web-02", {"hostname": "web-02"}),
            ("only upper and lower case differ, so set machine_id", {"hostname": "Web-01"}),
            ("another host key", {"key": self.other_key()}),
            ("expired", {"expiresAt": self.stamp(timedelta(seconds=0))}),
        )
        for words, claims in cases:
            with self.subTest(claims=claims):
                self.write_token(**claims)
                self.assertIn(words, self.refusal())
        self.assertEqual([], self.asked(ENROLL))
        self.assertEqual(len(cases), len(self.asked(REPORT)))

    def test_a_file_that_is_no_token_is_refused(self) -> None:
        good = json.loads(self.token_path.read_text())
        for wrong in ("", "[]", "{}", json.dumps({**good, "version": 2}), json.dumps({**good, "claims": {}}), "\x00"):
            with self.subTest(wrong=wrong):
                self.token_path.write_text(wrong)
                self.refusal()
        self.assertEqual([], self.asked(ENROLL))

    def test_without_a_configured_token_there_is_no_enrollment(self) -> None:
        enrollment, _, _ = self.parts(self.config())
        self.assertFalse(enrollment.possible)
        self.assertIn("bootstrap_token_file", self.refusal(enrollment))

    def test_a_token_file_that_is_not_there_yet_is_waited_for(self) -> None:
        self.token_path.unlink()
        with self.assertRaises(TokenMissingError):
            self.enrollment.enroll_once()
        self.write_token()
        self.enrollment.enroll_once()

    def test_a_token_of_the_future_is_waited_for(self) -> None:
        self.write_token(issuedAt=self.stamp(timedelta(minutes=5)))
        with self.assertRaises(TokenNotYetValidError) as caught:
            self.enrollment.enroll_once()
        self.assertEqual(self.clock.now() + timedelta(minutes=5), caught.exception.valid_from)
        self.assertEqual([], self.server.requests)
        self.clock.advance(300)
        self.enrollment.enroll_once()

    def test_no_status_is_final_and_each_says_what_it_mostly_means(self) -> None:
        until = format_time(self.clock.now() + timedelta(hours=1))
        for status, words in ((401, "fleet's list"), (403, "in the fleet"), (409, "used already")):
            for answer in (Reply(status), refusal(status, "no\x1b[31m"), page(status)):
                with self.subTest(status=status, answer=answer):
                    self.server.route(*ENROLL, answer)
                    with self.assertRaises((AnswerRefusedError, ForeignAnswerError)) as caught:
                        self.enrollment.enroll_once()
                    self.assertEqual(status, caught.exception.status)
                    self.assertNotIn("\x1b", str(caught.exception))
                    if isinstance(caught.exception, AnswerRefusedError):
                        self.assertIn(words, str(caught.exception))
                        self.assertIn(f"until the token expires at {until}", str(caught.exception))
                        self.assertIs(isinstance(caught.exception, NotKnownYetError), status != 409)
        self.assertEqual([], self.asked(REPORT))
        self.server.route(*ENROLL, self.sign)
        self.enrollment.enroll_once()

    def test_an_answer_of_an_unknown_issuer_is_kept_and_taken_when_the_ca_is_known(self) -> None:
        """A leaf alone, from an issuer that is not the server's CA: the token is spent, and must not be for nothing."""
        issuing = Authority("agents' CA")

        def leaf_only(request: Request) -> Reply:
            return self.answer(issuing.issue_for_csr(request.json()["csrPem"], not_after=now() + 60 * DAY))

        self.server.route(*ENROLL, leaf_only, Reply(409))
        with self.assertRaisesRegex(IssuerUnknownError, "agents' CA.*issuanceCaPems or ca_cert.*agent-cert"):
            self.enrollment.enroll_once()
        self.assertFalse(self.cert_path.exists())
        self.assertIsNone(self.mine.current())
        self.assertEqual(1, len(self.asked(REPORT)))
        with self.assertRaises(AnswerRefusedError):
            self.enrollment.enroll_once()
        self.ca.write_bytes(self.ca.read_bytes() + issuing.pem)
        fresh, _, mine = self.parts(self.config(bootstrap_token_file=self.token_path))
        self.token_path.unlink()
        new = fresh.enroll_once()
        self.assertEqual(new, load_certificate(self.cert_path))
        self.assertEqual((2, issuing.name), (len(self.asked(ENROLL)), new.leaf.issuer))
        current = mine.current()
        assert current is not None
        self.assertEqual(new, current.certificate)
        self.assertEqual([], list(self.folder.glob("agent-cert.pem.*")))

    def test_a_kept_answer_is_checked_like_any_other(self) -> None:
        issuing = Authority("agents' CA")
        other = issuing.issue_client(self.other_key().private.public_key(), "web-01")
        install.keep_unverified(self.cert_path, pem_of(other))
        self.ca.write_bytes(self.ca.read_bytes() + issuing.pem)
        new = self.enrollment.enroll_once()
        self.assertEqual(self.issued, [new.leaf])

    def test_a_kept_answer_does_not_keep_the_host_from_asking(self) -> None:
        install.keep_unverified(
            self.cert_path, pem_of(Authority("liar").issue_client(self.key.private.public_key(), "web-01"))
        )
        new = self.enrollment.enroll_once()
        self.assertEqual(self.issued, [new.leaf])
        self.assertEqual([], list(self.folder.glob("agent-cert.pem.*")))

    def test_a_cold_start_is_told_from_other_failures(self) -> None:
        self.server.route(*ENROLL, Reply(503, b"control plane not ready"))
        with self.assertRaises(NotReadyError) as cold:
            self.enrollment.enroll_once()
        self.assertEqual(69, cold.exception.exit_code)
        self.server.route(*ENROLL, Reply(503, b"overloaded", {"Retry-After": "33"}))
        with self.assertRaises(AnswerRefusedError) as busy:
            self.enrollment.enroll_once()
        self.assertEqual((503, 33.0), (busy.exception.status, busy.exception.retry_after))
        self.assertEqual([], self.asked(REPORT))

    def test_other_answers_are_tried_again_later(self) -> None:
        for status in (302, 400, 403, 404, 429, 500):
            self.server.route(*ENROLL, Reply(status, b"nonsense"))
            with self.assertRaises(TransportError if status == 302 else AnswerRefusedError):
                self.enrollment.enroll_once()

    def test_a_certificate_that_is_not_ours_is_not_installed(self) -> None:
        def for_another_key(request: Request) -> Reply:
            return self.answer(self.fleet.issue_client(self.other_key().private.public_key(), "web-01"))

        def for_another_name(request: Request) -> Reply:
            return self.answer(self.fleet.issue_client(self.key.private.public_key(), "web-02"))

        for wrong in (for_another_key, for_another_name):
            self.server.route(*ENROLL, wrong)
            with self.assertRaises(IdentityError):
                self.enrollment.enroll_once()
            self.assertFalse(self.cert_path.exists())
            self.assertIsNone(self.mine.current())
        self.assertEqual(2, len(self.asked(REPORT)))

    def test_an_answer_that_is_not_of_the_protocol_is_refused(self) -> None:
        for body in (b"", b"null", b"{}", b'{"certPem": 1}', b'{"certPem": "a", "certPem": "b"}'):
            self.server.route(*ENROLL, Reply(200, body))
            with self.subTest(body=body), self.assertRaises(ProtoError):
                self.enrollment.enroll_once()

    def test_an_anchor_that_cannot_be_read_is_noticed_before_the_token_is_spent(self) -> None:
        bad = self.folder / "bad-ca.pem"
        config = self.config(bootstrap_token_file=self.token_path, ca_cert=bad)
        enrollment, _, _ = self.parts(config)
        with self.assertRaisesRegex(IdentityError, "bad-ca.pem"):
            enrollment.enroll_once()
        self.assertEqual([], self.asked(ENROLL))

    def test_a_trust_file_that_cannot_be_used_is_reported_as_such(self) -> None:
        def broken() -> tuple[x509.Certificate, ...]:
            raise TrustError("the trust file is empty")

        config = self.config(bootstrap_token_file=self.token_path)
        client = self.connect(self.server, credentials=self.mine)
        with self.assertRaises(TrustError):
            Enrollment(config, client, self.mine, self.clock, broken).enroll_once()
        self.assertEqual([], self.asked(ENROLL))
        self.assertEqual("trust-error", self.asked(REPORT)[0].json()["event"]["event"])

    def test_a_full_disk_does_not_cost_the_spent_tokens_certificate(self) -> None:
        full = mock.patch("os.replace", side_effect=OSError(28, "No space left on device"))
        with full, self.assertRaises(StorageError):
            self.enrollment.enroll_once()
        current = self.mine.current()
        assert current is not None
        self.assertEqual(self.issued[0], current.certificate.leaf)

    def test_nobody_there_is_a_network_failure(self) -> None:
        self.server.close()
        with self.assertRaises(TransportError):
            self.enrollment.enroll_once()


class BootstrapReports(IdentityTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.write_token(hostname="web-02")
        self.enrollment, _, _ = self.parts(self.config(bootstrap_token_file=self.token_path))

    def test_a_report_says_who_when_why_and_shows_the_token(self) -> None:
        with self.assertRaises(EnrollmentRefusedError) as caught:
            self.enrollment.enroll_once()
        (request,) = self.asked(REPORT)
        self.assertIsNone(request.client_serial)
        body = request.json()
        self.assertEqual({"hostname", "agentVersion", "occurredAt", "token", "event"}, set(body))
        self.assertEqual("web-01", body["hostname"])
        self.assertEqual(NONCE, body["token"]["claims"]["nonce"])
        self.assertEqual({"event": "enrollment-failed", "details": {"reason": str(caught.exception)}}, body["event"])
        self.assertTrue(body["occurredAt"].endswith("Z"))

    def test_the_same_reason_is_reported_once_and_again_when_it_was_not_taken(self) -> None:
        self.server.route(*REPORT, Reply(500), Reply(204))
        for _ in range(4):
            with self.assertRaises(EnrollmentRefusedError):
                self.enrollment.enroll_once()
        self.assertEqual(2, len(self.asked(REPORT)))

    def test_a_control_plane_without_reports_is_asked_once_and_nothing_is_said(self) -> None:
        self.server.route(*REPORT, Reply(404))
        with self.assertNoLogs():
            for _ in range(3):
                with self.assertRaises(EnrollmentRefusedError):
                    self.enrollment.enroll_once()
        self.assertEqual(1, len(self.asked(REPORT)))

    def test_a_report_that_fails_hides_nothing(self) -> None:
        self.server.close()
        with self.assertRaisesRegex(EnrollmentRefusedError, "web-02"):
            self.enrollment.enroll_once()

    def test_a_trust_error_can_be_reported_without_a_token(self) -> None:
        self.assertTrue(self.enrollment.report("trust-error", "no keys"))
        body = self.asked(REPORT)[0].json()
        self.assertEqual({"event": "trust-error", "details": {"reason": "no keys"}}, body["event"])
        self.assertNotIn("token", body)


if __name__ == "__main__":
    unittest.main()
