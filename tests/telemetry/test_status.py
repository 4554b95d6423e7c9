"""The status board as JSON: what is shown of a value, and of a host with more rollouts than anybody reads."""

from __future__ import annotations

import json
import unittest
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from nixfleet_agent.state_machine import RolloutRecord, State
from nixfleet_agent.telemetry.status import RolloutsView, StatusBoard, as_json
from tests.support.clock import EPOCH


@dataclass(frozen=True)
class Shown:
    at: object
    where: Path
    hidden: str = field(default="no", metadata={"shown": False})


def record(number: int) -> RolloutRecord:
    """Accepted that many hours after the first."""
    return RolloutRecord(
        rollout_id=f"stable@{number:03}",
        hostname="h",
        channel="stable",
        target_closure="x",
        dispatched_at=EPOCH + timedelta(hours=number),
    )


class Values(unittest.TestCase):
    def test_every_kind_of_value_becomes_json(self) -> None:
        value = {State.SOAKING: (Shown(EPOCH, Path("/p")), None, True, 1.5, {"set"}), "state": State.FAILED}
        shown = {"at": "2026-05-16T01:00:00.000000Z", "where": "/p"}
        told = json.loads(json.dumps(as_json(value)))
        self.assertEqual(told, {"Soaking": [shown, None, True, 1.5, ["set"]], "state": "Failed"})


class Newest(unittest.TestCase):
    def setUp(self) -> None:
        self.board = StatusBoard()
        # Not in the order of their acceptance, and an old one is the active one: what superseded it never fired.
        records = tuple(record(number) for number in (7, 2, 9, 0, 5))
        self.board.publish_rollouts(RolloutsView("stable@000", True, records=records))

    def shown(self, newest: int | None) -> list[str]:
        return [each["rollout_id"] for each in self.board.snapshot(newest)["rollouts"]]

    def test_all_of_them_unless_fewer_are_asked_for(self) -> None:
        self.assertEqual(len(self.shown(None)), 5)
        self.assertEqual(len(self.shown(100)), 5)

    def test_the_newest_and_the_active_one(self) -> None:
        self.assertEqual(self.shown(2), ["stable@007", "stable@009", "stable@000"])

    def test_before_the_rollouts_are_known_there_are_none(self) -> None:
        self.assertNotIn("rollouts", StatusBoard().snapshot(3))


if __name__ == "__main__":
    unittest.main()
