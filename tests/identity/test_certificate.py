"""Certificate answers: installed only when they are this host's, newer, and issued by whom they must be."""

from __future__ import annotations

import unittest
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from nixfleet_agent.identity.certificate import (
    AgentCertificate,
    CertificateError,
    check_answer,
    name_is_ours,
)
from nixfleet_agent.identity.chain import ChainError
from nixfleet_agent.identity.csr import make_csr
from tests.support.tls import DAY, HOUR, Authority, new_host_key, now, openssh_pem, pem_of


def key_usage(*, digital_signature: bool) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature, True, False, False, False, False, False, False, False)


class Answers(unittest.TestCase):
    def setUp(self) -> None:
        self.fleet = Authority("fleet CA")
        self.key = new_host_key()
        self.current = AgentCertificate(self.issue(not_after=now() + 10 * DAY))

    def issue(self, common_name: str = "web-01", **options: object) -> x509.Certificate:
        return self.fleet.issue_client(self.key.private.public_key(), common_name, **options)  # type: ignore[arg-type]

    def extended(self, extension: x509.ExtensionType, *, critical: bool = False) -> x509.Certificate:
        own = self.key.private.public_key()
        return self.fleet.issue_client(own, "web-01", extensions=[(extension, critical)])

    def check(
        self, pem: str | x509.Certificate, *, anchors: tuple[x509.Certificate, ...] | None = None
    ) -> AgentCertificate:
        return check_answer(
            pem if isinstance(pem, str) else pem_of(pem),
            public_raw=self.key.public_raw,
            machine_id="web-01",
            current=self.current,
            anchors=(self.fleet.certificate,) if anchors is None else anchors,
            now=now(),
        )

    def test_a_proper_answer_is_taken(self) -> None:
        leaf = self.issue()
        self.assertEqual(leaf, self.check(leaf).leaf)
        self.assertEqual(leaf, self.check(leaf, anchors=()).leaf)

    def test_a_request_of_ours_is_answered_with_a_certificate_that_is_taken(self) -> None:
        leaf = self.fleet.issue_for_csr(make_csr(self.key, "web-01"))
        self.assertEqual(leaf, self.check(leaf).leaf)

    def test_the_name_may_be_the_machine_id_or_the_agent_name_of_the_deployed_control_plane(self) -> None:
        self.check(self.issue("agent-web-01.fleet.example"))
        for name, ours in (
            ("web-01", True),
            ("agent-web-01.lan", True),
            ("agent-web-01.", False),
            ("agent-web-01", False),
            ("agent-web-010.lan", False),
            ("agent-web-01.lan\nx", False),
            ("web-02", False),
            ("WEB-01", False),
            (None, False),
        ):
            with self.subTest(name=name):
                self.assertEqual(ours, name_is_ours(name, "web-01"))

    def test_a_certificate_for_another_name_is_refused(self) -> None:
        with self.assertRaisesRegex(CertificateError, "web-02"):
            self.check(self.issue("web-02"))

    def test_a_name_that_differs_in_capitals_alone_is_refused_with_the_remedy(self) -> None:
        with self.assertRaisesRegex(CertificateError, "only upper and lower case differ, so set machine_id"):
            self.check(self.issue("WEB-01"))

    def test_a_certificate_for_another_key_is_refused(self) -> None:
        other = self.fleet.issue_client(new_host_key().private.public_key(), "web-01")
        with self.assertRaisesRegex(CertificateError, "another key"):
            self.check(other)

    def test_a_server_certificate_is_refused(self) -> None:
        with self.assertRaisesRegex(CertificateError, "another key"):
            self.check(self.fleet.issue_server()[0].decode("ascii"))

    def test_an_issuer_whose_clock_is_a_minute_ahead_does_not_cost_the_host_its_token(self) -> None:
        for ahead, taken in ((timedelta(seconds=50), True), (timedelta(seconds=70), False)):
            leaf = self.issue(not_before=now() + ahead)
            with self.subTest(ahead=ahead):
                if taken:
                    self.assertEqual(leaf, self.check(leaf).leaf)
                else:
                    self.assertRaisesRegex(CertificateError, "clock reads", self.check, leaf)
                    self.assertRaisesRegex(CertificateError, "clock reads", self.check, leaf, anchors=())

    def test_a_certificate_that_is_not_valid_now_is_refused(self) -> None:
        for options in (
            {"not_before": now() - 40 * DAY, "not_after": now() - DAY},
            {"not_before": now() + HOUR, "not_after": now() + 40 * DAY},
        ):
            with self.assertRaisesRegex(CertificateError, "clock"):
                self.check(self.issue(**options))

    def test_a_certificate_that_expires_no_later_than_the_present_one_is_refused(self) -> None:
        for end in (self.current.not_after, self.current.not_after - timedelta(seconds=1)):
            with self.assertRaisesRegex(CertificateError, "no later"):
                self.check(self.issue(not_after=end))
        self.check(self.issue(not_after=self.current.not_after + timedelta(seconds=1)))

    def test_a_certificate_of_another_ca_is_refused(self) -> None:
        impostor = Authority("fleet CA")
        with self.assertRaisesRegex(ChainError, "none of the trusted issuers"):
            self.check(impostor.issue_client(self.key.private.public_key(), "web-01"))

    def test_a_certificate_must_be_for_client_authentication(self) -> None:
        server, client = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
        for purposes in ([client], [client, server], [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]):
            self.check(self.extended(x509.ExtendedKeyUsage(purposes), critical=True))
        for purposes in ([server], [ExtendedKeyUsageOID.OCSP_SIGNING, server]):
            for anchors in (None, ()):
                with self.assertRaisesRegex(ChainError, "not for client authentication"):
                    self.check(self.extended(x509.ExtendedKeyUsage(purposes)), anchors=anchors)
        self.check(self.extended(key_usage(digital_signature=True)))
        with self.assertRaisesRegex(ChainError, "does not allow to sign"):
            self.check(self.extended(key_usage(digital_signature=False)))

    def test_a_critical_extension_that_is_not_understood_is_refused(self) -> None:
        strange = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
        names = x509.NameConstraints([x509.DNSName("other.example")], None)
        self.check(self.extended(strange))
        for extension in (strange, names):
            for anchors in (None, ()):
                with self.assertRaisesRegex(ChainError, "not understood"):
                    self.check(self.extended(extension, critical=True), anchors=anchors)

    def test_an_absurd_lifetime_is_refused(self) -> None:
        self.check(self.issue(not_after=now() + 3650 * DAY))
        with self.assertRaisesRegex(CertificateError, "no lifetime of an agent's"):
            self.check(self.issue(not_after=datetime(9999, 12, 31, tzinfo=timezone.utc)))

    def test_only_the_leaf_and_the_path_that_verified_are_installed(self) -> None:
        root, own = Authority("root"), self.key.private.public_key()
        issuing = Authority("issuing", parent=root)
        deeper = Authority("deeper", parent=issuing)
        stranger, other = Authority("stranger"), Authority("deeper", parent=issuing)
        leaf = deeper.issue_client(own, "web-01")
        sent = [root, stranger, other, issuing, deeper]
        pem = pem_of(leaf) + "".join(pem_of(each.certificate) for each in sent)
        path = (deeper.certificate, issuing.certificate)
        for anchors, installed in (
            ((root.certificate,), path),
            ((issuing.certificate,), path),  # the server may know the root alone
            ((deeper.certificate,), path[:1]),
            ((), path),
        ):
            with self.subTest(anchors=[each.subject for each in anchors]):
                new = self.check(pem, anchors=anchors)
                self.assertEqual((leaf, installed), (new.leaf, new.chain))

    def test_a_certificate_that_no_handshake_could_carry_is_refused(self) -> None:
        large = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.2"), b"\x04\x83" + b"x" * 40_000)
        with self.assertRaisesRegex(CertificateError, "32 KiB"):
            self.check(self.extended(large))

    def test_text_that_is_no_certificate_is_refused(self) -> None:
        whole = pem_of(self.issue())
        for text in ("", "nonsense", whole[:200], whole.replace("A", "B"), "\ud800", whole * 9, "x" * 300_000):
            with self.subTest(text=text[:20]), self.assertRaises(CertificateError):
                self.check(text)

    def test_what_else_stands_in_the_answer_is_not_written(self) -> None:
        leaf = self.issue()
        text = openssh_pem(self.key).decode("ascii") + "# note\n" + pem_of(leaf)
        self.assertEqual(pem_of(leaf).encode("ascii"), self.check(text).pem())


if __name__ == "__main__":
    unittest.main()
