"""The mirror without a server: repeats, gaps, refusals, replays, and records that survive the database."""

from __future__ import annotations

import unittest
from datetime import datetime, timedelta, timezone
from http import HTTPStatus
from types import MappingProxyType

from nixfleet_agent.local_cp import records
from nixfleet_agent.local_cp.mirror import Gap, Refused, Repeat, Taken, replay_from, take
from nixfleet_agent.local_cp.replays import Replays
from nixfleet_agent.proto.heartbeat import Heartbeat, Snapshot
from nixfleet_agent.state_machine import (
    DeclaredProbe,
    Event,
    Mode,
    Policy,
    ProbeRecord,
    ProbeStatus,
    RolloutRecord,
    State,
)
from nixfleet_agent.state_machine import events as happened
from tests.support.signing import closure_name

NOW = datetime(2026, 5, 16, 1, 30, tzinfo=timezone.utc)
ID = "stable@aaa1"
TARGET, PRIOR = closure_name("target"), closure_name("prior")
FRESH = RolloutRecord(rollout_id=ID, hostname="web-01", channel="stable", target_closure=TARGET, dispatched_at=NOW)
LIFE: list[Event] = [
    happened.RemoteDispatchAck(seq=1, current_closure_at_dispatch=PRIOR, received_at=NOW),
    happened.RemoteActivationCompleted(seq=2, observed_current_closure=TARGET, exit_code=0, completed_at=NOW),
    happened.RemoteProbeTopologyDeclared(
        seq=3, probes=(DeclaredProbe(probe_name="app", kind="exec", mode=Mode.ENFORCE),), declared_at=NOW
    ),
    happened.RemoteProbeResult(seq=4, probe_name="app", mode=Mode.ENFORCE, status=ProbeStatus.FAIL, observed_at=NOW),
    happened.RemoteFailed(
        seq=5,
        failed_at=NOW,
        sustained_duration_secs=2,
        failing_probes=("app",),
        policy_applied=Policy.ROLLBACK_AND_HALT,
    ),
    happened.RemoteRollbackComplete(seq=6, reverted_to_closure=PRIOR, exit_code=0, completed_at=NOW),
]


def offer(record: RolloutRecord, event: Event, *, past_gaps: bool = False) -> Taken | Repeat | Gap | Refused:
    return take(record, event, now=NOW, policy=Policy.ROLLBACK_AND_HALT, past_gaps=past_gaps)


def after(count: int) -> RolloutRecord:
    record = FRESH
    for event in LIFE[:count]:
        verdict = offer(record, event)
        assert isinstance(verdict, Taken), verdict
        record = verdict.record
    return record


class Take(unittest.TestCase):
    def test_only_the_end_of_a_rollback_quarantines(self) -> None:
        for count in range(len(LIFE)):
            with self.subTest(LIFE[count].kind):
                verdict = offer(after(count), LIFE[count])
                assert isinstance(verdict, Taken)
                expected = ("stable", TARGET) if count == len(LIFE) - 1 else None
                self.assertEqual(verdict.quarantined, expected)

    def test_every_repeat_is_recognised_in_every_state(self) -> None:
        for count in range(1, len(LIFE) + 1):
            for event in LIFE[:count]:
                with self.subTest(state=after(count).state, event=event.kind):
                    self.assertEqual(offer(after(count), event), Repeat())

    def test_every_gap_names_what_is_missing(self) -> None:
        for count in range(len(LIFE)):
            for event in LIFE[count + 1 :]:
                with self.subTest(have=count, event=event.kind):
                    self.assertEqual(offer(after(count), event), Gap(count + 1))

    def test_a_gap_that_was_given_up_is_passed_where_the_table_allows_it(self) -> None:
        verdict = offer(after(3), LIFE[4], past_gaps=True)
        assert isinstance(verdict, Taken)
        self.assertEqual((verdict.record.state, verdict.record.last_event_seq), (State.FAILED, 5))
        refused = offer(after(0), LIFE[4], past_gaps=True)
        assert isinstance(refused, Refused)
        self.assertEqual(refused.status, HTTPStatus.UNPROCESSABLE_ENTITY)

    def test_a_broken_promise_may_be_sent_again_and_a_wrong_state_may_not(self) -> None:
        early = happened.RemoteConverged(seq=4, converged_at=NOW, current_closure=TARGET)
        for record, event, status in (
            (after(3), early, HTTPStatus.CONFLICT),
            (
                after(1),
                happened.RemoteConverged(seq=2, converged_at=NOW, current_closure=TARGET),
                HTTPStatus.UNPROCESSABLE_ENTITY,
            ),
        ):
            verdict = offer(record, event)
            assert isinstance(verdict, Refused)
            self.assertEqual(verdict.status, status)


