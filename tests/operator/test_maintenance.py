"""A Dispatch waits for a maintenance window; an operator lets one rollout through, and that is on record."""

from __future__ import annotations

import tempfile
import unittest
from datetime import timedelta
from pathlib import Path

from nixfleet_agent.config.model import MaintenanceConfig
from nixfleet_agent.config.windows import WindowError
from nixfleet_agent.errors import AgentError
from nixfleet_agent.operator.maintenance import MaintenanceGate
from nixfleet_agent.operator.run_now import RunNowStore
from nixfleet_agent.proto.times import format_time
from tests.support.clock import EPOCH, FakeClock


def hours(first: int, last: int) -> MaintenanceConfig:
    """A window from so many hours after the clock's start to so many."""
    begin, end = (EPOCH + timedelta(hours=h) for h in (first, last))
    return MaintenanceConfig(windows=(f"{begin:%H:%M}-{end:%H:%M}",), time_zone="UTC")


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = FakeClock()
        self.store = RunNowStore(Path(self.enterContext(tempfile.TemporaryDirectory())), self.clock)

    def gate(self, config: MaintenanceConfig) -> MaintenanceGate:
        return MaintenanceGate(config, self.store, self.clock)


class Gate(Case):
    def test_without_windows_nothing_waits_and_nothing_is_shown(self) -> None:
        gate = self.gate(MaintenanceConfig())
        self.assertIsNone(gate.reason())
        self.assertIsNone(gate.status())

    def test_it_says_when_the_next_window_opens_and_opens_by_itself(self) -> None:
        gate = self.gate(hours(2, 3))
        opens = EPOCH + timedelta(hours=2)
        self.assertIn(f"the next one opens at {format_time(opens)}", gate.reason() or "")
        status = gate.status()
        assert status is not None
        self.assertEqual((status.open, status.changes_at, status.run_now), (False, opens, None))
        self.clock.advance(2 * 3600)
        self.assertIsNone(gate.reason())
        self.clock.advance(3600)
        self.assertIsNotNone(gate.reason())

    def test_windows_that_overlap_are_said_at_the_start_and_once_when_others_come(self) -> None:
        twice = MaintenanceConfig(windows=("Sat", "Sat 04:00-06:00"), time_zone="UTC")
        with self.assertLogs("nixfleet_agent.maintenance", "WARNING") as logged:
            gate = self.gate(twice)
            gate.say_overlaps()
            gate.reconfigure(twice)
            gate.reconfigure(hours(2, 3))
            gate.reconfigure(twice)
        self.assertEqual(len(logged.output), 2)
        self.assertIn("'Sat 04:00-06:00' and 'Sat' overlap", logged.output[0])

    def test_run_now_lets_one_rollout_through_and_keeps_its_reason(self) -> None:
        gate = self.gate(hours(2, 3))
        self.store.request("security\nfix")
        self.assertIsNone(gate.reason())
        with self.assertLogs("nixfleet_agent.maintenance", "WARNING") as logged:
            gate.accepted("stable@aa")
        self.assertEqual(getattr(logged.records[0], "reason", None), "security fix")
        self.assertIsNotNone(gate.reason())
        last = RunNowStore(self.store.path.parent, self.clock).last()
        assert last is not None
        self.assertEqual((last.reason, last.used_by), ("security fix", "stable@aa"))

    def test_a_rollout_inside_its_window_uses_up_no_word(self) -> None:
        self.store.request("for tonight", EPOCH + timedelta(hours=5))
        gate = self.gate(hours(0, 1))
        gate.accepted("stable@aa")
        self.clock.advance(3600)
        self.assertIsNone(gate.reason())

    def test_a_configuration_that_can_not_be_read_leaves_the_old_windows(self) -> None:
        gate = self.gate(hours(2, 3))
        with self.assertRaises(WindowError):
            gate.reconfigure(MaintenanceConfig(windows=("noon",)))
        self.assertIsNotNone(gate.reason())
        gate.reconfigure(hours(0, 1))
        self.assertIsNone(gate.reason())


class Store(Case):
    def test_a_word_that_nobody_uses_ends_within_the_hour(self) -> None:
        self.store.request("x")
        self.clock.advance(3600 - 1)
        self.assertIsNotNone(self.store.in_force())
        self.clock.advance(1)
        self.assertIsNone(self.store.in_force())

    def test_a_clock_set_back_does_not_make_it_last(self) -> None:
        self.store.request("x")
        self.clock.step(-7200)
        self.assertIsNone(self.store.in_force())

    def test_without_a_reason_or_with_an_end_that_makes_no_sense_it_is_refused(self) -> None:
        for reason, until in ((" ", None), ("x", EPOCH), ("x", EPOCH + timedelta(days=8))):
            with self.subTest(reason=reason, until=until), self.assertRaises(AgentError) as caught:
                self.store.request(reason, until)
            self.assertEqual(caught.exception.exit_code, 2)
        self.assertFalse(self.store.path.exists())

    def test_a_damaged_file_opens_nothing_and_is_said(self) -> None:
        for data in (b"", b"{", b"[]", b'{"reason": 1}', b'{"reason": "x", "since": "now"}', b"[" * 9999):
            self.store.path.write_bytes(data)
            with self.subTest(data=data[:20]), self.assertLogs("nixfleet_agent.run_now", "WARNING"):
                self.assertIsNone(self.store.in_force())


if __name__ == "__main__":
    unittest.main()
