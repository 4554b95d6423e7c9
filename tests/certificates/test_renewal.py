"""One renewal: what is asked, what is checked, how the new pair proves itself, and the way back."""

from __future__ import annotations

import contextlib
import unittest
from datetime import timedelta
from unittest import mock

from cryptography import x509

from nixfleet_agent.certificates.enrollment import AnswerRefusedError
from nixfleet_agent.certificates.renewal import MOST_A_DAY, NewCertificateRefusedError, TooManyRenewalsError
from nixfleet_agent.errors import IdentityError, ProtoError, StorageError, TransportError
from nixfleet_agent.identity import install
from nixfleet_agent.identity.certificate import AgentCertificate, load_certificate
from nixfleet_agent.net.client import ControlPlane
from tests.certificates.identity_base import PROOF, RENEW, IdentityTestCase
from tests.support.behaviours import Behaviour, Reply, Request, Reset, page, refusal
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

    def only(self, *certificates: x509.Certificate, otherwise: Behaviour) -> None:
        """Whoever presents one of these gets the proof's 2xx, anybody else another answer."""
        serials = {certificate.serial_number for certificate in certificates}
        good = Reply(200, bytes(64))
        self.server.route(*PROOF, handler=lambda request: good if request.client_serial in serials else otherwise)

    def kept(self) -> x509.Certificate | None:
        certificate = install.kept(self.cert_path)
        return None if certificate is None else certificate.leaf

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
        self.assertEqual(self.old, self.kept(), "it stays until it expires")

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

    def test_no_status_but_the_2xx_that_the_old_one_gets_proves_a_certificate(self) -> None:
        for answer in (Reply(404), Reply(500), page(200), page(400), Reply(418), Reply(302), Reset()):
            with self.subTest(answer=answer):
                self.only(self.old, otherwise=answer)
                with self.assertRaises(NewCertificateRefusedError):
                    self.renewal.renew_once()
                self.assert_unchanged()

    def test_where_the_old_one_gets_no_2xx_either_nothing_is_proven(self) -> None:
        for answer in (Reply(404), Reply(403), page(200), Reply(503)):
            with self.subTest(answer=answer):
                self.old = self.write(not_before=now() - 10 * DAY, not_after=now() + 9 * DAY)
                self.mine.reload()
                self.server.route(*PROOF, answer)
                self.assertIs(False, self.renewal.renew_once().proven)
                self.assertTrue(install.is_unverified(self.cert_path))
                self.assertEqual(self.old, self.kept())
                install.forget_previous(self.cert_path)

    def test_certificates_that_are_due_at_once_come_to_an_end_for_the_day(self) -> None:
        last = now() + 9 * DAY

        def due_at_once(request: Request) -> Reply:
            nonlocal last
            last += timedelta(seconds=1)
            return self.sign(request, not_before=now() - 100 * DAY, not_after=last)

        self.server.route(*RENEW, due_at_once)
        for _ in range(3):
            self.assertTrue(self.renewal.renew_once().renewed)
        # As many as there may be, without the handshakes that each of them costs.
        self.renewal._renewed_at.extend([self.clock.monotonic()] * (MOST_A_DAY - 4))
        self.assertTrue(self.renewal.renew_once().renewed)
        with self.assertRaises(TooManyRenewalsError):
            self.renewal.renew_once()
        self.assertEqual(4, len(self.asked(RENEW)))
        self.clock.advance(DAY.total_seconds())
        self.assertTrue(self.renewal.renew_once().renewed)

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

    def test_the_one_before_goes_when_it_has_expired(self) -> None:
        self.renewal.renew_once()
        self.assertIsNone(self.renewal.prove())
        self.assertEqual(self.old, self.kept())
        self.clock.advance((10 * DAY).total_seconds())
        self.assertIsNone(self.renewal.prove())
        self.assertEqual([], list(self.folder.glob("agent-cert.pem.*")))

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