class ReplayFrom(unittest.TestCase):
    def test_what_is_asked_for(self) -> None:
        other = "edge@bbb2"
        for name, named, reported, before, here, expected in (
            ("all is here", ID, {ID: 5}, {ID: 5}, {ID: 5}, None),
            ("an event is on its way", ID, {ID: 6}, {ID: 5}, {ID: 5}, None),
            ("the last heartbeat's event has not come", ID, {ID: 7}, {ID: 6}, {ID: 5}, 6),
            ("the database is new", ID, {ID: 7}, None, {ID: 0}, 1),
            ("the database is a week old", None, {ID: 7}, {ID: 3}, {ID: 2}, 3),
            ("only the named rollout is meant", ID, {ID: 5, other: 9}, {ID: 5, other: 9}, {ID: 5, other: 1}, None),
            ("where none is named the lowest counts", None, {ID: 5, other: 9}, None, {ID: 4, other: 2}, 3),
            ("a rollout that nobody published is let go", None, {ID: 5}, None, {}, None),
            ("the host lost its own log", ID, {ID: 2}, {ID: 2}, {ID: 9}, None),
            ("nothing is reported", None, {}, None, {}, None),
        ):
            with self.subTest(name):
                self.assertEqual(replay_from(named, reported, before, here), expected)


class FakeClock:
    def __init__(self) -> None:
        self.at = 0.0

    def monotonic(self) -> float:
        return self.at


class Patience(unittest.TestCase):
    def test_events_are_given_up_after_three_requests_and_two_and_a_half_minutes(self) -> None:
        beat = Heartbeat(
            hostname="web-01",
            at=NOW,
            agent_version="0.1.0",
            uptime_secs=1,
            rollout_id=ID,
            current_closure=None,
            last_event_seq_by_rollout={ID: 5},
        )
        clock = FakeClock()
        replays = Replays(clock)  # type: ignore[arg-type]
        replays.gap("web-01", ID)
        self.assertEqual(replays.expected(beat, {ID: 2}), {ID: 5})
        replays.asked(beat)
        clock.at = 1000.0
        self.assertFalse(replays.given_up("web-01", ID))
        replays.asked(beat)
        replays.asked(beat)
        self.assertTrue(replays.given_up("web-01", ID))
        clock.at = 149.0
        self.assertFalse(replays.given_up("web-01", ID))
        replays.arrived("web-01", ID)
        self.assertFalse(replays.given_up("web-01", ID))
        self.assertEqual(replays.expected(beat, {ID: 2}), {ID: 2})


class Records(unittest.TestCase):
    def test_a_record_comes_back_equal_at_each_moment_of_its_life(self) -> None:
        for count in range(len(LIFE) + 1):
            with self.subTest(count):
                self.assertEqual(records.load(records.dump(after(count))), after(count))

    def test_every_field_comes_back(self) -> None:
        probe = ProbeRecord(
            status=ProbeStatus.FAIL,
            mode=Mode.OBSERVE,
            last_observed_at=NOW,
            last_pass_at=NOW,
            failing_since=NOW + timedelta(microseconds=1),
            failures_in_row=3,
            failure_reason="ü",
        )
        full = RolloutRecord(
            **{
                name: NOW if name.endswith("_at") else value
                for name, value in {
                    **{name: None for name in RolloutRecord.__dataclass_fields__ if name.endswith("_at")},
                    "rollout_id": ID,
                    "hostname": "web-01",
                    "channel": "stable",
                    "target_closure": TARGET,
                    "current_closure": TARGET,
                    "reverted_to": PRIOR,
                    "soak_floor": 9,
                    "policy_applied": Policy.HALT,
                    "rollback_owed": True,
                    "switch_fired": False,
                    "deferred_boot_id": "x",
                    "observed_at_failure": PRIOR,
                    "last_event_seq": 7,
                }.items()
            },
            probes=MappingProxyType({"app": probe}),
            topology=(DeclaredProbe(probe_name="app", kind="tcp", mode=Mode.DISABLED, run_once=True),),
        )
        self.assertEqual(records.load(records.dump(full)), full)

    def test_an_agent_can_read_every_snapshot(self) -> None:
        for count in range(len(LIFE) + 1):
            record = after(count)
            snapshot = Snapshot.parse(records.snapshot(record))
            self.assertEqual((snapshot.state, snapshot.last_event_seq), (record.state, record.last_event_seq))


if __name__ == "__main__":
    unittest.main()
