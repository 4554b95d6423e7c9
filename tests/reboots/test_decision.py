"""Which reboot is due, and what keeps it from coming: each reason alone, and the order of several."""

from __future__ import annotations

import unittest
from dataclasses import replace
from datetime import timedelta
from typing import Any

from nixfleet_agent.operator.hold import Hold
from nixfleet_agent.operator.maintenance import MaintenanceStatus
from nixfleet_agent.reboots.decision import (
    ASK_AGAIN,
    BACK,
    FORWARD,
    MOST_TRIES,
    Due,
    Facts,
    Waiting,
    WaitsFor,
    blocked_by,
    busy_with,
    due_reboot,
    why_not_yet,
)
from nixfleet_agent.reboots.ledger import Asked
from nixfleet_agent.state_machine import RolloutRecord, State
from nixfleet_agent.telemetry.status import RolloutsView
from tests.support.clock import EPOCH

BOOT, NEXT_BOOT = "boot-1", "boot-2"
OPENS = EPOCH + timedelta(hours=3)
DUE = Due("stable@aa", FORWARD, "new", "kernel", EPOCH)
FREE = Facts(
    now=EPOCH,
    after_deferred="now",
    boot_id=BOOT,
    asked=None,
    refused=None,
    busy=None,
    guard=None,
    hold=None,
    maintenance=None,
)
CLOSED = MaintenanceStatus(False, OPENS, ("Mon 22:00-23:00",), None)


def record(rollout_id: str, state: State, **more: Any) -> RolloutRecord:
    return RolloutRecord(
        rollout_id=rollout_id,
        hostname="h",
        channel="stable",
        target_closure=f"closure-of-{rollout_id}",
        dispatched_at=EPOCH,
        state=state,
        **more,
    )


def view(*records: RolloutRecord, watched: tuple[str, ...] = ()) -> RolloutsView:
    """The last of the records is of the active rollout."""
    return RolloutsView(records[-1].rollout_id, True, "t", None, watched=watched, records=records)


DEFERRED = record("stable@aa", State.DEFERRED, deferred_at=EPOCH, deferred_boot_id=BOOT, deferred_component="kernel")


class DueReboot(unittest.TestCase):
    def test_only_a_deferred_active_rollout_needs_one(self) -> None:
        for state in State:
            due = due_reboot(view(replace(DEFERRED, state=state)), None, BOOT)
            self.assertEqual(due is not None, state is State.DEFERRED, state)
        self.assertEqual(
            due_reboot(view(DEFERRED), None, BOOT), Due("stable@aa", FORWARD, DEFERRED.target_closure, "kernel", EPOCH)
        )
        self.assertIsNone(due_reboot(RolloutsView(), None, BOOT))

    def test_one_that_was_deferred_in_another_boot_has_had_its_reboot(self) -> None:
        """An operator's too: the agent starts, and looks before the reducer has seen what the boot has brought."""
        self.assertIsNone(due_reboot(view(DEFERRED), None, NEXT_BOOT))
        self.assertIsNone(due_reboot(view(replace(DEFERRED, deferred_boot_id=None)), None, BOOT), "nobody can tell")

    def test_a_superseded_one_needs_none(self) -> None:
        self.assertIsNone(due_reboot(view(DEFERRED, record("stable@bb", State.SOAKING)), None, BOOT))

    def test_a_way_back_that_waits_for_a_boot_comes_first(self) -> None:
        failed = record("stable@00", State.FAILED, rollback_owed=True, failed_at=EPOCH)
        section = {"rollout_id": "stable@00", "deferred": "systemd", "closure": "old"}
        due = due_reboot(view(failed, DEFERRED), section, BOOT)
        self.assertEqual(due, Due("stable@00", BACK, "old", "systemd", EPOCH))

    def test_a_way_back_that_is_paid_or_only_fails_needs_none(self) -> None:
        section = {"rollout_id": "stable@00", "deferred": "systemd", "closure": "old"}
        self.assertIsNone(due_reboot(view(record("stable@00", State.REVERTED)), section, BOOT))
        failed = record("stable@00", State.FAILED, rollback_owed=True)
        self.assertIsNone(due_reboot(view(failed), {"rollout_id": "stable@00", "failures": 2}, BOOT))


