"""Quarantine: what failed here stays away for a while, on its channel only, and a damaged file is no amnesty unseen."""

from __future__ import annotations

import json
import tempfile
import unittest
from datetime import datetime, timedelta, timezone
from pathlib import Path

from nixfleet_agent.operator.quarantine import Entry, QuarantineStore, refusal

NOW = datetime(2026, 5, 16, 1, 0, tzinfo=timezone.utc)
BAD = "0" * 32 + "-bad"


def entry(closure: str = BAD, channel: str = "stable", hours_ago: float = 1, rollout: str = "stable@a1") -> Entry:
    return Entry(channel, closure, rollout, NOW - timedelta(hours=hours_ago), "its switch failed")


class DecisionTest(unittest.TestCase):
    def refused(self, *entries: Entry, hours: float = 24, running: str | None = None, channel: str = "stable") -> bool:
        return refusal(entries, channel, BAD, now=NOW, hours=hours, running=running) is not None

    def test_the_closure_is_refused_on_its_channel_until_the_hours_are_over(self) -> None:
        self.assertTrue(self.refused(entry()))
        self.assertTrue(self.refused(entry(hours_ago=23.9)))
        self.assertFalse(self.refused(entry(hours_ago=24)))
        self.assertFalse(self.refused(entry(), channel="edge"))
        self.assertFalse(self.refused(entry(closure="0" * 32 + "-other")))

    def test_what_runs_is_never_refused(self) -> None:
        self.assertFalse(self.refused(entry(), running=BAD))

    def test_zero_hours_turn_it_off(self) -> None:
        self.assertFalse(self.refused(entry(hours_ago=0), hours=0))

    def test_an_entry_from_a_wrong_clock_does_not_refuse_for_ever(self) -> None:
        self.assertTrue(self.refused(entry(hours_ago=-1)))
        self.assertFalse(self.refused(entry(hours_ago=-1000)))


class StoreTest(unittest.TestCase):
    def setUp(self) -> None:
        made = tempfile.TemporaryDirectory()
        self.addCleanup(made.cleanup)
        self.folder = Path(made.name)
        self.store = QuarantineStore(self.folder)

    def test_entries_survive_a_restart_and_the_newest_of_a_closure_counts(self) -> None:
        self.store.add(entry(hours_ago=5))
        self.store.add(entry(hours_ago=2, rollout="stable@b2"))
        self.store.add(entry(channel="edge"))
        again = QuarantineStore(self.folder)
        self.assertEqual([e.rollout_id for e in again.entries()], ["stable@b2", "stable@a1"])
        found = again.refusal("stable", BAD, now=NOW, hours=24, running=None)
        assert found is not None
        self.assertEqual((found.rollout_id, found.until(24)), ("stable@b2", NOW + timedelta(hours=22)))

    def test_clear_lifts_one_closure_or_all(self) -> None:
        self.store.rebuild([entry(), entry(channel="edge"), entry(closure="0" * 32 + "-other")])
        self.assertEqual(self.store.clear(BAD), 2)
        self.assertEqual(len(self.store.entries()), 1)
        self.assertEqual(self.store.clear(), 1)
        self.assertEqual((self.store.entries(), self.store.lost), ((), False))

    def test_a_missing_or_damaged_file_counts_as_lost_until_it_is_rebuilt(self) -> None:
        self.assertTrue(self.store.lost)
        good = {"channel": "c", "closure": BAD, "rolloutId": "c@1", "since": "2026-05-16T01:00:00Z", "reason": "r"}
        for damaged in ("", "[]", "{", '{"entries": 3}', json.dumps({"entries": [good | {"closure": 3}]})):
            (self.folder / "quarantine.json").write_text(damaged)
            self.assertTrue(self.store.lost, damaged)
        (self.folder / "quarantine.json").write_text(json.dumps({"entries": [good | {"added": "later"}], "new": 1}))
        self.assertFalse(self.store.lost, "a newer version's additions are no damage")
        (self.folder / "quarantine.json").write_text("{")
        self.store.rebuild([entry()])
        self.assertEqual((self.store.lost, self.store.entries()), (False, (entry(),)))

    def test_the_file_stays_small(self) -> None:
        self.store.rebuild(entry(closure=f"{n:032}-x", hours_ago=n) for n in range(1000))
        kept = self.store.entries()
        self.assertEqual((len(kept), kept[-1].closure), (256, f"{0:032}-x"))


if __name__ == "__main__":
    unittest.main()
