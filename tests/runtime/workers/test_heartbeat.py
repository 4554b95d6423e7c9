"""The heartbeat worker against a real mTLS server: what it says of the host, and what it takes from the answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from nixfleet_agent import __version__
from nixfleet_agent.errors import AgentError, ProtoError, StorageError, TransportError, TrustError
from nixfleet_agent.journal.entries import Entry, entry_of
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.proto.heartbeat import Snapshot
from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.rollout.inputs import AdvanceTick, BootstrapHost, ReplayRequested
from nixfleet_agent.runtime.workers.advance_ticker import AdvanceTicker
from nixfleet_agent.runtime.workers.heartbeat import PATH, HeartbeatWorker
from nixfleet_agent.state_machine import State
from nixfleet_agent.telemetry.status import RolloutsView, StatusBoard
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.net.base import NetTestCase
from tests.runtime.harness import HOSTNAME, TARGET, until
from tests.runtime.parts import services
from tests.state_machine.machine import T0, event
from tests.support.behaviours import HalfBody, Hang, Raw, Reply
from tests.support.clock import PATIENCE, FakeClock
from tests.support.https_server import HttpsServer

R, S = "stable@aa", "edge@bb"
SNAPSHOT: dict[str, Any] = {
    "rolloutId": R,
    "hostname": HOSTNAME,
    "channel": "stable",
    "state": "Soaking",
    "targetClosure": TARGET,
    "dispatchedAt": "2026-05-16T01:00:00Z",
    "lastEventSeq": 14,
}


def answer(*snapshots: object, replay_from: str | None = None) -> Reply:
    body = json.dumps({"received_at": "2026-05-16T01:00:00Z", "bootstrap_rollouts": list(snapshots)}).encode()
    return Reply(200, body, {"X-Nixfleet-Replay-From": replay_from} if replay_from else {})


class Case(NetTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = FakeClock()
        self.shutdown = ShutdownToken(self.clock)
        self.inputs = InputQueue(self.shutdown)
        self.board = StatusBoard()
        self.current: str | None = TARGET
        self.vouched: list[str] = []
        self.vouch: Callable[[Snapshot], Any] = lambda snapshot: None
        self.server = self.serve()
        self.journal = Journal(self.folder / "state", HOSTNAME)
        self.journal.open()
        self.worker = self.make(self.server)

    def make(self, server: HttpsServer) -> HeartbeatWorker:
        self.control_plane = self.connect(server)

        def vouch(snapshot: Snapshot) -> Any:
            self.vouched.append(snapshot.rollout_id)
            return self.vouch(snapshot)

        return HeartbeatWorker(
            services(
                shutdown=self.shutdown,
                clock=self.clock,
                inputs=self.inputs,
                journal=self.journal,
                control_plane=self.control_plane,
                board=self.board,
                read_current=lambda: self.current,
            ),
            vouch,
        )

    def answer(self, *behaviours: Any) -> None:
        self.server.route("POST", PATH, *behaviours)

    def view(self, active: str | None = R, *, active_open: bool = True, **reported: int) -> None:
        seqs = {R: 14} | {name.replace("_", "@"): seq for name, seq in reported.items()}
        self.board.publish_rollouts(RolloutsView(active, active_open, TARGET, TARGET, seqs))

    def bodies(self) -> list[Any]:
        return [request.json() for request in self.server.requests]

    def forwarded(self) -> list[Any]:
        items = []
        while (item := self.inputs.get(0)) is not None:
            items.append(item)
        return items


class WhatItSays(Case):
    def test_the_first_beat_names_no_rollout_and_the_next_ones_do(self) -> None:
        self.view()
        self.answer(answer())
        self.assertTrue(self.worker.beat())
        self.clock.advance(61.5)
        self.assertTrue(self.worker.beat())
        first, second = self.bodies()
        self.assertEqual(
            first,
            {
                "hostname": HOSTNAME,
                "current_closure": TARGET,
                "at": "2026-05-16T01:00:00.000000Z",
                "agent_version": __version__,
                "uptime_secs": 0,
                "last_event_seq_by_rollout": {R: 14},
            },
        )
        self.assertEqual(second, {**first, "rollout_id": R, "at": "2026-05-16T01:01:01.500000Z", "uptime_secs": 61})
        self.assertEqual(self.server.requests[0].client_name, "web-01")

    def test_a_first_beat_that_did_not_arrive_is_still_the_first(self) -> None:
        self.view()
        self.answer(Reply(503), HalfBody(), answer(), answer())
        for _ in range(4):
            self.worker.beat()
        self.assertEqual(["rollout_id" in body for body in self.bodies()], [False, False, False, True])

    def test_a_rollout_that_is_over_is_not_named(self) -> None:
        self.answer(answer())
        self.worker.beat()
        self.view(active_open=False)
        self.worker.beat()
        self.view(active=None)
        self.worker.beat()
        self.assertFalse(any("rollout_id" in body for body in self.bodies()))

    def test_before_the_reducer_said_anything_it_names_nothing(self) -> None:
        self.answer(answer())
        self.worker.beat()
        self.assertEqual(self.bodies()[0]["last_event_seq_by_rollout"], {})

    def test_half_a_switch_is_never_shown_as_what_runs(self) -> None:
        self.answer(answer())
        self.board.publish("switching", True)
        self.worker.beat()
        self.board.publish("switching", False)
        self.worker.beat()
        self.current = None
        self.worker.beat()
        self.assertEqual([body.get("current_closure") for body in self.bodies()], [None, TARGET, None])

    def test_rollouts_with_undelivered_events_are_counted_too(self) -> None:
        self.view()
        entry = Entry(seq=0, hostname=HOSTNAME, rollout_id=S, kind="Dispatch", created_at=T0, event={"kind": "x"})
        self.journal.accept(entry)
        self.journal.append(entry_of(event("ProbeResult", 6), HOSTNAME, S, T0))
        self.answer(answer())
        self.worker.beat()
        path = self.journal.first(S)
        assert path is not None
        self.journal.delivered(S, path)
        self.worker.beat()
        self.assertEqual([body["last_event_seq_by_rollout"] for body in self.bodies()], [{R: 14, S: 6}, {R: 14}])

    def test_the_last_assigned_seq_wins_over_the_last_on_disk(self) -> None:
        self.journal.append(entry_of(event("ProbeResult", 6), HOSTNAME, R, T0))
        self.view()
        self.assertEqual(self.worker.compose().last_event_seq_by_rollout, {R: 14})


class WhatItTakes(Case):
    def test_a_replay_is_of_the_rollout_that_the_beat_named(self) -> None:
        self.view(edge_bb=3)
        self.answer(answer(), answer(replay_from="9"))
        self.worker.beat()
        self.worker.beat()
        self.assertEqual(self.forwarded(), [ReplayRequested((R,), 9)])

    def test_and_of_every_rollout_where_none_was_named(self) -> None:
        self.view(edge_bb=3)
        self.answer(answer(replay_from="0"))
        self.worker.beat()
        self.assertEqual(self.forwarded(), [ReplayRequested((R, S), 0)])

    def test_a_replay_that_is_no_number_is_no_replay(self) -> None:
        for said in ("-1", "x", "1.5", "9" * 30, ""):
            self.answer(answer(replay_from=said))
            self.worker.beat()
        self.assertEqual(self.forwarded(), [])

    def test_snapshots_are_forwarded_with_what_vouches_for_them(self) -> None:
        acceptance: Any = object()
        self.vouch = lambda snapshot: acceptance
        self.answer(answer(SNAPSHOT))
        self.worker.beat()
        [item] = self.forwarded()
        self.assertEqual((item.snapshot.rollout_id, item.snapshot.state), (R, State.SOAKING))
        self.assertIs(item.acceptance, acceptance)

    def test_of_a_rollout_that_is_known_nobody_has_to_vouch(self) -> None:
        self.journal.append(entry_of(event("ProbeResult", 6), HOSTNAME, R, T0))
        self.answer(answer(SNAPSHOT))
        self.worker.beat()
        self.assertEqual((self.vouched, [type(item) for item in self.forwarded()]), ([], [BootstrapHost]))

    def test_what_nobody_vouches_for_is_forwarded_as_a_hint_only(self) -> None:
        errors: tuple[AgentError, ...] = (
            TransportError("no answer", "timeout"),
            TrustError("bad signature"),
            ProtoError("bad"),
            StorageError("disk full"),
        )
        for error in errors:
            with self.subTest(error=error):

                def refuse(snapshot: Snapshot, error: AgentError = error) -> Any:
                    raise error

                self.vouch = refuse
                self.worker = self.make(self.server)
                self.answer(answer(SNAPSHOT))
                self.assertTrue(self.worker.beat())
                [item] = self.forwarded()
                self.assertIsNone(item.acceptance)

    def test_snapshots_of_another_host_and_broken_ones_are_ignored(self) -> None:
        other = {**SNAPSHOT, "hostname": "db-01"}
        self.answer(answer(other, {"rolloutId": "\x1b[31m"}, None, {**SNAPSHOT, "rolloutId": S}))
        with self.assertLogs("nixfleet_agent.heartbeat", "WARNING") as logs:
            self.worker.beat()
        self.assertNotIn("\x1b", "".join(logs.output))
        self.assertEqual([item.snapshot.rollout_id for item in self.forwarded()], [S])

    def test_snapshots_are_only_taken_where_no_rollout_was_named(self) -> None:
        self.view()
        self.answer(answer(), answer(SNAPSHOT))
        self.worker.beat()
        self.worker.beat()
        self.assertEqual(self.forwarded(), [])

    def test_an_answer_that_is_no_json_is_still_an_answer(self) -> None:
        for body in (b"", b"null", b"[]", b"{", b'{"bootstrap_rollouts": 3}', b'{"a":1,"a":2}'):
            self.answer(Reply(200, body))
            self.assertTrue(self.worker.beat())
        self.assertEqual(self.forwarded(), [])


class Trouble(Case):
    def test_is_said_once_for_each_reason_and_its_end_too(self) -> None:
        self.answer(Reply(500), Reply(500), Reply(403), Raw(b"junk\r\n\r\n"), answer(), answer())
        with self.assertLogs("nixfleet_agent.heartbeat", "INFO") as logs:
            outcomes = [self.worker.beat() for _ in range(6)]
        self.assertEqual(outcomes, [False, False, False, False, True, True])
        levels = [record.levelname for record in logs.records]
        self.assertEqual(levels, ["WARNING", "WARNING", "WARNING", "INFO"])


class TheLoops(Case):
    def start(self, worker: HeartbeatWorker | AdvanceTicker) -> threading.Thread:
        thread = threading.Thread(target=worker.run)
        thread.start()
        self.addCleanup(thread.join, PATIENCE)
        self.addCleanup(self.control_plane.abort)
        self.addCleanup(self.shutdown.set)
        return thread

    def beats(self, count: int) -> None:
        until(lambda: len(self.server.requests) >= count, f"{count} heartbeats")
        self.clock.until_waiting(1)
        self.assertEqual(len(self.server.requests), count)

    def test_one_at_once_and_then_each_interval(self) -> None:
        self.answer(answer())
        self.start(self.worker)
        self.beats(1)
        for number in (2, 3):
            self.clock.advance(59.9)
            self.beats(number - 1)
            self.clock.advance(0.1)
            self.beats(number)

    def test_a_handshake_that_failed_is_tried_again_soon(self) -> None:
        self.answer(Reply(503), answer())
        self.start(self.worker)
        self.beats(1)
        deadline = self.clock.next_deadline()
        assert deadline is not None
        self.assertLessEqual(deadline - self.clock.monotonic(), 1.0)
        self.clock.advance(1)
        self.beats(2)
        self.clock.advance(58)
        self.beats(2)

    def test_shutdown_ends_it_though_the_server_says_nothing(self) -> None:
        self.answer(Hang())
        thread = self.start(self.worker)
        until(lambda: len(self.server.requests) == 1, "the request")
        self.shutdown.set()
        self.control_plane.abort()
        thread.join(30)
        self.assertFalse(thread.is_alive())

    def test_the_ticker_tells_what_runs_each_second(self) -> None:
        ticker = AdvanceTicker(self.shutdown, self.clock, self.inputs, lambda: self.current, 1.0)
        self.start(ticker)
        self.assertEqual(self.inputs.get(PATIENCE), AdvanceTick(TARGET))
        self.clock.until_waiting(1)
        self.current = None
        self.clock.advance(1)
        self.assertEqual(self.inputs.get(PATIENCE), AdvanceTick(None))
        self.clock.until_waiting(1)
        for _ in range(200):
            self.clock.advance(1)
            self.clock.until_waiting(1)
        self.assertEqual(self.inputs.depth(), 1, "a tick that still waits is replaced")


if __name__ == "__main__":
    import unittest

    unittest.main()
