"""A hold survives restarts, ends by itself, and a damaged one stays in force."""

from __future__ import annotations

import json
import tempfile
import unittest
from datetime import timedelta
from pathlib import Path

from nixfleet_agent.errors import AgentError, StorageError
from nixfleet_agent.operator.hold import HoldStore, parse_until
from tests.support.clock import EPOCH as START
from tests.support.clock import FakeClock


class Case(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.clock = FakeClock()
        self.store = HoldStore(Path(folder.name), self.clock)


class Store(Case):
    def test_it_survives_a_restart_and_ends_by_itself(self) -> None:
        self.store.set("disk swap\nin rack 4", START + timedelta(hours=2))
        other = HoldStore(self.store.path.parent, self.clock)
        hold = other.current()
        assert hold is not None
        self.assertEqual(
            (hold.reason, hold.since, hold.until), ("disk swap in rack 4", START, START + timedelta(hours=2))
        )
        self.clock.advance(2 * 3600 - 1)
        self.assertIsNotNone(other.current())
        self.clock.advance(1)
        self.assertIsNone(other.current())

    def test_without_an_end_it_lasts_a_day(self) -> None:
        self.assertEqual(self.store.set("x").until, START + timedelta(days=1))

    def test_a_later_hold_replaces_an_earlier_one(self) -> None:
        self.store.set("one", START + timedelta(days=3))
        self.store.set("two", START + timedelta(hours=1))
        self.clock.advance(3600)
        self.assertIsNone(self.store.current())

    def test_release(self) -> None:
        self.assertFalse(self.store.release())
        self.store.set("x")
        self.assertTrue(self.store.release())
        self.assertIsNone(self.store.current())
        self.assertFalse(self.store.path.exists())

    def test_what_makes_no_sense_is_refused_and_changes_nothing(self) -> None:
        for reason, until in (("", None), (" \n", None), ("x", START), ("x", START + timedelta(days=400))):
            with self.subTest(reason=reason, until=until), self.assertRaises(AgentError):
                self.store.set(reason, until)
        self.assertFalse(self.store.path.exists())

    def test_a_damaged_file_holds_until_somebody_releases_it(self) -> None:
        """Somebody wanted this host left alone: a bad sector must not start an activation."""
        stamp = "2026-05-16T01:30:00Z"
        for damage in (b"", b"{", b"[]", b"null", b'{"reason": 1}', b"\xff", b"[" * 5000,
                       json.dumps({"reason": "x", "since": stamp, "until": "soon"}).encode()):  # fmt: skip
            with self.subTest(damage[:20]):
                self.store.path.write_bytes(damage)
                hold = self.store.current()
                assert hold is not None
                self.assertIn("release", hold.reason)
                self.assertTrue(self.store.release())

    def test_a_folder_that_is_not_there(self) -> None:
        store = HoldStore(self.store.path.parent / "missing", self.clock)
        self.assertIsNone(store.current())
        with self.assertRaises(StorageError):
            store.set("x")


class Until(unittest.TestCase):
    def test_lengths_and_times(self) -> None:
        for text, seconds in (("90m", 5400), ("+4h", 14400), ("2d", 172800), ("1w", 604800), ("30s", 30)):
            self.assertEqual(parse_until(text, START), START + timedelta(seconds=seconds))
        self.assertEqual(parse_until("2026-05-16T05:00:00+02:00", START), START + timedelta(hours=2))

    def test_anything_else_says_what_to_write(self) -> None:
        for text in (
            "",
            "tomorrow",
            "4",
            "4 h",
            "-4h",
            "2026-05-16",
            "2026-05-16T05:30:00",
            "9999999d",
            "999999w",
            "٤h",
        ):
            with self.subTest(text), self.assertRaisesRegex(AgentError, "such as 90m, 4h or 2d"):
                parse_until(text, START)


if __name__ == "__main__":
    unittest.main()
