"""One renewal: what is asked, what is checked, how the new pair proves itself, and the way back."""

from __future__ import annotations

import unittest
from datetime import timedelta
from unittest import mock

from cryptography import x509

from nixfleet_agent.certificates.enrollment import AnswerRefusedError
from nixfleet_agent.certificates.renewal import NewCertificateRefusedError
from nixfleet_agent.errors import IdentityError, ProtoError, StorageError
from nixfleet_agent.identity import install
from nixfleet_agent.identity.certificate import load_certificate
from tests.certificates.identity_base import PROOF, RENEW, IdentityTestCase
from tests.support.https_server import Behaviour, Reply, Request, Reset
from tests.support.tls import DAY, HOUR, Authority, now, pem_of


class RenewalTestCase(IdentityTestCase):
    """A host whose certificate has a little less than half of its life left."""

    def setUp(self) -> None:
        super().setUp()
        self.old = self.write(not_before=now() - 10 * DAY, not_after=now() + 9 * DAY)
        self.config_ = self.config()
        _, self.renewal, self.mine = self.parts(self.config_)
        self.mine.reload()

    def write(self, **options: object) -> x509.Certificate:
        return self.fleet.write_client(self.cert_path, self.key, "web-01", **options)

    def in_use(self) -> x509.Certificate:
        current = self.mine.current()
        assert current is not None
        return current.certificate.leaf

    def assert_unchanged(self) -> None:
        self.assertEqual(pem_of(self.old).encode(), self.cert_path.read_bytes())
        self.assertEqual(self.old, self.in_use())
        self.assertFalse(install.is_unverified(self.cert_path))


class RenewOnce(RenewalTestCase):
    def test_a_certificate_with_enough_life_is_left_alone_unless_forced(self) -> None:
        self.old = self.write(not_before=now() - 9 * DAY, not_after=now() + 10 * DAY)
        self.mine.reload()
        result = self.renewal.renew_once()
        self.assertFalse(result.renewed)
        self.assertAlmostEqual(10 / 19, result.remaining_fraction, places=3)
        self.assertEqual([], self.server.requests)
        self.assertTrue(self.renewal.renew_once(force=True).renewed)

    def test_below_the_threshold_it_is_renewed_over_mtls_with_the_same_key(self) -> None:
        result = self.renewal.renew_once()
        self.assertTrue(result.renewed)
        self.assertTrue(result.proven)
        (request,) = self.asked(RENEW)
        self.assertEqual(self.old.serial_number, request.client_serial)
        csr = x509.load_pem_x509_csr(request.json()["csrPem"].encode())
        self.assertEqual(self.key.public_raw, csr.public_key().public_bytes_raw())  # type: ignore[union-attr]
        self.assertEqual(self.issued[0], load_certificate(self.cert_path).leaf)
        self.assertEqual(self.issued[0], self.in_use())
        self.assertEqual(0o644, self.cert_path.stat().st_mode & 0o777)

    def test_the_new_certificate_is_tried_before_the_old_one_is_dropped(self) -> None:
        seen: list[bool] = []

        def proof(request: Request) -> Reply:
            seen.append(install.is_unverified(self.cert_path))
            return Reply(200, bytes(64))

        self.server.route(*PROOF, proof)
        self.renewal.renew_once()
        self.assertEqual([True], seen)
        self.assertEqual([self.issued[0].serial_number], [request.client_serial for request in self.asked(PROOF)])
        self.assertFalse(install.is_unverified(self.cert_path))

    def test_answers_that_must_not_be_installed_leave_everything_as_it_was(self) -> None:
        def answering(public: object, name: str, authority: Authority | None = None, **options: object) -> object:
            leaf = (authority or self.fleet).issue_client(public, name, **options)  # type: ignore[arg-type]
            return lambda request: self.answer(leaf)

        mine, other = self.key.private.public_key(), self.other_key().private.public_key()
        late = now() + 60 * DAY
        cases: tuple[tuple[object, type[Exception]], ...] = (
            (answering(other, "web-01", not_after=late), IdentityError),
            (answering(mine, "web-02", not_after=late), IdentityError),
            (answering(mine, "web-01", not_after=now() + 9 * DAY), IdentityError),
            (answering(mine, "web-01", not_before=now() + HOUR, not_after=late), IdentityError),
            (answering(mine, "web-01", Authority("fleet CA"), not_after=late), IdentityError),
            (answering(mine, "web-01", ca=True, not_after=late), IdentityError),
            (Reply(200, b'{"certPem": "nonsense"}'), IdentityError),
            (Reply(200, b"{not JSON"), ProtoError),
            (Reply(200, b'{"certPem": "' + b"x" * 2_000_000), Exception),
            (Reply(401), AnswerRefusedError),
            (Reply(503), AnswerRefusedError),
        )
        for behaviour, error in cases:
            self.server.route(*RENEW, behaviour)  # type: ignore[arg-type]
            with self.subTest(behaviour=behaviour), self.assertRaises(error):
                self.renewal.renew_once()
            self.assert_unchanged()
        self.assertEqual([], self.asked(PROOF))

    def test_a_disk_that_refuses_keeps_the_old_certificate(self) -> None:
        full = mock.patch("os.replace", side_effect=OSError(28, "No space left on device"))
        with full, self.assertRaises(StorageError):
            self.renewal.renew_once()
        self.assert_unchanged()

    def test_a_certificate_that_tls_refuses_is_taken_back(self) -> None:
        """Nothing local tells it apart when no anchors are given: another CA signs it, the server refuses it."""
        config = self.config(ca_cert=None)
        _, renewal, self.mine = self.parts(config)
        self.mine.reload()
        stranger = Authority("not known to the server")

        def signed_by_a_stranger(request: Request) -> Reply:
            return self.answer(stranger.issue_for_csr(request.json()["csrPem"], not_after=now() + 60 * DAY))

        self.server.route(*RENEW, signed_by_a_stranger)
        with self.assertRaises(NewCertificateRefusedError):
            renewal.renew_once()
        self.assert_unchanged()
        self.assertEqual([self.old.serial_number], [request.client_serial for request in self.asked(PROOF)])

    def test_a_certificate_that_only_the_application_refuses_is_taken_back_too(self) -> None:
        def only_the_old(request: Request) -> Reply:
            return Reply(200 if request.client_serial == self.old.serial_number else 403)

        self.server.route(*PROOF, only_the_old)
        with self.assertRaisesRegex(NewCertificateRefusedError, "403"):
            self.renewal.renew_once()
        self.assert_unchanged()

    def test_a_control_plane_that_comes_up_during_the_trial_takes_the_new_one(self) -> None:
        self.server.route(*PROOF, Reset(), Reply(200))
        self.assertTrue(self.renewal.renew_once().proven)
        self.assertEqual(self.issued[0], load_certificate(self.cert_path).leaf)
        self.assertFalse(install.is_unverified(self.cert_path))

    def test_when_nobody_answers_the_trial_both_are_kept_and_the_new_one_is_used(self) -> None:
        self.server.route(*PROOF, Reset())
        result = self.renewal.renew_once()
        self.assertIs(False, result.proven)
        self.assertEqual(self.issued[0], self.in_use())
        kept = install.kept(self.cert_path)
        assert kept is not None
        self.assertEqual(self.old, kept.leaf)


