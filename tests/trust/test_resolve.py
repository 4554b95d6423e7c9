"""What a Dispatch may do comes from signed artifacts; a control plane that asks for anything else is refused."""

from __future__ import annotations

import unittest
from datetime import datetime, timedelta, timezone
from typing import Any

from nixfleet_agent.state_machine.states import Policy
from nixfleet_agent.trust import errors
from nixfleet_agent.trust.marks import ManifestMark, Marks
from nixfleet_agent.trust.resolve import Resolved, check_order, resolve_dispatch
from nixfleet_agent.trust.roots import parse_trust
from nixfleet_agent.trust.verify import VerifiedFleet, VerifiedManifest, verify_fleet, verify_manifest
from tests.support.signing import CiSigner, Signed, closure_name, fleet_value, manifest_value

NOW = datetime(2026, 5, 16, 1, 27, tzinfo=timezone.utc)
LATER = NOW + timedelta(seconds=30)
HOSTS = {"web-01": "stable", "web-02": "stable", "db-01": "edge"}
CLOSURES = {host: closure_name(host) for host in HOSTS}
CI = CiSigner()
TRUST = parse_trust(CI.trust_bytes())
TARGET = CLOSURES["web-01"]


def fleet(hosts: dict[str, str] | None = None, signed_at: datetime = NOW, **options: Any) -> Signed:
    return CI.sign(fleet_value(HOSTS if hosts is None else hosts, signed_at=signed_at, **options))


def opened(artifact: Signed) -> VerifiedFleet:
    return verify_fleet(artifact.raw, artifact.signature, TRUST, now=NOW, override_window=None, marks=Marks())


def manifest(of: Signed, signed_at: datetime = NOW, **changes: Any) -> VerifiedManifest:
    artifact = CI.sign(manifest_value(of, "stable", CLOSURES, signed_at=signed_at, **changes))
    return verify_manifest(
        artifact.raw, artifact.signature, "stable@def4567abc", TRUST, now=NOW, window=None, marks=Marks()
    )


