"""The signed fleet as types: faults in it are found wherever they stand, and named by their place."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.fleet import Fleet, FleetHost
from tests.support.signing import fleet_value

NOW = datetime(2026, 5, 16, 1, 27, tzinfo=timezone.utc)
HOSTS = {"web-01": "stable", "web-02": "stable", "db-01": "edge"}


def value(**changes: Any) -> dict[str, Any]:
    return fleet_value(HOSTS, signed_at=NOW, soak_minutes=3, freshness_minutes=30, **changes)


class Parsed(unittest.TestCase):
    def test_a_sound_fleet(self) -> None:
        fleet = Fleet.parse(value())
        self.assertEqual(fleet.host("web-01"), FleetHost("x86_64-linux", ("web",), "stable", None, None))
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
        self.assertEqual(Fleet.parse({**value(channels={}), "hosts": {}}).freshness_window, timedelta(0))

    def test_minutes_that_overflow_a_timedelta_are_as_good_as_for_ever(self) -> None:
        body = value()
        body["channels"]["edge"]["freshnessWindow"] = 2**53 - 1
        body["waves"]["edge"][0]["soakMinutes"] = 2**53 - 1
        fleet = Fleet.parse(body)
        self.assertGreater(fleet.freshness_window, timedelta(days=36_000))
        self.assertGreater(timedelta(minutes=fleet.waves["edge"][0].soak_minutes), timedelta(days=36_000))


class Refused(unittest.TestCase):
    CASES: tuple[tuple[str, Callable[[dict[str, Any]], object]], ...] = (
        ("schemaVersion", lambda v: v.pop("schemaVersion")),
        ("schemaVersion", lambda v: v.update(schemaVersion="1")),
        ("schemaVersion", lambda v: v.update(schemaVersion=True)),
        ("hosts", lambda v: v.pop("hosts")),
        ("hosts", lambda v: v.update(hosts=[])),
        ("hosts.web-02 ", lambda v: v["hosts"].update({"web-02": "stable"})),
        ("hosts.web-02.system", lambda v: v["hosts"]["web-02"].pop("system")),
        ("hosts.web-02.channel", lambda v: v["hosts"]["web-02"].update(channel=["stable"])),
        ("hosts.web-02.channel", lambda v: v["hosts"]["web-02"].pop("channel")),
        ("hosts.web-02.tags", lambda v: v["hosts"]["web-02"].update(tags="web")),
        ("hosts.web-02.tags", lambda v: v["hosts"]["web-02"].update(tags=["web", 1])),
        ("hosts.web-02.tags", lambda v: v["hosts"]["web-02"].pop("tags")),
        ("hosts.web-02.closureHash", lambda v: v["hosts"]["web-02"].update(closureHash=7)),
        ("hosts.web-02.pubkey", lambda v: v["hosts"]["web-02"].update(pubkey={})),
        ("channels", lambda v: v.pop("channels")),
        ("channels.edge", lambda v: v["channels"].update(edge=None)),
        ("channels.edge.freshnessWindow", lambda v: v["channels"]["edge"].update(freshnessWindow="60")),
        ("channels.edge.freshnessWindow", lambda v: v["channels"]["edge"].update(freshnessWindow=-1)),
        ("channels.edge.freshnessWindow", lambda v: v["channels"]["edge"].update(freshnessWindow=1.5)),
        ("channels.edge", lambda v: v["channels"]["edge"].pop("rolloutPolicy")),
        ("'../edge'", lambda v: v["channels"].update({"../edge": v["channels"]["edge"]})),
        ("'edge\\\\n'", lambda v: v["channels"].update({"edge\n": v["channels"]["edge"]})),
        ("is not a valid channel", lambda v: v["channels"].update({"e" * 65: v["channels"]["edge"]})),
        ("rolloutPolicies.all-at-once", lambda v: v["rolloutPolicies"]["all-at-once"].pop("onHealthFailure")),
        ("waves.edge[0].soakMinutes", lambda v: v["waves"]["edge"][0].update(soakMinutes=-1)),
        ("waves.edge[0].hosts", lambda v: v["waves"]["edge"][0].update(hosts="db-01")),
        ("waves.edge[0].hosts", lambda v: v["waves"]["edge"][0].update(hosts=[1])),
        ("waves.edge[0]", lambda v: v["waves"].update(edge=["db-01"])),
        ("waves.edge", lambda v: v["waves"].update(edge={})),
        ("waves", lambda v: v.update(waves=[])),
        ("edges", lambda v: v.update(edges=["a"])),
        ("edges", lambda v: v.update(edges={})),
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
