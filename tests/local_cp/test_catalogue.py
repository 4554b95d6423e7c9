"""What the planner is told of a published fleet, and that CI's files verify as an agent would verify them."""

from __future__ import annotations

import dataclasses
import tempfile
import unittest
from datetime import datetime, timedelta, timezone
from pathlib import Path

from nixfleet_agent.local_cp.catalogue import Catalogue
from nixfleet_agent.local_cp.ci import ChannelDescription, ContinuousIntegration, FleetDescription, WaveDescription
from nixfleet_agent.local_cp.planner import Budget, Wave
from nixfleet_agent.state_machine import Policy
from nixfleet_agent.trust.marks import Marks
from nixfleet_agent.trust.roots import parse_trust
from nixfleet_agent.trust.verify import verify_fleet, verify_manifest
from tests.support.signing import closure_name

NOW = datetime(2026, 5, 16, 1, 30, tzinfo=timezone.utc)
FLEET = FleetDescription(
    channels={
        "stable": ChannelDescription(waves=(WaveDescription(("a", "b"), 3), WaveDescription(("c",)))),
        "edge": ChannelDescription(waves=(WaveDescription(("d",)),), policy=Policy.HALT),
    },
    tags={"a": ("web",), "c": ("web",), "d": ("db",)},
    edges=(("a", "b"),),
    channel_edges=(("stable", "edge"),),
    disruption_budgets=(
        {"hosts": ["a", "b"], "maxInFlight": 1},
        {"selector": {"tags": ["web"]}, "maxInFlightPct": 50},
        {"selector": {"all": True}, "maxInFlightPct": 1},
        {"selector": {"channel": "stable"}},
    ),
)


class Published(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="catalogue-")
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        self.ci = ContinuousIntegration()
        self.catalogue = Catalogue(self.folder)

    def publish(self, commit: str = "aaa1") -> None:
        closures = {name: closure_name(f"{name}-{commit}") for name in "abcd"}
        self.catalogue.publish(self.ci.release(FLEET, commit, closures, NOW))

    def test_an_empty_folder_is_not_ready_and_a_published_one_survives_a_restart(self) -> None:
        self.assertFalse(self.catalogue.ready)
        self.publish()
        again = Catalogue(self.folder)
        self.assertTrue(again.ready)
        self.assertEqual(again.open_rollouts, self.catalogue.open_rollouts)

    def test_waves_targets_and_policies_come_from_what_was_signed(self) -> None:
        self.publish()
        edge, stable = self.catalogue.open_rollouts
        self.assertEqual((edge.rollout_id, stable.rollout_id), ("edge@aaa1", "stable@aaa1"))
        self.assertEqual(stable.waves, (Wave(("a", "b"), timedelta(minutes=3)), Wave(("c",))))
        self.assertEqual(stable.targets["c"], closure_name("c-aaa1"))
        self.assertEqual(self.catalogue.soak_floor("stable@aaa1", "b"), 3)
        self.assertIs(self.catalogue.policy("stable@aaa1"), Policy.ROLLBACK_AND_HALT)
        self.assertIs(self.catalogue.policy("edge@aaa1"), Policy.HALT)
        self.assertIs(self.catalogue.policy("nowhere@aaa1"), Policy.HALT)
        self.assertEqual(self.catalogue.edges, (("a", "b"),))
        self.assertEqual(self.catalogue.channel_edges, (("stable", "edge"),))

    def test_budgets_name_select_and_count_hosts(self) -> None:
        self.publish()
        self.assertEqual(
            self.catalogue.budgets,
            (
                Budget(frozenset("ab"), 1),
                Budget(frozenset("ac"), 1),
                Budget(frozenset("abcd"), 1),
                Budget(frozenset("abc"), 3),
            ),
        )

    def test_selectors_combine_as_the_fleets_own_do(self) -> None:
        for selector, chosen in (
            ({"tags": ["web", "db"]}, ""),
            ({"tagsAny": ["web", "db"]}, "acd"),
            ({"hosts": ["b"], "tags": ["db"]}, "bd"),
            ({"not": {"tags": ["web"]}}, "bd"),
            ({"and": [{"channel": "stable"}, {"not": {"hosts": ["a"]}}], "all": True}, "bc"),
            ({"not": {"all": True}, "and": [{"all": True}]}, ""),
            ({}, ""),
        ):
            with self.subTest(selector=selector):
                fleet = dataclasses.replace(FLEET, disruption_budgets=({"selector": selector, "maxInFlight": 1},))
                closures = {name: closure_name(name) for name in "abcd"}
                self.catalogue.publish(self.ci.release(fleet, "aaa1", closures, NOW))
                (budget,) = self.catalogue.budgets
                self.assertEqual(budget.hosts, frozenset(chosen))

    def test_an_older_rollout_stays_known_but_only_the_newest_is_open(self) -> None:
        self.publish("aaa1")
        self.publish("bbb2")
        self.assertEqual([view.rollout_id for view in self.catalogue.open_rollouts], ["edge@bbb2", "stable@bbb2"])
        self.assertEqual(self.catalogue.target("stable@aaa1", "a"), closure_name("a-aaa1"))
        self.assertIsNone(self.catalogue.target("stable@aaa1", "d"))

    def test_an_agent_can_verify_everything_that_is_served(self) -> None:
        self.publish()
        trust = parse_trust(self.ci.trust_file())
        served = {name: self.served(name) for name in ("fleet.resolved", "rollouts/stable@aaa1", "rollouts/edge@aaa1")}
        fleet = verify_fleet(*served["fleet.resolved"], trust, now=NOW, override_window=None, marks=Marks())
        for rollout_id in ("stable@aaa1", "edge@aaa1"):
            manifest = verify_manifest(
                *served[f"rollouts/{rollout_id}"],
                rollout_id,
                trust,
                now=NOW,
                window=timedelta(hours=1),
                marks=Marks(),
            )
            self.assertEqual(manifest.manifest.fleet_resolved_hash, fleet.hash)

    def served(self, name: str) -> tuple[bytes, bytes]:
        body, signature = self.catalogue.artifact(name), self.catalogue.artifact(f"{name}/sig")
        assert body is not None and signature is not None
        return body.body, signature.body


if __name__ == "__main__":
    unittest.main()