class BusyWith(unittest.TestCase):
    def kind(self, *records: RolloutRecord, watched: tuple[str, ...] = (), switching: bool = False) -> WaitsFor | None:
        found = busy_with(DUE, view(*records, watched=watched), switching)
        return found.waits_for if found else None

    def test_a_rollback_of_another_comes_first(self) -> None:
        failed = record("stable@00", State.FAILED, rollback_owed=True)
        self.assertEqual(self.kind(failed, DEFERRED, watched=("stable@00",)), WaitsFor.ROLLBACK)
        self.assertIsNone(self.kind(failed, DEFERRED), "nobody watches it any more")

    def test_what_soaks_until_the_boot_does_not_hold_it_up(self) -> None:
        soaks = record("stable@00", State.SOAKING)
        self.assertIsNone(self.kind(soaks, DEFERRED, watched=("stable@00",)))

    def test_an_activation_and_a_switch_run_to_their_end(self) -> None:
        for state in (State.PENDING, State.ACTIVATING):
            self.assertEqual(self.kind(record("stable@bb", state)), WaitsFor.ACTIVATION)
        self.assertEqual(self.kind(DEFERRED, switching=True), WaitsFor.ACTIVATION)
        self.assertIsNone(self.kind(DEFERRED))


class WhyNotYet(unittest.TestCase):
    def waits(self, due: Due = DUE, **changed: Any) -> Waiting | None:
        return why_not_yet(due, replace(FREE, **changed))

    def test_nothing_stands_in_the_way(self) -> None:
        self.assertIsNone(self.waits())

    def test_each_reason_alone(self) -> None:
        hold = Hold("disk swap", EPOCH, OPENS)
        cases: list[tuple[dict[str, Any], WaitsFor, str, object]] = [
            ({"after_deferred": "never"}, WaitsFor.OPERATOR, "reboot.after_deferred is never", None),
            ({"boot_id": ""}, WaitsFor.OPERATOR, "no id", None),
            ({"busy": Waiting(WaitsFor.ACTIVATION, "a switch runs")}, WaitsFor.ACTIVATION, "a switch runs", None),
            ({"guard": "stable@00"}, WaitsFor.GUARD, "the guard of stable@00", None),
            ({"hold": hold}, WaitsFor.HOLD, "disk swap", OPENS),
            ({"after_deferred": "window", "maintenance": CLOSED}, WaitsFor.WINDOW, "next maintenance window", OPENS),
        ]
        for changed, kind, word, until in cases:
            with self.subTest(word):
                waiting = self.waits(**changed)
                assert waiting is not None
                self.assertEqual((waiting.waits_for, waiting.until), (kind, until))
                self.assertIn(word, waiting.reason)

    def test_a_window_that_is_open_or_was_opened_by_hand_lets_it_through(self) -> None:
        for opened in (replace(CLOSED, open=True), replace(CLOSED, run_now="agreed with Kim")):
            self.assertIsNone(self.waits(after_deferred="window", maintenance=opened))
        self.assertIsNone(self.waits(after_deferred="now", maintenance=CLOSED))

    def test_the_reboot_of_a_way_back_waits_for_no_hold_but_for_its_window(self) -> None:
        back = replace(DUE, direction=BACK)
        self.assertIsNone(self.waits(back, hold=Hold("disk swap", EPOCH, OPENS)))
        waiting = self.waits(back, after_deferred="window", maintenance=CLOSED)
        self.assertEqual(waiting and waiting.waits_for, WaitsFor.WINDOW)

    def test_a_reboot_that_came_is_the_only_one(self) -> None:
        asked = Asked("stable@aa", FORWARD, BOOT, EPOCH)
        for later in (timedelta(0), timedelta(days=30)):
            waiting = self.waits(asked=asked, boot_id=NEXT_BOOT, now=EPOCH + later)
            self.assertEqual(waiting and waiting.waits_for, WaitsFor.OPERATOR)
            self.assertIn("once already", waiting.reason if waiting else "")

    def test_one_that_did_not_come_is_asked_for_a_few_times_more(self) -> None:
        asked = Asked("stable@aa", FORWARD, BOOT, EPOCH)
        waiting = self.waits(asked=asked, now=EPOCH + ASK_AGAIN - timedelta(seconds=1), refused="access denied")
        self.assertEqual(
            waiting, Waiting(WaitsFor.SHUTDOWN, "the reboot was refused: access denied", EPOCH + ASK_AGAIN)
        )
        self.assertIsNone(self.waits(asked=asked, now=EPOCH + ASK_AGAIN))
        spent = self.waits(asked=replace(asked, tries=MOST_TRIES), now=EPOCH + ASK_AGAIN)
        self.assertEqual(spent and spent.waits_for, WaitsFor.OPERATOR)

    def test_a_clock_that_was_set_back_does_not_put_it_off_for_ever(self) -> None:
        asked = Asked("stable@aa", FORWARD, BOOT, EPOCH + timedelta(days=400))
        self.assertIsNone(self.waits(asked=asked))

    def test_blockers_are_named(self) -> None:
        self.assertIsNone(blocked_by(()))
        waiting = blocked_by(["backup (nightly)"])
        self.assertEqual(
            waiting and (waiting.waits_for, "backup (nightly)" in waiting.reason), (WaitsFor.BLOCKER, True)
        )


if __name__ == "__main__":
    unittest.main()
