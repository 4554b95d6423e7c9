"""Certificate answers: installed only when they are this host's, newer, and issued by whom they must be."""

from __future__ import annotations

import os
import tempfile
import time
import unittest
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from nixfleet_agent.errors import IdentityError
from nixfleet_agent.identity import install
from nixfleet_agent.identity.anchors import load_anchors
from nixfleet_agent.identity.certificate import (
    AgentCertificate,
    CertificateError,
    check_answer,
    load_certificate,
    name_is_ours,
    parse_certificates,
)
from nixfleet_agent.identity.chain import ChainError
from nixfleet_agent.identity.csr import make_csr
from tests.support.tls import DAY, HOUR, Authority, new_host_key, now, openssh_pem, pem_of


class Answers(unittest.TestCase):
    def setUp(self) -> None:
        self.fleet = Authority("fleet CA")
        self.key = new_host_key()
        self.current = AgentCertificate(self.issue(not_after=now() + 10 * DAY))

    def issue(self, common_name: str = "web-01", **options: object) -> x509.Certificate:
        return self.fleet.issue_client(self.key.private.public_key(), common_name, **options)  # type: ignore[arg-type]

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

    def test_text_that_is_no_certificate_is_refused(self) -> None:
        whole = pem_of(self.issue())
        for text in ("", "nonsense", whole[:200], whole.replace("A", "B"), "\ud800", whole * 9, "x" * 300_000):
            with self.subTest(text=text[:20]), self.assertRaises(CertificateError):
                self.check(text)

    def test_what_else_stands_in_the_answer_is_not_written(self) -> None:
        leaf = self.issue()
        text = openssh_pem(self.key).decode("ascii") + "# note\n" + pem_of(leaf)
        self.assertEqual(pem_of(leaf).encode("ascii"), self.check(text).pem())


