"""Signatures that are almost right: another length, another half, another form of the same numbers."""

from __future__ import annotations

import unittest

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from nixfleet_agent.trust.roots import parse_trust
from tests.support.signing import CiSigner


class AlmostRight(unittest.TestCase):
    def test_signatures_of_another_length_or_form(self) -> None:
        data = b"what CI signed"
        for algorithm in ("ed25519", "ecdsa-p256"):
            ci = CiSigner(algorithm)
            key = parse_trust(ci.trust_bytes()).ci_release_key.current
            assert key is not None
            good = ci.signature(data)
            self.assertTrue(key.verifies(good, data))
            r, s = int.from_bytes(good[:32], "big"), int.from_bytes(good[32:], "big")
            almost = {
                "a zero before s": good[:32] + b"\0" + good[32:],
                "a zero behind": good + b"\0",
                "cut short": good[:-1],
                "only r": good[:32],
                "halves swapped": good[32:] + good[:32],
                "DER": encode_dss_signature(r, s),
                "twice": good * 2,
                "r of zero": bytes(32) + good[32:],
                "s of zero": good[:32] + bytes(32),
                "all ones": b"\xff" * 64,
                "empty": b"",
            }
            for name, signature in almost.items():
                with self.subTest(algorithm=algorithm, signature=name):
                    self.assertFalse(key.verifies(signature, data))


if __name__ == "__main__":
    unittest.main()
