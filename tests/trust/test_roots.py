"""The trust file: what can't be believed is refused with its place, and a rotation goes in its order."""

from __future__ import annotations

import base64
import json
import unittest
from datetime import datetime, timedelta, timezone
from typing import Any

from nixfleet_agent.errors import EXIT_CONFIG
from nixfleet_agent.trust.errors import TrustFileError
from nixfleet_agent.trust.roots import KeySlots, TrustRoots, parse_trust
from tests.support.signing import CiSigner

NOW = datetime(2026, 5, 16, 1, 27, tzinfo=timezone.utc)
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
CURRENT, PREVIOUS, NEXT = CiSigner(), CiSigner("ecdsa-p256"), CiSigner()


def slots(**members: Any) -> KeySlots:
    return parse_trust(json.dumps({"schemaVersion": 1, "ciReleaseKey": members}).encode()).ci_release_key


class Parsed(unittest.TestCase):
    def test_everything_that_a_trust_file_can_name(self) -> None:
        trust = parse_trust(
            CURRENT.trust_bytes(
                orgRootKey={"current": NEXT.public, "rejectBefore": "2026-01-01T00:00:00Z"},
                cacheKeys=["cache-1:AAAA"],
                issuanceCaPems=["pem"],
                rootCaPem="root",
                later=1,
            )
        )
        self.assertIsNotNone(trust.ci_release_key.current)
        self.assertEqual(trust.org_root_key.reject_before, datetime(2026, 1, 1, tzinfo=timezone.utc))
        self.assertEqual(
            (trust.cache_keys, trust.issuance_ca_pems, trust.root_ca_pem), (("cache-1:AAAA",), ("pem",), "root")
        )

    def test_null_counts_as_absent_everywhere(self) -> None:
        absent = parse_trust(b'{"schemaVersion":1}')
        named = parse_trust(
            b'{"schemaVersion":1,"ciReleaseKey":{"current":null,"previous":null,"rejectBefore":null,"successor":null,'
            b'"retireAt":null},"orgRootKey":null,"cacheKeys":null,"issuanceCaPems":null,"rootCaPem":null}'
        )
        self.assertEqual(absent, named)
        self.assertEqual(absent.ci_release_key.active(NOW), ())

    def test_a_key_of_an_unknown_algorithm_does_not_spoil_the_file(self) -> None:
        keys = slots(current={"algorithm": "ml-dsa-65", "public": "??"}, previous=CURRENT.public)
        self.assertEqual([key.supported for _, key in keys.active(NOW)], [False, True])

    def test_the_spellings_of_the_nix_module_are_read_as_well(self) -> None:
        trust = parse_trust(CURRENT.trust_bytes(issuanceCAPems=["pem"], rootCAPem="root"))
        self.assertEqual((trust.issuance_ca_pems, trust.root_ca_pem), (("pem",), "root"))
        both = parse_trust(
            CURRENT.trust_bytes(issuanceCaPems=["a"], issuanceCAPems=["b"], rootCaPem="x", rootCAPem="y")
        )
        self.assertEqual((both.issuance_ca_pems, both.root_ca_pem), (("a", "b"), "x"))


class OneBadKey(unittest.TestCase):
    BAD: tuple[object, ...] = (
        {"algorithm": "ed25519", "public": "AAAA"},
        {"algorithm": "ed25519"},
        {"algorithm": 5, "public": "AAAA"},
        "ssh-ed25519 AAAA",
        7,
        [],
    )

    def read(self, **members: Any) -> TrustRoots:
        return parse_trust(json.dumps({"schemaVersion": 1, "ciReleaseKey": members}).encode())

    def test_is_skipped_with_a_warning_while_a_usable_one_is_left(self) -> None:
        for bad in self.BAD:
            for name in ("current", "previous", "successor"):
                other = "previous" if name == "current" else "current"
                with self.subTest(bad=bad, name=name):
                    trust = self.read(**{name: bad, other: CURRENT.public})
                    self.assertEqual([slot for slot, _ in trust.ci_release_key.active(NOW)], [other])
                    (warning,) = trust.warnings
                    self.assertIn(f"ciReleaseKey.{name}", warning)
                    self.assertIn("skipped", warning)

    def test_is_refused_where_it_is_the_last(self) -> None:
        unknown = {"algorithm": "ml-dsa-65", "public": "AA=="}
        for members in ({"current": "x"}, {"current": "x", "previous": unknown}, {"current": "x", "previous": 1}):
            with self.subTest(members=members), self.assertRaises(TrustFileError) as caught:
                self.read(**members)
            self.assertIn("ciReleaseKey.current", str(caught.exception))

    def test_a_successor_that_is_not_announced_is_no_key_that_is_left(self) -> None:
        with self.assertRaises(TrustFileError):
            self.read(current="x", successor=NEXT.public)
        trust = self.read(current="x", successor=NEXT.public, retireAt="2026-05-16T01:28:00Z")
        self.assertEqual([slot for slot, _ in trust.ci_release_key.active(NOW)], ["successor"])

    def test_of_the_org_root_does_not_spoil_the_release_keys_rotation(self) -> None:
        body = CURRENT.trust_bytes(orgRootKey={"current": NEXT.public, "previous": "x"})
        self.assertIn("orgRootKey.previous", parse_trust(body).warnings[0])


