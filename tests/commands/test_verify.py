"""`verify`: artifacts judged offline as the daemon would, with the name of the check that failed."""

from __future__ import annotations

import unittest
from datetime import timedelta

from tests.commands.host_case import MACHINE, HostCase, Ran
from tests.support.signing import CiSigner, Signed

OTHER = "web-02"


class Verify(HostCase):
    def setUp(self) -> None:
        super().setUp()
        self.release = self.ci.release({MACHINE: "stable", OTHER: "stable"}, signed_at=self.now)

    def verify(self, what: str, artifact: Signed, *arguments: str) -> Ran:
        file, signature = self.folder / "artifact", self.folder / "artifact.sig"
        file.write_bytes(artifact.raw)
        signature.write_bytes(artifact.signature)
        return self.call("verify", f"--{what}", str(file), "--sig", str(signature), *arguments)

    def refused(self, check: str, ran: Ran) -> None:
        self.assertEqual((ran.code, ran.err), (1, ""), ran)
        self.assertIn(f"check={check} ", ran.out)

    def test_a_fleet(self) -> None:
        ran = self.verify("fleet", self.release.fleet, "--json")
        self.assertEqual(ran.code, 0, ran)
        self.assertEqual(ran.json["hash"], self.release.fleet.hash)
        self.assertEqual((ran.json["verified"], ran.json["key"], ran.json["hosts"]), (True, "current", 2))

    def test_a_manifest_and_this_hosts_part_in_it(self) -> None:
        manifest = self.release.rollout("stable")
        ran = self.verify("manifest", manifest, "--host", MACHINE, "--json")
        self.assertEqual(ran.code, 0, ran)
        self.assertEqual(ran.json["artifact"], self.release.rollout_id("stable"))
        self.assertEqual(ran.json["target_closure"], self.release.closures[MACHINE])
        self.assertIn("verified", self.verify("manifest", manifest).out)

    def test_each_check_is_named_when_it_fails(self) -> None:
        fleet, manifest = self.release.fleet, self.release.rollout("stable")
        self.refused("bad_signature", self.verify("fleet", Signed(fleet.raw, bytes(64))))
        self.refused("bad_signature", self.verify("fleet", CiSigner().sign(fleet.value)))
        self.refused("bad_signature", self.verify("fleet", Signed(fleet.raw, fleet.signature + b"\n")))
        self.refused("malformed", self.verify("fleet", Signed(fleet.raw[:-1], fleet.signature)))
        self.refused("host_not_in_manifest", self.verify("manifest", manifest, "--host", "db-09"))
        self.refused("rollout_id", self.verify("manifest", manifest, "--rollout", "edge@def4567abc"))
        self.refused("schema", self.verify("manifest", fleet))
        self.refused("bad_signature", self.verify("manifest", Signed(b"{}", bytes(64))))

    def test_a_fleet_is_judged_by_its_own_windows_and_a_manifest_only_by_the_configured_one(self) -> None:
        old = self.ci.release({MACHINE: "stable"}, signed_at=self.now - timedelta(hours=2))
        self.refused("stale", self.verify("fleet", old.fleet))
        self.assertEqual(self.verify("manifest", old.rollout("stable")).code, 0)
        self.tables = "manifest_freshness_window_secs = 3600\n" + self.tables
        self.refused("stale", self.verify("manifest", old.rollout("stable")))
        self.tables = self.tables.replace("3600", "86400")
        self.assertEqual(self.verify("fleet", old.fleet).code, 0)

    def test_high_water_marks_are_neither_read_nor_written(self) -> None:
        (self.state / "trust-marks.json").write_text(
            '{"schemaVersion": 1, "fleet": "2099-01-01T00:00:00Z", "channels": {}}'
        )
        before = (self.state / "trust-marks.json").read_bytes()
        self.assertEqual(self.verify("fleet", self.release.fleet).code, 0)
        self.assertEqual((self.state / "trust-marks.json").read_bytes(), before)

    def test_another_trust_file(self) -> None:
        other = CiSigner()
        path = self.folder / "other-trust.json"
        path.write_bytes(other.trust_bytes())
        self.refused("bad_signature", self.verify("fleet", self.release.fleet, "--trust-file", str(path)))
        self.assertEqual(self.verify("fleet", other.sign(self.release.fleet.value), "--trust-file", str(path)).code, 0)


if __name__ == "__main__":
    unittest.main()
