"""Chains that are verified, and the files that certificates are installed to."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
import unittest
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography.hazmat.primitives.asymmetric import ec

from nixfleet_agent.errors import IdentityError
from nixfleet_agent.identity import install
from nixfleet_agent.identity.anchors import load_anchors
from nixfleet_agent.identity.certificate import (
    AgentCertificate,
    CertificateError,
    check_answer,
    load_certificate,
    parse_certificates,
)
from nixfleet_agent.identity.chain import ChainError
from nixfleet_agent.identity.csr import make_csr
from tests.support.tls import DAY, Authority, new_host_key, now, pem_of


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
