"""Host keys of every form that a host may have: read, or refused with what to do."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nixfleet_agent.identity.host_key import HostKeyError, fingerprint_of, load_host_key, permission_warnings
from tests.support.tls import new_host_key, openssh_pem, pkcs8_pem, write_host_key

#: Made by `ssh-keygen -t ed25519 -N secret` for this test.
_ENCRYPTED = """-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABB3ulaRjM
HbgsAnl+WaQhhZAAAAEAAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIDyM2pzuTefrLPi0
AOvL/vBO5viIeDQDZr1y1nOke09cAAAAkL9oX8sAgx4mrUpG78qH0M1QqHpxIh0LGwbbac
JyIbz6ObKeNjjlmoG+1oJhV/ZUJsbeUd0nTrNHMUqT3K81aQJqm0AImvFccJtmihLhEWEd
FH55wEYHsgVVWNwCtnX50cpR4a8kbDNK6cmA8yVkHY3HEJB+t0WcLYe4iBKqunv8zxIfRf
rXJpRjG1notdHcHw==
-----END OPENSSH PRIVATE KEY-----
"""


class HostKeys(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "ssh_host_ed25519_key"

    def refusal(self, content: bytes | None) -> str:
        if content is not None:
            self.path.write_bytes(content)
        with self.assertRaises(HostKeyError) as caught:
            load_host_key(self.path)
        message = str(caught.exception)
        self.assertIn(str(self.path), message)
        self.assertNotIn("\n", message)
        return message

    def test_openssh_and_pkcs8_forms_give_the_same_key(self) -> None:
        key = new_host_key()
        for content in (openssh_pem(key), pkcs8_pem(key), b"\n" + openssh_pem(key)):
            self.path.write_bytes(content)
            loaded = load_host_key(self.path)
            self.assertEqual(key.public_raw, loaded.public_raw)
            self.assertEqual(key.sign(b"x"), loaded.sign(b"x"))

    @unittest.skipUnless(shutil.which("ssh-keygen"), "ssh-keygen is not installed: apt-get install openssh-client")
    def test_a_key_of_ssh_keygen_is_read_and_its_public_half_agrees(self) -> None:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(self.path)], check=True, timeout=30
        )
        public = self.path.with_name(self.path.name + ".pub").read_text().split()
        self.assertEqual(" ".join(public[:2]), load_host_key(self.path).public_openssh)

    def test_the_fingerprint_is_base64_of_sha256_over_the_raw_public_key(self) -> None:
        self.assertEqual("Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU=", fingerprint_of(bytes(32)))
        key = new_host_key()
        self.assertEqual(fingerprint_of(key.public_raw), key.fingerprint)

    def test_the_private_half_is_not_shown(self) -> None:
        self.assertNotIn("private", repr(new_host_key()))

    def test_encrypted_keys_are_refused_with_the_remedy(self) -> None:
        for content in (_ENCRYPTED.encode(), pkcs8_pem(new_host_key(), b"secret")):
            self.assertIn("ssh-keygen -p", self.refusal(content))

    def test_keys_of_other_algorithms_are_refused_by_name(self) -> None:
        forms = (serialization.PrivateFormat.OpenSSH, serialization.PrivateFormat.PKCS8)
        plain = serialization.NoEncryption()
        for form in forms:
            pem = rsa.generate_private_key(65537, 2048).private_bytes(serialization.Encoding.PEM, form, plain)
            self.assertIn("RSA", self.refusal(pem))
            curve = ec.generate_private_key(ec.SECP256R1())
            self.assertIn("EC", self.refusal(curve.private_bytes(serialization.Encoding.PEM, form, plain)))

    def test_everything_else_is_refused_with_what_it_is(self) -> None:
        key = new_host_key()
        self.assertIn("does not exist", self.refusal(None))
        self.assertIn("public half", self.refusal(key.public_openssh.encode()))
        self.assertIn("not a private key", self.refusal(b""))
        self.assertIn("damaged", self.refusal(openssh_pem(key)[:200]))
        self.assertIn("too large", self.refusal(b"x" * 100_000))
        self.path.unlink()
        self.path.mkdir()
        self.assertIn("can't read", self.refusal(None))

    def test_secret_files_that_others_can_read_are_reported(self) -> None:
        write_host_key(self.path)
        token = self.path.with_name("token")
        token.write_text("{}")
        token.chmod(0o640)
        self.assertEqual([], permission_warnings(self.path, None, self.path.with_name("missing")))
        (warning,) = permission_warnings(self.path, token)
        self.assertIn("chmod 600", warning)
        self.path.chmod(0o644)
        self.assertEqual(2, len(permission_warnings(self.path, token)))
        self.assertEqual(1, len(permission_warnings(token, token)), "client_key and ssh_host_key_file are mostly one")


if __name__ == "__main__":
    unittest.main()
