"""Evidence that this host did not sign: the real agent soaks, its probe fails with the reason, and never converges."""

from __future__ import annotations

import base64
import json
import unittest
from datetime import timedelta
from pathlib import Path
from typing import Any

import rfc8785

from nixfleet_agent.identity.host_key import HostKey
from nixfleet_agent.proto.times import format_time
from tests.attacks.case import AttackCase
from tests.attacks.host import MACHINE
from tests.support.tls import new_host_key, now


class Evidence(AttackCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = self.folder / "evidence.json"
        probe = {"kind": "evidence", "mode": "enforce", "framework": "nis2", "evidencePath": str(self.path)}
        self.host.health_checks.write_text(json.dumps({"compliance": {**probe, "intervalSeconds": 0.1}}))
        # A rollout that runs here already and is adopted: it soaks, and no switch is needed for it.
        self.publish(soak_minutes=0)
        self.host.run_system(self.closure)
        self.liar.snapshots = [self.liar.snapshot(self.rollout_id, self.closure, "Soaking")]

    def collect(self, key: HostKey, **changes: Any) -> dict[str, Any]:
        control = {"controlId": "c-1", "passed": True, "frameworkArticles": {"nis2": ["21"]}}
        document: dict[str, Any] = {
            "schemaVersion": 1,
            "hostname": MACHINE,
            "collectedAt": format_time(now()),
            "controls": [control],
        }
        document |= changes
        self.path.write_text(json.dumps(document))
        self.sign(rfc8785.dumps(document), key)
        return document

    def sign(self, raw: bytes, key: HostKey) -> None:
        Path(f"{self.path}.sig").write_text(base64.b64encode(key.sign(raw)).decode())

    def results(self) -> list[dict[str, Any]]:
        found = [e["event"] for e in list(self.liar.events) if e["event"]["kind"] == "ProbeResult"]
        return [event for event in found if event["probeName"] == "compliance"]

    def assert_fails(self, name: str, words: str) -> None:
        with self.attempt(name):
            if self.host.life is None:
                # Failing for as long as the attempts take is no sustained failure here.
                self.start(health_failure_threshold_secs=600.0)
            # The next result may have been measured before the files changed; the one after it was not.
            seen = len(self.results()) + 1
            self.until(
                lambda: any(
                    r["status"] == "fail" and words in r.get("failureReason", "") for r in self.results()[seen:]
                ),
                f"a result that fails with {words!r}: {self.results()[-1:]}",
            )
            self.assertNotIn("Converged", self.liar.kinds(self.rollout_id))
            self.assertEqual(self.life.switches, [])
            self.assert_alive()

    def test_evidence_signed_by_another_key_or_replayed_from_another_host(self) -> None:
        own, other = self.host.key, new_host_key()
        self.collect(other)
        self.assert_fails("another key", "is not signed by this host's key")
        self.collect(own, hostname="web-02")
        self.assert_fails("another host's, under a stolen key", "is evidence of 'web-02'")
        self.collect(other, hostname="web-02")
        self.assert_fails("another host's with its signature", "is not signed by this host's key")
        self.path.write_text(
            json.dumps(self.collect(own) | {"collectedAt": format_time(now() + timedelta(minutes=1)), "x": 1})
        )
        self.assert_fails("changed after signing", "is not signed by this host's key")
        Path(f"{self.path}.sig").write_bytes(base64.b64encode(bytes(64)))
        self.assert_fails("a signature of zeros", "is not signed by this host's key")
        Path(f"{self.path}.sig").unlink()
        self.assert_fails("no signature", "can't read")
        raw = self.path.read_bytes()[:-1] + b', "hostname": "web-01"}'
        self.path.write_bytes(raw)
        self.sign(raw, own)
        self.assert_fails("a host named twice", "stands twice")
        self.collect(own)
        self.until(lambda: self.results()[-1]["status"] == "pass", "honest evidence passes")
        self.until(lambda: "Converged" in self.liar.kinds(self.rollout_id), "and only now the rollout converges")
        self.assertEqual(self.life.switches, [])


if __name__ == "__main__":
    unittest.main()
