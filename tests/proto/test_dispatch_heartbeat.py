"""The Dispatch, the heartbeat and its snapshots: exact bodies out, every wrong field named on the way in."""

from __future__ import annotations

import unittest
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto import ids
from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.proto.heartbeat import MAX_SEQ, Heartbeat, Snapshot, seq, snapshots
from nixfleet_agent.state_machine import State
from tests.state_machine.machine import ROLLOUT, TARGET, at

DISPATCH = {
    "hostname": "web-01",
    "rollout_id": ROLLOUT,
    "target_closure": TARGET,
    "soak_due_at": "2026-05-16T01:30:00.000000Z",
    "enqueued_at": "2026-05-16T01:27:00.000000Z",
}
SNAPSHOT: dict[str, Any] = {
    "rolloutId": ROLLOUT,
    "hostname": "web-01",
    "channel": "stable",
    "state": "Soaking",
    "targetClosure": TARGET,
    "currentClosureAtDispatch": "ignored",
    "dispatchedAt": "2026-05-16T01:00:00Z",
    "soakDueAt": "2026-05-16T01:05:00Z",
    "lastEventSeq": 14,
}


class ADispatch(unittest.TestCase):
    @given(
        st.builds(
            Dispatch,
            hostname=st.from_regex(ids.HOSTNAME, fullmatch=True),
            rollout_id=st.from_regex(ids.ROLLOUT_ID, fullmatch=True),
            target_closure=st.from_regex(ids.CLOSURE, fullmatch=True),
            soak_due_at=st.integers(0, 10**9).map(at),
            enqueued_at=st.integers(0, 10**9).map(at),
        )
    )
    def test_is_read_as_it_was_written(self, dispatch: Dispatch) -> None:
        self.assertEqual(Dispatch.parse(dispatch.to_json()), dispatch)

    def test_has_these_names_and_ignores_others(self) -> None:
        dispatch = Dispatch.parse({**DISPATCH, "newer": 1})
        self.assertEqual(dispatch.to_json(), DISPATCH)

    def test_each_field_must_be_there_and_right(self) -> None:
        wrong: dict[str, tuple[object, ...]] = {
            "hostname": (None, 7, "", "../x", "a" * 254),
            "rollout_id": (None, 7, "stable", "stable@ABC", "stable@abc\n"),
            "target_closure": (None, 7, "x", "/nix/store/" + TARGET, TARGET + "/../x"),
            "soak_due_at": (None, 7, "soon"),
            "enqueued_at": (None, 7, "2026-05-16T01:27:00"),
        }
        self.assertEqual(set(wrong), set(DISPATCH))
        for name, values in wrong.items():
            bodies: list[dict[str, object]] = [{k: v for k, v in DISPATCH.items() if k != name}]
            bodies += [{**DISPATCH, name: value} for value in values]
            for body in bodies:
                with self.subTest(body=body):
                    with self.assertRaises(ProtoError) as caught:
                        Dispatch.parse(body)
                    self.assertIn(f"{name} of a Dispatch", str(caught.exception))
        for body in (None, [], "x", [DISPATCH]):
            with self.subTest(body=body), self.assertRaises(ProtoError):
                Dispatch.parse(body)


class AHeartbeat(unittest.TestCase):
    def test_leaves_out_what_is_not_known(self) -> None:
        beat = Heartbeat(
            hostname="web-01",
            at=at(0),
            agent_version="0.1.0",
            uptime_secs=0,
            rollout_id=None,
            current_closure=None,
            last_event_seq_by_rollout={},
        )
        self.assertEqual(
            beat.to_json(),
            {
                "hostname": "web-01",
                "at": "2026-05-16T01:00:00.000000Z",
                "agent_version": "0.1.0",
                "uptime_secs": 0,
                "last_event_seq_by_rollout": {},
            },
        )

    def test_names_what_is_known(self) -> None:
        beat = Heartbeat(
            hostname="web-01",
            at=at(1) + timedelta(microseconds=5),
            agent_version="0.1.0",
            uptime_secs=3600,
            rollout_id=ROLLOUT,
            current_closure=TARGET,
            last_event_seq_by_rollout={ROLLOUT: 14},
        )
        self.assertEqual(
            beat.to_json(),
            {
                "hostname": "web-01",
                "rollout_id": ROLLOUT,
                "current_closure": TARGET,
                "at": "2026-05-16T01:00:01.000005Z",
                "agent_version": "0.1.0",
                "uptime_secs": 3600,
                "last_event_seq_by_rollout": {ROLLOUT: 14},
            },
        )


class ASnapshot(unittest.TestCase):
    def test_is_read(self) -> None:
        expected = Snapshot(
            rollout_id=ROLLOUT,
            hostname="web-01",
            channel="stable",
            state=State.SOAKING,
            target_closure=TARGET,
            last_event_seq=14,
            dispatched_at=at(0),
            soak_due_at=at(300),
        )
        self.assertEqual(Snapshot.parse({**SNAPSHOT, "newer": []}), expected)

    def test_may_lack_the_end_of_its_soak(self) -> None:
        for body in ({**SNAPSHOT, "soakDueAt": None}, {k: v for k, v in SNAPSHOT.items() if k != "soakDueAt"}):
            self.assertIsNone(Snapshot.parse(body).soak_due_at)

    def test_each_other_field_must_be_right(self) -> None:
        for name, value in (
            ("rolloutId", "x"),
            ("rolloutId", None),
            ("hostname", ""),
            ("state", "soaking"),
            ("state", None),
            ("targetClosure", "../" + TARGET),
            ("lastEventSeq", -1),
            ("lastEventSeq", True),
            ("lastEventSeq", 2**53),
            ("lastEventSeq", None),
            ("dispatchedAt", None),
            ("soakDueAt", 5),
        ):
            with self.subTest(name=name, value=value):
                with self.assertRaises(ProtoError) as caught:
                    Snapshot.parse({**SNAPSHOT, name: value})
                self.assertIn(f"{name} of a snapshot", str(caught.exception))
        with self.assertRaises(ProtoError):
            Snapshot.parse([])

    def test_one_bad_snapshot_does_not_hide_the_others(self) -> None:
        listed = [SNAPSHOT, {"rolloutId": 1}, SNAPSHOT, None, SNAPSHOT]
        good, bad, more = snapshots({"bootstrap_rollouts": listed}, 4)
        self.assertEqual(more, 1)
        self.assertEqual((len(good), len(bad)), (2, 2))

    def test_an_answer_without_snapshots_has_none(self) -> None:
        for body in (None, [], "x", {}, {"bootstrap_rollouts": None}, {"bootstrap_rollouts": {"a": 1}}):
            self.assertEqual(snapshots(body, 4), ([], [], 0))

    def test_a_seq_is_unsigned_and_exact_everywhere(self) -> None:
        self.assertEqual((seq(0, "it"), seq(MAX_SEQ, "it")), (0, MAX_SEQ))
        for value in (-1, MAX_SEQ + 1, 1.0, "1", None, False):
            with self.assertRaises(ProtoError):
                seq(value, "it")


if __name__ == "__main__":
    unittest.main()
