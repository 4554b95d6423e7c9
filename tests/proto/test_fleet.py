"""The signed fleet as types: faults in it are found wherever they stand, and named by their place."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.fleet import Fleet, FleetHost, Wave
from tests.support.signing import fleet_value

NOW = datetime(2026, 5, 16, 1, 27, tzinfo=timezone.utc)
HOSTS = {"web-01": "stable", "web-02": "stable", "db-01": "edge"}


def value(**changes: Any) -> dict[str, Any]:
    return fleet_value(HOSTS, signed_at=NOW, soak_minutes=3, freshness_minutes=30, **changes)


def policy(fleet: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = fleet["rolloutPolicies"]["all-at-once"]
    return found


def one_wave(fleet: dict[str, Any]) -> dict[str, Any]:
    """The policy of ``fleet``, which has become all at once, without waves."""
    fleet.pop("waves", None)
    policy(fleet).update(strategy="all-at-once")
    return policy(fleet)


class Parsed(unittest.TestCase):
    def test_a_sound_fleet(self) -> None:
        fleet = Fleet.parse(value())
        self.assertEqual(fleet.host("web-01"), FleetHost("stable"))
        self.assertIsNone(fleet.host("web-99"))
        self.assertEqual(fleet.channels["stable"].freshness_window, timedelta(minutes=30))
        self.assertEqual(fleet.policies, {"all-at-once": "rollback-and-halt"})
        self.assertEqual(fleet.waves["stable"][0].soak_minutes, 3)
        self.assertEqual(fleet.waves["stable"][0].hosts, ("web-01", "web-02"))
        self.assertEqual((fleet.meta.signed_at, fleet.meta.ci_commit), (NOW, "def4567abc"))
        self.assertEqual(fleet.channels_in_use, {"stable", "edge"})

    def test_null_counts_as_absent_where_a_field_may_be_absent(self) -> None:
        body = value(waves=None, rolloutPolicies=None, edges=None, disruptionBudgets=None, channelEdges=None)
        body["hosts"]["web-01"]["pubkey"] = None
        body["channels"]["stable"]["compliance"] = None
        body["meta"]["signedAt"] = None
        fleet = Fleet.parse(body)
        self.assertEqual((fleet.waves, fleet.policies, fleet.meta.signed_at), ({}, {}, None))

    def test_unknown_fields_are_ignored(self) -> None:
        body = value(later={"x": 1})
        body["hosts"]["web-01"]["later"] = 1
        body["channels"]["stable"]["later"] = 1
        self.assertIsNotNone(Fleet.parse(body).host("web-01"))

    def test_the_fleets_own_window_is_the_largest_of_its_channels(self) -> None:
        body = value()
        body["channels"]["edge"]["freshnessWindow"] = 90
        self.assertEqual(Fleet.parse(body).freshness_window, timedelta(minutes=90))
        self.assertEqual(Fleet.parse({**value(channels={}, waves={}), "hosts": {}}).freshness_window, timedelta(0))

    def test_minutes_that_overflow_a_timedelta_are_as_good_as_for_ever(self) -> None:
        body = value()
        body["channels"]["edge"]["freshnessWindow"] = 2**53 - 1
        body["waves"]["edge"][0]["soakMinutes"] = 2**53 - 1
        fleet = Fleet.parse(body)
        self.assertGreater(fleet.freshness_window, timedelta(days=36_000))
        self.assertGreater(timedelta(minutes=fleet.waves["edge"][0].soak_minutes), timedelta(days=36_000))


class AllAtOnce(unittest.TestCase):
    def test_without_waves_all_hosts_of_the_channel_are_one_wave_with_the_policys_soak(self) -> None:
        for waves in ("absent", None, {}, {"stable": [], "edge": None}, {"edge": []}):
            for declared, soak in (
                ("absent", 0),
                (None, 0),
                ([], 0),
                ([{"selector": {"all": True}}], 0),
                ([{"soakMinutes": None}], 0),
                ([{"selector": {"all": True}, "soakMinutes": 7}], 7),
                ([{"soakMinutes": 2}, {"soakMinutes": 9}], 9),
            ):
                with self.subTest(waves=waves, declared=declared):
                    body = value(waves=waves)
                    policy(body).update(strategy="all-at-once", waves=declared)
                    for holder, key in ((body, "waves"), (policy(body), "waves")):
                        if holder[key] == "absent":
                            del holder[key]
                    fleet = Fleet.parse(body)
                    self.assertEqual(fleet.waves["stable"], (Wave(("web-01", "web-02"), soak),))
                    self.assertEqual(fleet.waves["edge"], (Wave(("db-01",), soak),))

    def test_waves_that_are_listed_win(self) -> None:
        body = value()
        policy(body).update(strategy="all-at-once", waves=[{"soakMinutes": 99}])
        self.assertEqual(Fleet.parse(body).waves["stable"], (Wave(("web-01", "web-02"), 3),))

    def test_another_strategy_has_the_waves_that_are_listed_and_no_other(self) -> None:
        for strategy in ("canary", "staged", None, 5):
            body = value(waves={"stable": []})
            policy(body).update(strategy=strategy)
            self.assertEqual(Fleet.parse(body).waves, {"stable": ()})

    def test_a_policy_that_says_nothing_of_failures_takes_the_declared_default(self) -> None:
        body = value()
        body["rolloutPolicies"] = {"all-at-once": {"strategy": "all-at-once"}, "p": {"onHealthFailure": None}}
        self.assertEqual(Fleet.parse(body).policies, {"all-at-once": "rollback-and-halt", "p": "rollback-and-halt"})


class Refused(unittest.TestCase):
    CASES: tuple[tuple[str, Callable[[dict[str, Any]], object]], ...] = (
        ("schemaVersion", lambda v: v.pop("schemaVersion")),
        ("schemaVersion", lambda v: v.update(schemaVersion="1")),
        ("schemaVersion", lambda v: v.update(schemaVersion=True)),
        ("hosts", lambda v: v.pop("hosts")),
        ("hosts", lambda v: v.update(hosts=[])),
        ("hosts.web-02 ", lambda v: v["hosts"].update({"web-02": "stable"})),
        ("hosts.web-02.channel", lambda v: v["hosts"]["web-02"].update(channel=["stable"])),
        ("hosts.web-02.channel", lambda v: v["hosts"]["web-02"].pop("channel")),
        ("channels", lambda v: v.pop("channels")),
        ("channels.edge", lambda v: v["channels"].update(edge=None)),
        ("channels.edge.freshnessWindow", lambda v: v["channels"]["edge"].update(freshnessWindow="60")),
        ("channels.edge.freshnessWindow", lambda v: v["channels"]["edge"].update(freshnessWindow=-1)),
        ("channels.edge.freshnessWindow", lambda v: v["channels"]["edge"].update(freshnessWindow=1.5)),
        ("channels.edge", lambda v: v["channels"]["edge"].pop("rolloutPolicy")),
        ("'../edge'", lambda v: v["channels"].update({"../edge": v["channels"]["edge"]})),
        ("'edge\\\\n'", lambda v: v["channels"].update({"edge\n": v["channels"]["edge"]})),
        ("is not a valid channel", lambda v: v["channels"].update({"e" * 65: v["channels"]["edge"]})),
        ("rolloutPolicies.all-at-once.onHealth", lambda v: policy(v).update(onHealthFailure=7)),
        ("rolloutPolicies.all-at-once", lambda v: v["rolloutPolicies"].update({"all-at-once": "halt"})),
        ("rolloutPolicies.all-at-once.waves", lambda v: one_wave(v).update(waves={})),
        ("rolloutPolicies.all-at-once.waves[0]", lambda v: one_wave(v).update(waves=[5])),
        (
            "rolloutPolicies.all-at-once.waves[0].soakMinutes",
            lambda v: one_wave(v).update(waves=[{"soakMinutes": "5"}]),
        ),
        ("rolloutPolicies.all-at-once.waves[0].soakMinutes", lambda v: one_wave(v).update(waves=[{"soakMinutes": -1}])),
        (
            "rolloutPolicies.all-at-once.waves[0].soakMinutes",
            lambda v: one_wave(v).update(waves=[{"soakMinutes": True}]),
        ),
        (
            "waves.edge[0] names ghost-01, a host of no channel",
            lambda v: v["waves"]["edge"][0]["hosts"].append("ghost-01"),
        ),
        ("waves.gone[0] names ghost-01", lambda v: v["waves"].update(gone=[{"hosts": ["ghost-01"], "soakMinutes": 0}])),
        ("waves.edge[0].soakMinutes", lambda v: v["waves"]["edge"][0].update(soakMinutes=-1)),
        ("waves.edge[0].hosts", lambda v: v["waves"]["edge"][0].update(hosts="db-01")),
        ("waves.edge[0].hosts", lambda v: v["waves"]["edge"][0].update(hosts=[1])),
        ("waves.edge[0]", lambda v: v["waves"].update(edge=["db-01"])),
        ("waves.edge", lambda v: v["waves"].update(edge={})),
        ("waves", lambda v: v.update(waves=[])),
        ("meta", lambda v: v.pop("meta")),
        ("meta.signedAt", lambda v: v["meta"].update(signedAt=12)),
        ("timestamp", lambda v: v["meta"].update(signedAt="yesterday")),
    )

    def test_each_fault_is_named_by_its_place(self) -> None:
        for where, spoil in self.CASES:
            body = value()
            spoil(body)
            with self.subTest(where=where):
                with self.assertRaises(ProtoError) as caught:
                    Fleet.parse(body)
                self.assertIn(where, str(caught.exception))
                self.assertNotIn("\n", str(caught.exception))

    def test_what_is_no_object_is_no_fleet(self) -> None:
        for body in (None, [], "fleet", 1):
            self.assertRaises(ProtoError, Fleet.parse, body)

    def test_terminal_escapes_in_a_refused_value_do_not_reach_the_message(self) -> None:
        body = value()
        body["channels"]["\x1b[31m"] = {}
        body["channels"]["stable"]["rolloutPolicy"] = ["\x1b[2J"]
        with self.assertRaises(ProtoError) as caught:
            Fleet.parse(body)
        self.assertNotIn("\x1b", str(caught.exception))


if __name__ == "__main__":
    unittest.main()