class Chains(unittest.TestCase):
    def setUp(self) -> None:
        self.root = Authority("root")
        self.key = new_host_key()

    def check(
        self, issuer: Authority, *sent: Authority, anchors: tuple[Authority, ...] | None = None, **leaf: object
    ) -> None:
        certificate = issuer.issue_client(self.key.private.public_key(), "web-01", **leaf)  # type: ignore[arg-type]
        check_answer(
            pem_of(certificate) + "".join(pem_of(each.certificate) for each in sent),
            public_raw=self.key.public_raw,
            machine_id="web-01",
            current=None,
            anchors=[each.certificate for each in (anchors or (self.root,))],
            now=now(),
        )

    def refused(self, reason: str, *args: Authority, **options: object) -> None:
        with self.assertRaisesRegex(ChainError, reason):
            self.check(*args, **options)  # type: ignore[arg-type]

    def test_an_issuing_ca_that_comes_with_the_answer_is_followed_to_the_root(self) -> None:
        issuing = Authority("issuing", parent=self.root)
        deeper = Authority("deeper", parent=issuing)
        self.check(issuing, issuing)
        self.check(deeper, deeper, issuing)
        self.check(deeper, issuing, deeper)

    def test_an_issuing_ca_that_does_not_come_along_breaks_the_chain(self) -> None:
        issuing = Authority("issuing", parent=self.root)
        self.refused("none of the trusted", issuing)

    def test_an_intermediate_may_be_the_anchor_itself(self) -> None:
        issuing = Authority("issuing", parent=self.root)
        self.check(issuing, anchors=(issuing,))

    def test_two_anchors_of_one_name_are_both_tried(self) -> None:
        self.check(self.root, anchors=(Authority("root"), self.root))

    def test_an_issuer_that_is_no_ca_is_refused(self) -> None:
        fake = Authority("host that issues", parent=self.root, ca=False)
        self.refused("not a CA", fake, fake)

    def test_an_issuer_that_has_expired_is_refused(self) -> None:
        old = Authority("old", parent=self.root, not_before=now() - 9 * DAY, not_after=now() - DAY)
        self.refused("not valid now", old, old)
        stale_root = Authority("stale", not_before=now() - 9 * DAY, not_after=now() - DAY)
        self.refused("not valid now", stale_root, anchors=(stale_root,))

    def test_a_path_longer_than_an_issuer_allows_is_refused(self) -> None:
        narrow = Authority("narrow", parent=self.root, path_length=0)
        self.check(narrow, narrow)
        below = Authority("below", parent=narrow)
        self.refused("allows 0", below, below, narrow)

    def test_a_leaf_that_could_issue_others_is_refused(self) -> None:
        self.check(self.root, ca=False)
        self.refused("CA certificate", self.root, ca=True)

    def test_a_self_made_root_in_the_answer_counts_for_nothing(self) -> None:
        own = Authority("root")
        self.refused("none of the trusted", own, own)

    def test_issuers_that_all_signed_one_another_cost_no_more_than_their_number(self) -> None:
        """Path by path there are 7! ways through them: minutes of this thread, with keys that are slow to verify."""
        slow = ec.generate_private_key(ec.SECP521R1())
        ring = [Authority("ring", key=slow) for _ in range(7)]
        began = time.thread_time()
        self.refused("none of the trusted", ring[0], *ring, anchors=(Authority("other"),))
        self.assertLess(time.thread_time() - began, 2.0)

    def test_an_anchor_at_the_end_of_the_longest_way_is_found(self) -> None:
        chain = [Authority("level 0", parent=self.root)]
        for level in range(1, 6):
            chain.append(Authority(f"level {level}", parent=chain[-1]))
        self.check(chain[-1], *chain)
        self.check(chain[-1], *reversed(chain))

    def test_anchors_that_cannot_be_read_are_an_error_and_not_an_empty_list(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = self.root.write_ca(Path(folder) / "ca.pem")
            self.assertEqual((), load_anchors((), None))
            both = load_anchors([Authority("other").pem.decode("ascii")], path)
            self.assertEqual(2, len(both))
            with self.assertRaisesRegex(IdentityError, r"issuanceCaPems\[1\]"):
                load_anchors([self.root.pem.decode("ascii"), "nonsense"], path)
            with self.assertRaisesRegex(IdentityError, "missing.pem"):
                load_anchors((), Path(folder) / "missing.pem")


class Files(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "state" / "agent-cert.pem"
        self.fleet = Authority()
        self.key = new_host_key()

    def issue(self) -> AgentCertificate:
        return AgentCertificate(self.fleet.issue_client(self.key.private.public_key(), "web-01"))

    def test_an_installed_certificate_is_for_all_to_read_in_a_folder_for_root_alone(self) -> None:
        new = self.issue()
        # An init script may run the agent with a umask that would close the file.
        self.addCleanup(os.umask, os.umask(0o077))
        install.install(self.path, new, keep=None)
        self.assertEqual(new, load_certificate(self.path))
        self.assertEqual(0o644, self.path.stat().st_mode & 0o777)
        self.assertEqual(0o700, self.path.parent.stat().st_mode & 0o777)
        self.assertFalse(install.is_unverified(self.path))

    def test_the_one_before_is_kept_until_the_new_one_has_worked(self) -> None:
        first, second, third = self.issue(), self.issue(), self.issue()
        install.install(self.path, first, keep=None)
        install.install(self.path, second, keep=first)
        self.assertEqual(first, install.kept(self.path))
        # The second never worked: it is not what to go back to.
        install.install(self.path, third, keep=second)
        self.assertEqual(first, install.kept(self.path))
        install.go_back(self.path)
        self.assertEqual(first, load_certificate(self.path))
        self.assertIsNone(install.kept(self.path))
        install.install(self.path, second, keep=first)
        install.commit(self.path)
        self.assertEqual(second, load_certificate(self.path))
        self.assertEqual([self.path.name], [entry.name for entry in self.path.parent.iterdir()])

    def test_the_remaining_life_goes_from_one_to_zero(self) -> None:
        begins, ends = now(), now() + 100 * DAY
        leaf = self.fleet.issue_client(self.key.private.public_key(), "x", not_before=begins, not_after=ends)
        certificate = AgentCertificate(leaf)
        for days, fraction in ((-5, 1.0), (0, 1.0), (25, 0.75), (50, 0.5), (100, 0.0), (500, 0.0)):
            self.assertAlmostEqual(fraction, certificate.remaining_fraction(begins + days * DAY))
        self.assertFalse(certificate.expired(ends))
        self.assertTrue(certificate.expired(ends + timedelta(seconds=1)))

    def test_a_file_that_is_missing_or_damaged_is_told_with_its_path(self) -> None:
        with self.assertRaisesRegex(CertificateError, "enroll"):
            load_certificate(self.path)
        self.path.parent.mkdir()
        self.path.write_bytes(b"\0" * 50)
        with self.assertRaisesRegex(CertificateError, "agent-cert.pem"):
            load_certificate(self.path)
        self.assertEqual(
            "x",
            parse_certificates(
                pem_of(self.fleet.issue_client(self.key.private.public_key(), "x")).encode(), "it"
            ).common_name,
        )

    def test_a_machine_id_that_does_not_fit_into_a_certificate_is_refused(self) -> None:
        make_csr(self.key, "x" * 64)
        for name in ("", "x" * 65):
            with self.assertRaisesRegex(IdentityError, "64"):
                make_csr(self.key, name)


if __name__ == "__main__":
    unittest.main()