class Rotation(unittest.TestCase):
    def test_keys_are_tried_as_current_previous_successor(self) -> None:
        keys = slots(
            successor=NEXT.public, retireAt="2026-05-16T01:28:00Z", previous=PREVIOUS.public, current=CURRENT.public
        )
        self.assertEqual([name for name, _ in keys.active(NOW)], ["current", "previous", "successor"])

    def test_the_successor_ends_at_the_very_moment_of_retire_at(self) -> None:
        keys = slots(current=CURRENT.public, successor=NEXT.public, retireAt="2026-05-16T01:27:00Z")
        before = NOW - timedelta(microseconds=1)
        self.assertEqual([name for name, _ in keys.active(before)], ["current", "successor"])
        self.assertEqual([name for name, _ in keys.active(NOW)], ["current"])

    def test_a_successor_without_retire_at_is_not_believed(self) -> None:
        self.assertEqual(slots(successor=NEXT.public).active(NOW), ())


class Signatures(unittest.TestCase):
    def test_both_algorithms_verify_what_they_signed_and_nothing_else(self) -> None:
        for signer in (CURRENT, PREVIOUS):
            with self.subTest(algorithm=signer.algorithm):
                ((_, key),) = slots(current=signer.public).active(NOW)
                signature = signer.signature(b"data")
                self.assertTrue(key.verifies(signature, b"data"))
                self.assertFalse(key.verifies(signature, b"date"))
                self.assertFalse(key.verifies(signature[:-1], b"data"))
                self.assertFalse(key.verifies(signature + b"\0", b"data"))
                self.assertFalse(key.verifies(b"", b"data"))
                self.assertFalse(key.verifies(bytes(64), b"data"))

    def test_an_ecdsa_signature_with_a_high_s_is_accepted(self) -> None:
        ((_, key),) = slots(current=PREVIOUS.public).active(NOW)
        signature = PREVIOUS.signature(b"data")
        r, s = signature[:32], int.from_bytes(signature[32:], "big")
        low, high = min(s, P256_ORDER - s), max(s, P256_ORDER - s)
        self.assertTrue(key.verifies(r + low.to_bytes(32, "big"), b"data"))
        self.assertTrue(key.verifies(r + high.to_bytes(32, "big"), b"data"))

    def test_a_key_of_an_unknown_algorithm_verifies_nothing(self) -> None:
        ((_, key),) = slots(current={"algorithm": "ml-dsa-65", "public": "AA=="}).active(NOW)
        self.assertFalse(key.verifies(CURRENT.signature(b"data"), b"data"))

    def test_the_algorithm_is_the_keys_own(self) -> None:
        ((_, key),) = slots(current=CURRENT.public).active(NOW)
        self.assertFalse(key.verifies(PREVIOUS.signature(b"data"), b"data"))


class Refused(unittest.TestCase):
    OFF_CURVE = base64.b64encode(bytes(63) + b"\1").decode()
    CASES = (
        ("not JSON", b""),
        ("not UTF-8", b"\xff"),
        ("twice", b'{"schemaVersion":1,"schemaVersion":1}'),
        ("schemaVersion", b"{}"),
        ("schemaVersion", b'{"schemaVersion":2}'),
        ("the top", b"[]"),
        ("ciReleaseKey", b'{"schemaVersion":1,"ciReleaseKey":[]}'),
        ("ciReleaseKey.current", b'{"schemaVersion":1,"ciReleaseKey":{"current":"AAAA"}}'),
        ("ciReleaseKey.current", b'{"schemaVersion":1,"ciReleaseKey":{"current":{"algorithm":"ed25519"}}}'),
        ("rejectBefore", b'{"schemaVersion":1,"ciReleaseKey":{"rejectBefore":"soon"}}'),
        ("retireAt", b'{"schemaVersion":1,"orgRootKey":{"retireAt":"2026-01-01"}}'),
        ("cacheKeys", b'{"schemaVersion":1,"cacheKeys":"x"}'),
        ("issuanceCaPems[0]", b'{"schemaVersion":1,"issuanceCaPems":[1]}'),
        ("rootCaPem", b'{"schemaVersion":1,"rootCaPem":[]}'),
    )

    def test_each_fault_is_named_by_its_place_and_ends_the_start(self) -> None:
        for where, raw in self.CASES:
            with self.subTest(where=where, raw=raw):
                with self.assertRaises(TrustFileError) as caught:
                    parse_trust(raw, "/etc/trust.json")
                self.assertIn(where, str(caught.exception))
                self.assertIn("/etc/trust.json", str(caught.exception))
                self.assertEqual(caught.exception.exit_code, EXIT_CONFIG)

    def test_keys_that_are_none(self) -> None:
        for algorithm, public in (
            ("ed25519", "AAAA"),
            ("ed25519", "not base64!"),
            ("ed25519", base64.b64encode(bytes(64)).decode()),
            ("ecdsa-p256", base64.b64encode(bytes(32)).decode()),
            ("ecdsa-p256", self.OFF_CURVE),
            ("ecdsa-p256", "\u20ac"),
        ):
            with self.subTest(algorithm=algorithm, public=public):
                with self.assertRaises(TrustFileError) as caught:
                    slots(previous={"algorithm": algorithm, "public": public})
                self.assertIn("ciReleaseKey.previous.public", str(caught.exception))


if __name__ == "__main__":
    unittest.main()