class Prove(RenewalTestCase):
    """A trial that was left open, in this process or in one that was killed."""

    def leave_open(self, proof: Behaviour) -> None:
        self.server.route(*PROOF, Reset())
        self.renewal.renew_once()
        self.server.route(*PROOF, proof)
        _, self.renewal, self.mine = self.parts(self.config_)
        self.mine.reload()

    def test_there_is_nothing_to_prove_in_the_usual_case(self) -> None:
        self.assertIsNone(self.renewal.prove())
        self.assertEqual([], self.server.requests)

    def test_a_restart_goes_on_with_the_trial_and_drops_the_old_one(self) -> None:
        self.leave_open(Reply(200))
        self.assertTrue(self.renewal.prove())
        self.assertIsNone(self.renewal.prove())
        self.assertEqual(self.issued[0], load_certificate(self.cert_path).leaf)

    def test_a_restart_goes_back_where_only_the_old_one_works(self) -> None:
        self.leave_open(Reply(200))
        self.server.route(
            *PROOF, handler=lambda request: Reply(200 if request.client_serial == self.old.serial_number else 401)
        )
        with self.assertRaises(NewCertificateRefusedError):
            self.renewal.prove()
        self.assert_unchanged()

    def test_an_old_one_that_has_expired_is_no_way_back(self) -> None:
        self.leave_open(Reply(401))
        self.clock.advance(timedelta(days=10).total_seconds())
        self.assertIsNone(self.renewal.prove())
        self.assertFalse(install.is_unverified(self.cert_path))
        self.assertEqual(self.issued[0], self.in_use())

    def test_an_old_one_that_is_damaged_is_cleared_away(self) -> None:
        self.leave_open(Reply(401))
        install.previous_path(self.cert_path).write_text("nonsense")
        self.assertIsNone(self.renewal.prove())
        self.assertFalse(install.is_unverified(self.cert_path))


if __name__ == "__main__":
    unittest.main()
