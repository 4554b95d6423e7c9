"""The rollout manifest as a type: faults in it are found wherever they stand, and named by their place."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.manifest import ManifestHost, RolloutManifest
from tests.support.signing import CiSigner, closure_name, fleet_value, manifest_value

NOW = datetime(2026, 5, 16, 1, 27, tzinfo=timezone.utc)
HOSTS = {"web-01": "stable", "web-02": "stable"}
CLOSURES = {host: closure_name(host) for host in HOSTS}
FLEET = CiSigner().sign(fleet_value(HOSTS, signed_at=NOW))


def value(**changes: Any) -> dict[str, Any]:
    return manifest_value(FLEET, "stable", CLOSURES, signed_at=NOW, **changes)


class Parsed(unittest.TestCase):
    def test_a_sound_manifest(self) -> None:
        manifest = RolloutManifest.parse(value(later=1))
        self.assertEqual(manifest.rollout_id, "stable@def4567abc")
        self.assertEqual(manifest.fleet_resolved_hash, FLEET.hash)
        self.assertEqual(manifest.entries("web-02"), [ManifestHost("web-02", 0, CLOSURES["web-02"])])
        self.assertEqual(manifest.entries("web-03"), [])

    def test_a_host_named_twice_is_seen_twice(self) -> None:
        body = value()
        body["hostSet"].append(dict(body["hostSet"][0], targetClosure=closure_name("other")))
        self.assertEqual(len(RolloutManifest.parse(body).entries("web-01")), 2)


class Refused(unittest.TestCase):
    CASES: tuple[tuple[str, Callable[[dict[str, Any]], object]], ...] = (
        ("schemaVersion", lambda v: v.pop("schemaVersion")),
        ("channel", lambda v: v.update(channel=None)),
        ("rollout id", lambda v: v.update(channel="../../etc")),
        ("rollout id", lambda v: v.update(channel="stable\n")),
        ("rollout id", lambda v: v.update(channelRef="DEF")),
        ("rollout id", lambda v: v.update(channelRef="a" * 65)),
        ("fleetResolvedHash", lambda v: v.update(fleetResolvedHash="ABC")),
        ("fleetResolvedHash", lambda v: v.pop("fleetResolvedHash")),
        ("hostSet", lambda v: v.pop("hostSet")),
        ("hostSet", lambda v: v.update(hostSet={"web-01": "x"})),
        ("hostSet[1]", lambda v: v["hostSet"].__setitem__(1, "web-02")),
        ("hostSet[1].hostname", lambda v: v["hostSet"][1].pop("hostname")),
        ("hostSet[1].targetClosure", lambda v: v["hostSet"][1].update(targetClosure=None)),
        ("hostSet[1].waveIndex", lambda v: v["hostSet"][1].update(waveIndex=-1)),
        ("hostSet[1].waveIndex", lambda v: v["hostSet"][1].update(waveIndex=True)),
        ("hostSet[1].waveIndex", lambda v: v["hostSet"][1].update(waveIndex="0")),
        ("hostSet[1].waveIndex", lambda v: v["hostSet"][1].pop("waveIndex")),
        ("meta", lambda v: v.update(meta=[])),
        ("timestamp", lambda v: v["meta"].update(signedAt="2026-05-16 01:27")),
    )

    def test_each_fault_is_named_by_its_place(self) -> None:
        for where, spoil in self.CASES:
            body = value()
            spoil(body)
            with self.subTest(where=where):
                with self.assertRaises(ProtoError) as caught:
                    RolloutManifest.parse(body)
                self.assertIn(where, str(caught.exception))
                self.assertNotIn("\n", str(caught.exception))

    def test_what_is_no_object_is_no_manifest(self) -> None:
        for body in (None, [], "manifest", 1):
            self.assertRaises(ProtoError, RolloutManifest.parse, body)


if __name__ == "__main__":
    unittest.main()
