"""A received Dispatch survives the process, and a file that can't be read is set aside and not fatal."""

from __future__ import annotations

import json
import tempfile
import unittest
from datetime import datetime, timedelta, timezone
from pathlib import Path

from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.runtime.dispatch.decision import Pending
from nixfleet_agent.runtime.dispatch.pending import PendingDispatch
from tests.support.signing import closure_name

NOW = datetime(2026, 5, 16, 1, 27, 3, 250, tzinfo=timezone.utc)
DISPATCH = Dispatch(
    hostname="web-01",
    rollout_id="stable@def4567abc",
    target_closure=closure_name("x"),
    soak_due_at=NOW,
    enqueued_at=NOW,
)


class OnDisk(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "pending-dispatch.json"
        self.disk = PendingDispatch(self.folder)

    def test_comes_back_as_it_was(self) -> None:
        pending = Pending(DISPATCH, NOW, NOW + timedelta(seconds=9), timedelta(seconds=8.5), held=True)
        self.disk.save(pending)
        self.assertEqual(self.disk.load(), pending)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)

    def test_nothing_there_is_nothing_pending(self) -> None:
        self.assertIsNone(self.disk.load())
        self.disk.clear()
        self.disk.save(Pending(DISPATCH, NOW, NOW))
        self.disk.clear()
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_damage_is_set_aside_and_said(self) -> None:
        self.disk.save(Pending(DISPATCH, NOW, NOW))
        good = json.loads(self.path.read_bytes())
        damaged = [b"", b"{", b"[]", b"\xff"]
        for change in (
            {"dispatch": None},
            {"dispatch": {**good["dispatch"], "rollout_id": "../../etc"}},
            {"keptForSecs": "1"},
            {"keptForSecs": -1},
            {"keptForSecs": True},
            {"keptForSecs": 1e300},
            {"receivedAt": None},
            {"asOf": 1},
        ):
            damaged.append(json.dumps({**good, **change}).encode())
        for raw in damaged:
            self.path.write_bytes(raw)
            with self.subTest(raw=raw[:60]), self.assertLogs("nixfleet_agent.longpoll", "ERROR"):
                self.assertIsNone(self.disk.load())
            self.assertEqual((self.folder / "pending-dispatch.json.corrupt").read_bytes(), raw)
            self.assertFalse(self.path.exists())

    def test_what_can_not_be_read_at_all_is_said(self) -> None:
        self.path.mkdir()
        with self.assertLogs("nixfleet_agent.longpoll", "ERROR"):
            self.assertIsNone(self.disk.load())


if __name__ == "__main__":
    unittest.main()
