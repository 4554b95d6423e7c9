"""Every example of the wire and of a file passes through the code that reads it, and comes out as it went in."""

from __future__ import annotations

import json
import tomllib
import unittest
from typing import Any

from nixfleet_agent.config.schema import Schema
from nixfleet_agent.probes import health_checks
from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.proto.enrollment import BootstrapToken
from nixfleet_agent.proto.events import from_wire, to_wire
from nixfleet_agent.proto.fleet import Fleet
from nixfleet_agent.proto.heartbeat import Heartbeat, Snapshot
from nixfleet_agent.proto.manifest import RolloutManifest
from nixfleet_agent.proto.times import parse_time
from nixfleet_agent.state_machine.events import KINDS
from nixfleet_agent.trust.resolve import require_entry
from nixfleet_agent.trust.roots import parse_trust
from tests.docs.pages import blocks


def example(what: str) -> Any:
    (block,) = blocks(f"json {what}")
    return json.loads(block.text)


class Examples(unittest.TestCase):
    def test_dispatch(self) -> None:
        body = example("Dispatch")
        self.assertEqual(Dispatch.parse(body).to_json(), body)

    def test_every_kind_of_event(self) -> None:
        envelope = example("event")
        events = [envelope["event"], *example("events")]
        self.assertEqual({event["kind"] for event in events}, set(KINDS))
        for event in events:
            for remote in (True, False):
                with self.subTest(event["kind"], remote=remote):
                    self.assertEqual(to_wire(from_wire(event, remote=remote)), event)
        self.assertEqual(set(envelope), {"hostname", "rolloutId", "event", "signature", "previous", "chainSignature"})

    def test_heartbeat(self) -> None:
        body = example("heartbeat")
        self.assertEqual(Heartbeat(**{**body, "at": parse_time(body["at"])}).to_json(), body)

    def test_snapshot(self) -> None:
        body = example("snapshot")
        snapshot = Snapshot.parse(body)
        self.assertEqual((snapshot.rollout_id, snapshot.state), ("stable@def4567abc", "Soaking"))
        self.assertEqual(snapshot.last_event_seq, 8)

    def test_fleet_and_manifest(self) -> None:
        fleet, manifest = Fleet.parse(example("fleet")), RolloutManifest.parse(example("manifest"))
        self.assertEqual(manifest.rollout_id, f"{manifest.channel}@{fleet.meta.ci_commit}")
        host = fleet.host("web-01")
        assert host is not None
        self.assertEqual(require_entry(manifest, "web-01", example("Dispatch")["target_closure"]).wave_index, 0)
        self.assertEqual(host.channel, manifest.channel)

    def test_token(self) -> None:
        self.assertEqual(BootstrapToken.parse(json.dumps(example("token")).encode()).hostname, "web-01")

    def test_trust_file(self) -> None:
        roots = parse_trust(json.dumps(example("trust")).encode(), "the example")
        names = [slot for slot, _ in roots.ci_release_key.active(parse_time("2026-06-01T00:00:00Z"))]
        self.assertEqual(names, ["current", "previous"])

    def test_health_checks(self) -> None:
        self.assertEqual(health_checks.lint(json.dumps(example("health-checks")).encode(), 5), [])

    def test_configuration(self) -> None:
        for block in blocks("toml"):
            with self.subTest(block.text):
                needed = {"control_plane_url": "https://cp", "machine_id": "web-01"}
                self.assertEqual(Schema().problems(needed | tomllib.loads(block.text), str), [])


if __name__ == "__main__":
    unittest.main()