class Resolving(unittest.TestCase):
    def test_the_terms_are_the_signed_ones(self) -> None:
        waves = {"stable": [{"hosts": ["web-02"], "soakMinutes": 7}, {"hosts": ["web-01"], "soakMinutes": 11}]}
        pinned = fleet(policy="halt", freshness_minutes=45, waves=waves)
        self.assertEqual(
            resolve_dispatch(manifest(pinned), opened(pinned), "web-01", TARGET),
            Resolved(Policy.HALT, 11, 1, timedelta(minutes=45)),
        )

    def test_in_a_fleet_that_is_not_pinned_the_wave_that_names_the_host_counts(self) -> None:
        """Its numbers count another list: by the number, a control plane chose the soak of another wave."""
        pinned = fleet()
        before = [{"hosts": ["web-02"], "soakMinutes": 0}, {"hosts": ["web-01"], "soakMinutes": 30}]
        for waves, soak, index in (
            (before, 30, 1),
            ([*before, {"hosts": ["web-01"], "soakMinutes": 60}], 60, 2),
        ):
            newer = opened(fleet(signed_at=LATER, waves={"stable": waves}))
            found = resolve_dispatch(manifest(pinned, waveIndex=0), newer, "web-01", TARGET)
            self.assertEqual((found.soak_floor_minutes, found.wave_index), (soak, index))
        for waves in ([], [{"hosts": ["web-02"], "soakMinutes": 0}]):
            newer = opened(fleet(signed_at=LATER, waves={"stable": waves}))
            with self.assertRaises(errors.WaveNotInFleetError):
                resolve_dispatch(manifest(pinned), newer, "web-01", TARGET)

    def test_nothing_but_the_newest_manifest_that_was_accepted_or_a_newer_one(self) -> None:
        pinned = fleet()
        first, later = manifest(pinned), manifest(pinned, signed_at=LATER)
        other = manifest(pinned, signed_at=LATER, displayName="another of the same instant")
        self.assertNotEqual(later.hash, other.hash)
        marks = Marks(manifest=ManifestMark(later.signed_at, later.hash))
        check_order(first, Marks())
        check_order(later, Marks(manifest=ManifestMark(first.signed_at, first.hash)))
        check_order(later, marks)
        for refused in (first, other):
            with self.assertRaises(errors.OlderThanAcceptedError):
                check_order(refused, marks)
        check_order(other, Marks(manifest=ManifestMark(later.signed_at)))

    def test_a_host_that_the_manifest_does_not_name(self) -> None:
        pinned = fleet()
        with self.assertRaises(errors.HostNotInManifestError):
            resolve_dispatch(manifest(pinned), opened(pinned), "db-01", TARGET)
        with self.assertRaises(errors.HostNotInManifestError):
            resolve_dispatch(manifest(pinned), opened(pinned), "WEB-01", TARGET)

    def test_a_host_that_the_manifest_names_twice(self) -> None:
        pinned = fleet()
        entry = {"hostname": "web-01", "waveIndex": 0, "targetClosure": TARGET}
        with self.assertRaises(errors.DuplicateHostError):
            resolve_dispatch(manifest(pinned, hostSet=[entry, entry]), opened(pinned), "web-01", TARGET)

    def test_another_closure_than_the_signed_one(self) -> None:
        pinned = fleet()
        for asked in (CLOSURES["web-02"], TARGET + "x", TARGET[:-1], ""):
            with self.subTest(asked=asked), self.assertRaises(errors.ClosureMismatchError):
                resolve_dispatch(manifest(pinned), opened(pinned), "web-01", asked)

    def test_a_channel_policy_or_wave_that_the_fleet_does_not_have(self) -> None:
        pinned = fleet(channels={})
        with self.assertRaises(errors.ChannelNotInFleetError):
            resolve_dispatch(
                manifest(pinned),
                verify_fleet(
                    pinned.raw, pinned.signature, TRUST, now=NOW, override_window=timedelta(hours=1), marks=Marks()
                ),
                "web-01",
                TARGET,
            )
        for options in ({"rolloutPolicies": {}}, {"policy": "reboot-everything"}):
            pinned = fleet(**options)
            with self.subTest(options=options), self.assertRaises(errors.PolicyUnknownError):
                resolve_dispatch(manifest(pinned), opened(pinned), "web-01", TARGET)
        for waves in ({}, {"stable": []}, {"edge": [{"hosts": [], "soakMinutes": 1}]}):
            pinned = fleet(waves=waves)
            with self.subTest(waves=waves), self.assertRaises(errors.WaveNotInFleetError):
                resolve_dispatch(manifest(pinned), opened(pinned), "web-01", TARGET)


class FleetPin(unittest.TestCase):
    def test_a_fleet_signed_later_that_still_has_the_host_on_the_channel_serves(self) -> None:
        newer = fleet({"web-01": "stable"}, LATER, policy="halt", soak_minutes=9)
        resolved = resolve_dispatch(manifest(fleet()), opened(newer), "web-01", TARGET)
        self.assertEqual((resolved.policy, resolved.soak_floor_minutes), (Policy.HALT, 9))

    def test_a_fleet_signed_later_without_the_host_or_with_it_on_another_channel(self) -> None:
        for hosts in ({"web-02": "stable"}, {"web-01": "edge", "web-02": "stable"}):
            with self.subTest(hosts=hosts), self.assertRaises(errors.FleetPinMismatchError):
                resolve_dispatch(manifest(fleet()), opened(fleet(hosts, LATER)), "web-01", TARGET)

    def test_another_fleet_of_the_same_moment_or_an_older_one(self) -> None:
        for signed_at in (NOW, NOW - timedelta(seconds=1)):
            other = fleet(signed_at=signed_at, policy="halt")
            with self.subTest(signed_at=signed_at), self.assertRaises(errors.FleetPinMismatchError):
                resolve_dispatch(manifest(fleet()), opened(other), "web-01", TARGET)

    def test_a_ci_that_signed_other_bytes_than_jcs_fails_the_pin_closed(self) -> None:
        value = fleet_value(HOSTS, signed_at=NOW)
        spaced = CI.sign_bytes(b" " + CI.sign(value).raw)
        with self.assertRaises(errors.FleetPinMismatchError):
            resolve_dispatch(manifest(CI.sign(value)), opened(spaced), "web-01", TARGET)


if __name__ == "__main__":
    unittest.main()
