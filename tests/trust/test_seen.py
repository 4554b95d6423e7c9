"""The same bytes again are not verified a second time, and are judged by the clock, marks and keys of the moment."""

from __future__ import annotations

import unittest
from datetime import datetime, timedelta, timezone

from nixfleet_agent.trust import errors
from nixfleet_agent.trust.marks import Marks
from nixfleet_agent.trust.roots import TrustRoots, parse_trust
from nixfleet_agent.trust.seen import SeenFleet, SeenManifest, see_fleet, see_manifest
from tests.support.signing import CiSigner, Release, Signed

NOW = datetime(2026, 5, 16, 1, 27, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)
CI = CiSigner()
TRUST = parse_trust(CI.trust_bytes())
RELEASE: Release = CI.release({"web-01": "stable", "db-01": "edge"}, signed_at=NOW)


def fleet(
    artifact: Signed,
    last: SeenFleet | None,
    *,
    trust: TrustRoots = TRUST,
    now: datetime = NOW,
    marks: Marks | None = None,
) -> SeenFleet:
    raw = bytes(bytearray(artifact.raw))
    return see_fleet(
        Signed(raw, artifact.signature), last, trust, now=now, override_window=None, marks=marks or Marks()
    )


def manifest(rollout_id: str, artifact: Signed, last: SeenManifest | None, *, now: datetime = NOW) -> SeenManifest:
    raw = bytes(bytearray(artifact.raw))
    signed = Signed(raw, artifact.signature)
    return see_manifest(signed, last, rollout_id, TRUST, now=now, window=MINUTE, marks=Marks())


class SameBytes(unittest.TestCase):
    def test_give_back_what_was_verified(self) -> None:
        first = fleet(RELEASE.fleet, None)
        self.assertIs(fleet(RELEASE.fleet, first), first)
        one = manifest("stable@def4567abc", RELEASE.rollout("stable"), None)
        self.assertIs(manifest("stable@def4567abc", RELEASE.rollout("stable"), one), one)

    def test_are_judged_by_the_moment(self) -> None:
        first = fleet(RELEASE.fleet, None)
        with self.assertRaises(errors.StaleError):
            fleet(RELEASE.fleet, first, now=NOW + 62 * MINUTE)
        with self.assertRaises(errors.OlderThanAcceptedError):
            fleet(RELEASE.fleet, first, marks=Marks(NOW + timedelta(seconds=1)))
        with self.assertRaises(errors.BadSignatureError):
            fleet(RELEASE.fleet, first, trust=parse_trust(CiSigner().trust_bytes()))
        one = manifest("stable@def4567abc", RELEASE.rollout("stable"), None)
        with self.assertRaises(errors.StaleError):
            manifest("stable@def4567abc", RELEASE.rollout("stable"), one, now=NOW + 3 * MINUTE)

    def test_with_another_signature_are_verified_anew(self) -> None:
        first = fleet(RELEASE.fleet, None)
        with self.assertRaises(errors.BadSignatureError):
            fleet(Signed(RELEASE.fleet.raw, bytes(64)), first)

    def test_asked_for_under_another_id_are_verified_anew(self) -> None:
        one = manifest("stable@def4567abc", RELEASE.rollout("stable"), None)
        with self.assertRaises(errors.RolloutIdMismatchError):
            manifest("edge@def4567abc", RELEASE.rollout("stable"), one)


class OtherBytes(unittest.TestCase):
    def test_are_verified(self) -> None:
        first = fleet(RELEASE.fleet, None)
        newer = CI.release({"web-01": "stable"}, signed_at=NOW + timedelta(seconds=5)).fleet
        self.assertNotEqual(fleet(newer, first).verified.hash, first.verified.hash)
        changed = Signed(RELEASE.fleet.raw.replace(b"db-01", b"db-02"), RELEASE.fleet.signature)
        with self.assertRaises(errors.BadSignatureError):
            fleet(changed, first)


if __name__ == "__main__":
    unittest.main()
