"""Every refusal of a signed artifact has its own class, and comes in its place in the order."""

from __future__ import annotations

import json
import unittest
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar
from unittest import mock

from nixfleet_agent.trust import errors, verify
from nixfleet_agent.trust.canonical import sha256_hex
from nixfleet_agent.trust.marks import Marks
from nixfleet_agent.trust.roots import TrustRoots, parse_trust
from nixfleet_agent.trust.verify import (
    VerifiedFleet,
    VerifiedManifest,
    check_fresh_fleet,
    check_fresh_manifest,
    verify_fleet,
    verify_manifest,
)
from tests.support.signing import CiSigner, Signed, fleet_value, manifest_value

NOW = datetime(2026, 5, 16, 1, 27, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOSTS = {"web-01": "stable", "db-01": "edge"}
CI = CiSigner()
TRUST = parse_trust(CI.trust_bytes())
ROLLOUT = "stable@def4567abc"


def fleet(signed_at: datetime = NOW, **changes: Any) -> dict[str, Any]:
    return fleet_value(HOSTS, signed_at=signed_at, **changes)


def manifest(signed_at: datetime = NOW, **changes: Any) -> dict[str, Any]:
    closures = {host: host for host in HOSTS}
    return manifest_value(CI.sign(fleet(signed_at)), "stable", closures, signed_at=signed_at, **changes)


def opened(
    artifact: Signed,
    trust: TrustRoots = TRUST,
    *,
    now: datetime = NOW,
    window: timedelta | None = None,
    marks: Marks | None = None,
) -> VerifiedFleet:
    return verify_fleet(
        artifact.raw, artifact.signature, trust, now=now, override_window=window, marks=marks or Marks()
    )


def opened_manifest(
    artifact: Signed,
    rollout_id: str = ROLLOUT,
    *,
    trust: TrustRoots = TRUST,
    now: datetime = NOW,
    window: timedelta | None = None,
    marks: Marks | None = None,
) -> VerifiedManifest:
    return verify_manifest(
        artifact.raw, artifact.signature, rollout_id, trust, now=now, window=window, marks=marks or Marks()
    )


class Accepted(unittest.TestCase):
    def test_what_ci_signed_and_the_hash_of_its_bytes(self) -> None:
        artifact = CI.sign(fleet())
        verified = opened(artifact)
        self.assertEqual((verified.hash, verified.signed_at, verified.key_name), (artifact.hash, NOW, "current"))
        self.assertIn("web-01", verified.fleet.hosts)

    def test_bytes_reordered_on_their_way_are_canonicalised_and_hashed_as_signed(self) -> None:
        artifact = CI.sign(fleet())
        loose = Signed(json.dumps(artifact.value, indent=2).encode(), artifact.signature)
        self.assertNotEqual(loose.raw, artifact.raw)
        self.assertEqual(opened(loose).hash, artifact.hash)

    def test_bytes_signed_as_they_are_need_no_canonical_form(self) -> None:
        raw = json.dumps(fleet(), indent=1).encode()
        self.assertEqual(opened(CI.sign_bytes(raw)).hash, sha256_hex(raw))

    def test_unknown_fields_are_part_of_what_is_signed(self) -> None:
        artifact = CI.sign({**fleet(), "later": [1, 2]})
        opened(artifact)
        without = {key: value for key, value in artifact.value.items() if key != "later"}
        with self.assertRaises(errors.BadSignatureError):
            opened(Signed(json.dumps(without).encode(), artifact.signature))

    def test_an_ecdsa_key(self) -> None:
        signer = CiSigner("ecdsa-p256")
        self.assertEqual(opened(signer.sign(fleet()), parse_trust(signer.trust_bytes())).key_name, "current")

    def test_a_manifest_under_its_id(self) -> None:
        artifact = CI.sign(manifest())
        verified = opened_manifest(artifact)
        self.assertEqual((verified.manifest.rollout_id, verified.hash), (ROLLOUT, artifact.hash))

    def test_edges_of_the_windows_are_inside(self) -> None:
        for age in (-60 * SECOND, 61 * MINUTE):
            opened(CI.sign(fleet(NOW - age)))
        opened_manifest(CI.sign(manifest(NOW - 61 * MINUTE)), window=60 * MINUTE)

    def test_without_a_window_a_manifests_age_is_not_judged(self) -> None:
        opened_manifest(CI.sign(manifest(NOW - timedelta(days=400))))

    def test_the_same_signing_time_again_is_not_backwards(self) -> None:
        opened(CI.sign(fleet()), marks=Marks(NOW))
        opened_manifest(CI.sign(manifest()), marks=Marks(None, {"stable": NOW}))

    def test_marks_of_other_things_do_not_hold_an_artifact_back(self) -> None:
        old = NOW - 10 * MINUTE
        opened(CI.sign(fleet(old)), marks=Marks(None, {"stable": NOW}))
        opened_manifest(CI.sign(manifest(old)), marks=Marks(NOW, {"edge": NOW}))

    def test_signed_at_the_moment_from_which_signatures_count(self) -> None:
        slots = {"current": CI.public, "rejectBefore": "2026-05-16T01:27:00Z"}
        opened(CI.sign(fleet()), parse_trust(CI.trust_bytes(ciReleaseKey=slots)))


class Rotation(unittest.TestCase):
    OLD, NEW = CiSigner(), CiSigner("ecdsa-p256")
    SLOTS: ClassVar[dict[str, Any]] = {
        "current": CI.public,
        "previous": OLD.public,
        "successor": NEW.public,
        "retireAt": "2026-05-16T01:28:00Z",
    }

    def test_each_active_key_is_found_by_its_slot(self) -> None:
        trust = parse_trust(CI.trust_bytes(ciReleaseKey=self.SLOTS))
        names = [opened(signer.sign(fleet()), trust).key_name for signer in (CI, self.OLD, self.NEW)]
        self.assertEqual(names, ["current", "previous", "successor"])

    def test_the_successor_is_not_believed_from_retire_at_on(self) -> None:
        trust = parse_trust(CI.trust_bytes(ciReleaseKey=self.SLOTS))
        self.assertRaises(errors.BadSignatureError, opened, self.NEW.sign(fleet()), trust, now=NOW + MINUTE)

    def test_a_key_of_an_unknown_algorithm_is_skipped(self) -> None:
        slots = {"current": {"algorithm": "ml-dsa-65", "public": "AA=="}, "previous": CI.public}
        trust = parse_trust(CI.trust_bytes(ciReleaseKey=slots))
        self.assertEqual(opened(CI.sign(fleet()), trust).key_name, "previous")

    def test_an_artifact_verified_under_a_key_that_was_since_removed_is_refused(self) -> None:
        trust = parse_trust(CI.trust_bytes(ciReleaseKey=self.SLOTS))
        verified = opened(self.OLD.sign(fleet()), trust)
        self.assertRaises(
            errors.BadSignatureError, check_fresh_fleet, verified, TRUST, now=NOW, override_window=None, marks=Marks()
        )

    def test_an_artifact_verified_under_a_key_that_only_changed_its_slot_stays_good(self) -> None:
        verified = opened(self.OLD.sign(fleet()), parse_trust(CI.trust_bytes(ciReleaseKey=self.SLOTS)))
        check_fresh_fleet(verified, parse_trust(self.OLD.trust_bytes()), now=NOW, override_window=None, marks=Marks())


class Refused(unittest.TestCase):
    def refused(
        self, kind: type[errors.VerificationError], artifact: Signed, trust: TrustRoots = TRUST, **judged: Any
    ) -> str:
        with self.assertRaises(kind) as caught:
            opened(artifact, trust, **judged)
        self.assertIs(type(caught.exception), kind)
        message = str(caught.exception)
        self.assertIn("fleet.resolved", message)
        self.assertNotIn("\n", message)
        return message

    def test_bytes_that_are_no_strict_json(self) -> None:
        duplicate = b'{"schemaVersion":1,' + CI.sign(fleet()).raw[1:]
        for raw in (b"", b"<html>", b"\xff", b'{"a":NaN}', b"[" * 65 + b"]" * 65, rb'"\ud800"', b"1e999", duplicate):
            with self.subTest(raw=raw[:20]):
                # Signed or not: what can be read in two ways is not read at all.
                self.refused(errors.MalformedArtifactError, CI.sign_bytes(raw))

    def test_more_bytes_than_the_limit(self) -> None:
        self.refused(errors.MalformedArtifactError, Signed(b" " * (64 * 1024 * 1024 + 1), bytes(64)))
        with self.assertRaises(errors.MalformedArtifactError):
            opened_manifest(Signed(b" " * (16 * 1024 * 1024 + 1), bytes(64)))

    def test_what_is_too_large_to_canonicalise_is_not_parsed_unless_it_is_signed_as_it_is(self) -> None:
        """What becomes of 64 MiB of JSON in memory is several times as much, and anybody can serve them."""
        with mock.patch.object(verify, "FLEET_LIMIT", 300), mock.patch.object(verify, "loads_strict") as parsed:
            with self.assertRaisesRegex(errors.MalformedArtifactError, "not signed by an active CI release key"):
                verify.open_fleet(b"[" * 101, bytes(64), parse_trust(CI.trust_bytes(), "t"), now=NOW)
            parsed.assert_not_called()
            with self.assertRaisesRegex(errors.MalformedArtifactError, "has more than 300 bytes"):
                verify.open_fleet(b"[" * 301, bytes(64), parse_trust(CI.trust_bytes(), "t"), now=NOW)
            parsed.assert_not_called()

    def test_bytes_in_another_form_are_canonicalised_up_to_a_share_of_the_limit(self) -> None:
        asked = CI.sign(fleet(edges=[{"gated": "a", "gates": "b", "reason": "x" * 10_000}]))
        indented = Signed(json.dumps(asked.value, indent=1).encode(), asked.signature)
        for limit, accepted in ((3 * len(indented.raw), True), (3 * len(indented.raw) - 1, False)):
            with mock.patch.object(verify, "FLEET_LIMIT", limit):
                opened(asked)  # as it was signed, it may have all of the limit
                if accepted:
                    opened(indented)
                else:
                    self.assertRaisesRegex(errors.MalformedArtifactError, "too many", opened, indented)

    def test_a_signature_that_is_a_document(self) -> None:
        self.refused(errors.MalformedArtifactError, Signed(CI.sign(fleet()).raw, bytes(4097)))

    def test_unsigned_or_signed_by_another(self) -> None:
        artifact = CI.sign(fleet())
        for signature in (b"", bytes(64), CiSigner().sign(fleet()).signature, artifact.signature[::-1]):
            with self.subTest(signature=signature[:8]):
                self.refused(errors.BadSignatureError, Signed(artifact.raw, signature))

    def test_one_changed_byte(self) -> None:
        artifact = CI.sign(fleet())
        self.refused(errors.BadSignatureError, Signed(artifact.raw.replace(b"db-01", b"db-02"), artifact.signature))

    def test_no_keys(self) -> None:
        self.refused(errors.NoTrustRootsError, CI.sign(fleet()), parse_trust(b'{"schemaVersion":1}'))

    def test_only_keys_of_unknown_algorithms(self) -> None:
        slots = {"current": {"algorithm": "ml-dsa-65\x1b[0m", "public": "AA=="}}
        message = self.refused(
            errors.UnsupportedAlgorithmError, CI.sign(fleet()), parse_trust(CI.trust_bytes(ciReleaseKey=slots))
        )
        self.assertIn("ml-dsa-65\\x1b", message)

    def test_the_artifact_can_not_choose_the_algorithm(self) -> None:
        other = CiSigner("ecdsa-p256")
        body = fleet()
        body["meta"]["signatureAlgorithm"] = "ecdsa-p256"
        self.refused(errors.BadSignatureError, other.sign(body))

    def test_a_form_that_is_not_the_documents(self) -> None:
        self.refused(errors.SchemaInvalidError, CI.sign(fleet(hosts2={}) | {"hosts": []}))
        self.refused(errors.SchemaInvalidError, CI.sign({}))
        self.refused(errors.SchemaInvalidError, CI.sign_bytes(b"[]"))

    def test_another_schema_version_at_the_top_or_in_meta(self) -> None:
        self.refused(errors.UnsupportedSchemaVersionError, CI.sign(fleet(schemaVersion=2)))
        body = fleet()
        body["meta"]["schemaVersion"] = 0
        self.refused(errors.UnsupportedSchemaVersionError, CI.sign(body))

    def test_no_signing_time(self) -> None:
        for absent in ({}, {"signedAt": None}):
            self.refused(errors.MissingSignedAtError, CI.sign(fleet(meta=absent)))

    def test_signed_before_signatures_count(self) -> None:
        slots = {"current": CI.public, "rejectBefore": "2026-05-16T01:27:00.000001Z"}
        self.refused(errors.RejectedBeforeError, CI.sign(fleet()), parse_trust(CI.trust_bytes(ciReleaseKey=slots)))

    def test_older_than_the_largest_window_of_its_channels(self) -> None:
        artifact = CI.sign(fleet(NOW - 61 * MINUTE - SECOND))
        message = self.refused(errors.StaleError, artifact)
        self.assertRegex(message, "61 minutes ago, and its freshness window is [0-9]+ minutes$")
        opened(artifact, window=120 * MINUTE)

    def test_the_configured_window_is_stricter_when_it_says_so(self) -> None:
        self.refused(errors.StaleError, CI.sign(fleet(NOW - 3 * MINUTE)), window=MINUTE)

    def test_further_in_the_future_than_clocks_differ(self) -> None:
        self.refused(errors.FutureDatedError, CI.sign(fleet(NOW + 61 * SECOND)))

    def test_a_replay_inside_its_window(self) -> None:
        self.refused(errors.OlderThanAcceptedError, CI.sign(fleet(NOW - SECOND)), marks=Marks(NOW))

    def test_a_clock_that_reads_less_than_what_was_accepted_is_called_wrong(self) -> None:
        # Judged by a clock two hours late a good artifact looks future-dated: the fault is named as what it is.
        message = self.refused(errors.ClockBehindError, CI.sign(fleet(NOW)), now=NOW - 120 * MINUTE, marks=Marks(NOW))
        self.assertIn("set the clock", message)
        other = Marks(None, {"edge": NOW + 61 * SECOND})
        self.refused(errors.ClockBehindError, CI.sign(fleet(NOW)), marks=other)
        opened(CI.sign(fleet(NOW)), marks=Marks(None, {"edge": NOW + 60 * SECOND}))

    def test_the_first_refusal_in_the_order_is_the_one_that_is_told(self) -> None:
        spoiled = fleet(NOW - timedelta(days=9), schemaVersion=2)
        self.refused(errors.BadSignatureError, CiSigner().sign(spoiled), marks=Marks(NOW))
        self.refused(errors.UnsupportedSchemaVersionError, CI.sign(spoiled), marks=Marks(NOW))
        late = {"current": CI.public, "rejectBefore": "2026-05-16T00:00:00Z"}
        trust = parse_trust(CI.trust_bytes(ciReleaseKey=late))
        old = CI.sign(fleet(NOW - timedelta(days=9)))
        self.refused(errors.RejectedBeforeError, old, trust, marks=Marks(NOW))
        self.refused(errors.StaleError, old, marks=Marks(NOW))
        self.refused(errors.OlderThanAcceptedError, CI.sign(fleet(NOW)), marks=Marks(NOW + 2 * MINUTE))


class ManifestRefused(unittest.TestCase):
    def test_a_good_manifest_of_another_rollout(self) -> None:
        for other in ("edge@def4567abc", "stable@def4567abd", "stable@def4567ab"):
            with self.subTest(other=other), self.assertRaises(errors.RolloutIdMismatchError):
                opened_manifest(CI.sign(manifest()), other)

    def test_a_fleet_in_place_of_a_manifest(self) -> None:
        self.assertRaises(errors.SchemaInvalidError, opened_manifest, CI.sign(fleet()))
        self.assertRaises(errors.SchemaInvalidError, opened, CI.sign(manifest()))

    def test_time_is_judged_by_the_channels_own_mark_and_window(self) -> None:
        old = CI.sign(manifest(NOW - 10 * MINUTE))
        with self.assertRaises(errors.OlderThanAcceptedError):
            opened_manifest(old, marks=Marks(None, {"stable": NOW}))
        with self.assertRaises(errors.StaleError):
            opened_manifest(old, window=5 * MINUTE)
        with self.assertRaises(errors.UnsupportedSchemaVersionError):
            opened_manifest(CI.sign(manifest(schemaVersion=3)))
        with self.assertRaises(errors.MissingSignedAtError):
            opened_manifest(CI.sign(manifest(meta={})))
        with self.assertRaises(errors.BadSignatureError):
            opened_manifest(CiSigner().sign(manifest()))


class JudgedAgain(unittest.TestCase):
    """What was verified once is judged by the clock, the marks and the trust file of the moment it is used."""

    def test_a_fleet(self) -> None:
        verified = opened(CI.sign(fleet()))
        for kind, now, marks in (
            (errors.StaleError, NOW + 62 * MINUTE, Marks()),
            (errors.FutureDatedError, NOW - 2 * MINUTE, Marks()),
            (errors.OlderThanAcceptedError, NOW + MINUTE, Marks(NOW + SECOND)),
            (errors.ClockBehindError, NOW, Marks(None, {"edge": NOW + 2 * MINUTE})),
        ):
            with self.subTest(kind=kind.reason), self.assertRaises(kind):
                check_fresh_fleet(verified, TRUST, now=now, override_window=None, marks=marks)
        check_fresh_fleet(verified, TRUST, now=NOW + 60 * MINUTE, override_window=None, marks=Marks(NOW))

    def test_a_manifest(self) -> None:
        verified = opened_manifest(CI.sign(manifest()))
        window = 30 * MINUTE
        for kind, now, marks in (
            (errors.StaleError, NOW + 32 * MINUTE, Marks()),
            (errors.FutureDatedError, NOW - 2 * MINUTE, Marks()),
            (errors.OlderThanAcceptedError, NOW, Marks(None, {"stable": NOW + SECOND})),
            (errors.ClockBehindError, NOW, Marks(NOW + 2 * MINUTE)),
        ):
            with self.subTest(kind=kind.reason), self.assertRaises(kind):
                check_fresh_manifest(verified, TRUST, now=now, window=window, marks=marks)
        late = parse_trust(CI.trust_bytes(ciReleaseKey={"current": CI.public, "rejectBefore": "2026-05-17T00:00:00Z"}))
        with self.assertRaises(errors.RejectedBeforeError):
            check_fresh_manifest(verified, late, now=NOW, window=window, marks=Marks())


class Catalogue(unittest.TestCase):
    def test_every_refusal_has_a_reason_of_its_own_and_the_final_ones_are_those_of_content(self) -> None:
        kinds = [
            kind
            for kind in vars(errors).values()
            if isinstance(kind, type) and issubclass(kind, errors.VerificationError)
        ]
        kinds.remove(errors.VerificationError)
        reasons = [kind.reason for kind in kinds]
        self.assertEqual(len(set(reasons)), len(reasons))
        self.assertEqual(
            {kind.reason for kind in kinds if kind.final},
            {
                "bad_signature",
                "schema",
                "schema_version",
                "rollout_id",
                "missing_signed_at",
                "host_not_in_manifest",
                "duplicate_host",
                "closure_mismatch",
            },
        )


if __name__ == "__main__":
    unittest.main()