class FallBack(RenewalTestCase):
    """The certificate in use worked, and is refused later: the pair before it is tried."""

    def setUp(self) -> None:
        super().setUp()
        self.renewal.renew_once()
        self.new = self.issued[0]
        self.server.route("GET", "/v1/x", Reply(204))

    def call(self) -> None:
        with contextlib.suppress(TransportError):
            self.plane().get("/v1/x", deadline=5)

    def plane(self) -> ControlPlane:
        return self.renewal._control_plane

    def test_nothing_is_tried_while_it_is_not_refused(self) -> None:
        asked = len(self.asked(PROOF))
        self.call()
        self.assertIsNone(self.renewal.fall_back())
        self.assertEqual(asked, len(self.asked(PROOF)))

    def test_each_way_to_refuse_it_has_the_one_before_tried(self) -> None:
        for answer in (Reply(400), page(400), Reply(401), Reply(403), page(403), page(495), page(496)):
            with self.subTest(answer=answer):
                self.server.route("GET", "/v1/x", answer)
                self.only(self.old, otherwise=answer)
                self.call()
                self.assertIs(True, self.renewal.fall_back())
                self.assertEqual((self.old, self.old), (load_certificate(self.cert_path).leaf, self.in_use()))
                self.assertEqual(self.new, self.kept(), "it may be taken again later")
                self.server.route("GET", "/v1/x", answer)
                self.only(self.new, otherwise=answer)
                self.call()
                self.assertIs(True, self.renewal.fall_back())
                self.assertEqual((self.new, self.old), (self.in_use(), self.kept()))

    def test_so_does_an_alert(self) -> None:
        """The fleet's CA was replaced, and the new certificate was made by the wrong one."""
        stranger = Authority("another CA")
        leaf = stranger.issue_client(self.key.private.public_key(), "web-01")
        install.install(self.cert_path, AgentCertificate(leaf), keep=None)
        self.mine.reload()
        self.only(self.old, otherwise=Reply(401))
        for _ in range(50):  # a server that closes at once may take its alert back on the way
            if self.renewal.refusal() is None:
                self.call()
        self.assertIn("refuses this host's certificate", self.renewal.refusal() or "")
        self.assertIs(True, self.renewal.fall_back())
        self.assertEqual(self.old, self.in_use())

    def test_a_refusal_at_one_door_alone_changes_nothing(self) -> None:
        self.server.route("GET", "/v1/x", Reply(403))
        self.call()
        self.assertIsNone(self.renewal.fall_back())
        self.assertEqual(self.new, self.in_use())

    def test_a_bad_request_of_ours_is_no_refusal_of_the_certificate(self) -> None:
        self.server.route("GET", "/v1/x", refusal(400, "seq starts at 1"))
        self.call()
        self.assertIsNone(self.renewal.refusal())

    def test_where_both_are_refused_the_new_one_stays(self) -> None:
        self.server.route("GET", "/v1/x", Reply(401))
        self.server.route(*PROOF, Reply(401))
        self.call()
        self.assertIs(False, self.renewal.fall_back())
        self.assertEqual((self.new, self.old), (self.in_use(), self.kept()))

    def test_one_that_has_expired_is_not_tried(self) -> None:
        self.server.route("GET", "/v1/x", Reply(401))
        self.only(self.old, otherwise=Reply(401))
        self.call()
        self.clock.advance((10 * DAY).total_seconds())
        self.assertIs(False, self.renewal.fall_back())

    def test_it_is_over_when_the_certificate_is_let_in_again(self) -> None:
        self.server.route("GET", "/v1/x", Reply(403), page(200), Reply(500), Reply(204))
        for refused in (True, True, True, False):
            self.call()
            self.assertIs(refused, self.renewal.refusal() is not None)

    def test_a_damaged_file_gives_way_to_the_one_before(self) -> None:
        self.assertFalse(self.renewal.restore())
        self.cert_path.write_bytes(self.cert_path.read_bytes()[:300])
        self.assertTrue(self.renewal.restore())
        self.assertEqual(self.old, load_certificate(self.cert_path).leaf)


if __name__ == "__main__":
    unittest.main()
