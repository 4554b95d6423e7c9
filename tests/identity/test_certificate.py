"""Certificate answers: installed only when they are this host's, newer, and issued by whom they must be."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
import unittest
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

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

    def test_the_one_before_stays_when_the_new_one_has_worked(self) -> None:
        first, second, third = self.issue(), self.issue(), self.issue()
        install.install(self.path, first, keep=None)
        install.install(self.path, second, keep=first)
        self.assertTrue(install.is_unverified(self.path))
        install.commit(self.path, second)
        self.assertEqual((second, first), (load_certificate(self.path), install.kept(self.path)))
        self.assertFalse(install.is_unverified(self.path))
        install.install(self.path, third, keep=second)
        self.assertEqual(second, install.kept(self.path))
        self.assertTrue(install.is_unverified(self.path), "what was proven is another one")
        install.exchange(self.path, third, second)
        self.assertEqual((second, third), (load_certificate(self.path), install.kept(self.path)))
        self.assertFalse(install.is_unverified(self.path))
        install.forget_previous(self.path)
        self.assertEqual([self.path.name], [entry.name for entry in self.path.parent.iterdir()])

    def test_a_link_is_renewed_through_and_its_pair_kept_where_the_file_is(self) -> None:
        """Impermanence and certbot: the link's own folder may be gone at the next boot."""
        persistent = self.path.parent.parent / "persist"
        persistent.mkdir()
        self.path.parent.mkdir()
        middle = self.path.parent / "live.pem"
        middle.symlink_to(persistent / "cert1.pem")
        self.path.symlink_to("live.pem")
        first, second = self.issue(), self.issue()
        install.install(self.path, first, keep=None)
        install.install(self.path, second, keep=first)
        self.assertTrue(self.path.is_symlink() and middle.is_symlink())
        self.assertEqual(second, load_certificate(persistent / "cert1.pem"))
        self.assertEqual(first, load_certificate(persistent / "cert1.pem.previous"))
        install.go_back(self.path)
        self.assertEqual((first, None), (load_certificate(persistent / "cert1.pem"), install.kept(self.path)))
        self.assertTrue(self.path.is_symlink())

    def test_a_mount_point_is_written_in_place_with_the_one_before_beside(self) -> None:
        first, second, third = self.issue(), self.issue(), self.issue()
        install.install(self.path, first, keep=None)
        inode = self.path.stat().st_ino
        replace = os.replace

        def mounted(source: object, destination: object, **folders: Any) -> None:
            if Path(str(destination)).name == self.path.name:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            replace(source, destination, **folders)  # type: ignore[arg-type]

        with mock.patch("os.replace", mounted):
            install.install(self.path, second, keep=first)
            self.assertEqual((second, first), (load_certificate(self.path), install.kept(self.path)))
            install.commit(self.path, second)
            install.install(self.path, third, keep=second)
            install.go_back(self.path)
        self.assertEqual((second, inode), (load_certificate(self.path), self.path.stat().st_ino))
        self.assertEqual([], [n for n in os.listdir(self.path.parent) if n.endswith(".tmp~")])

    def test_a_bind_mounted_file_is_renewed_for_real(self) -> None:
        first, second = self.issue(), self.issue()
        install.install(self.path, first, keep=None)
        persistent = self.path.parent.parent / "persist.pem"
        persistent.write_bytes(b"")
        (self.path.parent / "new.pem").write_bytes(second.pem())
        script = (
            "import subprocess, sys; from pathlib import Path;"
            "from nixfleet_agent.identity import install; from nixfleet_agent.identity.certificate import *;"
            "path, persistent = Path(sys.argv[1]), Path(sys.argv[2]);"
            "persistent.write_bytes(path.read_bytes());"
            "subprocess.run(['mount', '--bind', str(persistent), str(path)], check=True);"
            "install.install(path, load_certificate(path.with_name('new.pem')), load_certificate(path))"
        )
        inside = ["unshare", "--mount", "--map-root-user", sys.executable, "-c", script]
        done = subprocess.run(
            [*inside, str(self.path), str(persistent)], capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr.splitlines()[-1]):
            self.skipTest(f"no mounts here: {done.stderr.strip()[-200:]}")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(second, load_certificate(persistent), "what outlasts a boot is the new one")
        self.assertEqual(first, install.kept(self.path))

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
