"""Many clients at once, slow ones among them, and two with one identity: each is served as if it were alone."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import unittest
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from nixfleet_agent.identity.csr import make_csr
from nixfleet_agent.local_cp.store import Store
from nixfleet_agent.threads.clock import SystemClock
from tests.local_cp.scripted import ControlPlaneCase, ScriptedAgent, now, to_converged, to_reverted, until_soaking

CROWD = 24
PATIENCE = 60.0
LONG_POLL = 60.0


class CrowdCase(ControlPlaneCase):
    def crowd(self, count: int) -> list[ScriptedAgent]:
        """Agents whose certificates were issued at a desk: enrolling is not what is tested."""
        moment = SystemClock().now()
        agents = [self.agent(f"web-{number:03}", enrolled=False) for number in range(count)]
        for agent in agents:
            csr = make_csr(agent.key, agent.hostname)
            agent.install(self.cp.authority.issue(csr, agent.hostname, moment, timedelta(hours=1)).pem)
        return agents

    def wait_for_polls(self, count: int) -> None:
        for _ in range(6000):
            if len(self.cp.control.waiters) == count:
                return
            threading.Event().wait(0.01)
        self.fail(f"{len(self.cp.control.waiters)} long polls are open, not {count}")


class Crowd(CrowdCase):
    def test_every_open_long_poll_gets_the_turn_of_its_own_host(self) -> None:
        agents = self.crowd(CROWD)
        for agent in agents:
            agent.beat()
        with ThreadPoolExecutor(CROWD) as pool:
            polls = [pool.submit(agent.poll, LONG_POLL) for agent in agents]
            self.wait_for_polls(CROWD)
            rollout_id = self.publish("aaa1", tuple(agent.hostname for agent in agents))
            turns = [poll.result(LONG_POLL / 2) for poll in polls]  # woken, not looked up at the end of the wait
        self.assertEqual(
            [(turn and turn["hostname"], turn and turn["rollout_id"]) for turn in turns],
            [(agent.hostname, rollout_id) for agent in agents],
        )
        self.assertEqual(self.cp.control.store.queued(), {})

    def test_hosts_that_all_write_while_others_read_lose_nothing(self) -> None:
        agents = self.crowd(CROWD)
        rollout_id = self.publish("aaa1", tuple(agent.hostname for agent in agents))
        looked = threading.Event()

        def live(agent: ScriptedAgent) -> None:
            agent.beat()
            self.assertIsNotNone(agent.poll(wait=60))
            for kind, fields in to_converged(self.target(rollout_id, agent.hostname)):
                self.assertEqual(agent.event(rollout_id, kind, **fields).status, 204)
                self.assertEqual(agent.beat(rollout_id).status, 200)

        def look() -> int:
            """As the demo does, from another process's side of the file, and as a browser does."""
            store, looks = Store(self.cp.folder / "cp.sqlite", read_only=True), 0
            browser = self.agent("browser", enrolled=False)
            while not looked.is_set():
                store.placements(rollout_id)
                self.assertEqual(browser.call("GET", "/").status, 200)
                looks += 1
            store.close()
            return looks

        with ThreadPoolExecutor(CROWD + 1) as pool:
            watcher = pool.submit(look)
            lives = [pool.submit(live, agent) for agent in agents]
            try:
                for each in lives:
                    each.result(PATIENCE)
            finally:
                looked.set()
            self.assertGreater(watcher.result(PATIENCE), 0)
        for agent in agents:
            self.assertEqual(self.cp.control.store.arrivals(agent.hostname, rollout_id), [1, 2, 3, 4, 5, 6])
        states = {placed.state.value for placed in self.cp.control.store.placements(rollout_id).values()}
        self.assertEqual(states, {"Converged"})


class SlowClients(CrowdCase):
    def test_half_a_request_and_an_answer_that_nobody_reads_hold_up_nobody_else(self) -> None:
        self.publish("aaa1", ("web-000",))
        slow, quick = self.crowd(2)
        for begun in (
            b"GET /v1/fleet.res",
            b"POST /v1/agent/heartbeat HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{",
        ):
            self.open(slow).send(begun)
        # Answers that fill every buffer between the two, none of which is read.
        greedy = self.open(slow, receive_buffer=4096)
        greedy.sock.settimeout(0.5)
        ask = b"GET / HTTP/1.1\r\nX-Padding: " + b"x" * 8192 + b"\r\n\r\n"
        with self.assertRaises(TimeoutError, msg="the control plane reads on though nobody takes its answers"):
            for _ in range(10_000):
                greedy.send(ask)
        for _ in range(3):
            self.assertEqual(quick.beat().status, 200)
            self.assertEqual(quick.call("GET", "/v1/fleet.resolved").status, 200)

    def open(self, agent: ScriptedAgent, receive_buffer: int = 0) -> http.client.HTTPSConnection:
        connection = agent.connect()
        self.addCleanup(connection.close)
        connection.connect()
        if receive_buffer:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        return connection


class OneIdentityTwice(CrowdCase):
    """A host that was cloned, disk and all."""

    def setUp(self) -> None:
        super().setUp()
        (self.web,) = self.crowd(1)
        self.clone = ScriptedAgent("web-000", self.cp.server.port, self.cp.ca_file, self.folder)
        self.clone.key = self.web.key
        self.addCleanup(self.clone.close)
        self.web.beat()
        self.assertEqual(self.clone.beat().status, 200)

    def both(self, *calls: Callable[[], object]) -> Sequence[object]:
        with ThreadPoolExecutor(len(calls)) as pool:
            return [each.result(PATIENCE) for each in [pool.submit(call) for call in calls]]

    def test_a_turn_is_given_to_one_of_them(self) -> None:
        self.publish("aaa1", ("web-000",))
        turns = self.both(lambda: self.web.poll(wait=1), lambda: self.clone.poll(wait=1))
        turns = [turn for turn in (*turns, self.web.poll(), self.clone.poll()) if turn is not None]
        self.assertEqual(len(turns), 1, turns)

    def test_of_two_events_with_one_seq_the_first_counts(self) -> None:
        rollout_id = self.publish("aaa1", ("web-000",))
        target = self.target(rollout_id, "web-000")
        self.assertIsNotNone(self.web.poll(wait=10))
        self.play(self.web, rollout_id, until_soaking(target))
        self.clone.seqs = dict(self.web.seqs)
        self.play(self.web, rollout_id, to_converged(target)[4:])
        for kind, fields in to_reverted(target, "0" * 32 + "-before")[4:6]:
            self.assertEqual(self.clone.event(rollout_id, kind, **fields).status, 204)
        record = self.cp.control.store.record(rollout_id, "web-000")
        assert record is not None
        self.assertEqual((record.state.value, record.last_event_seq), ("Converged", 6))
        self.assertEqual(self.logged("web-000", rollout_id)[4:], [(5, "ProbeResult"), (6, "Converged")])
        self.assertEqual(self.cp.control.store.quarantined(), frozenset())


class NoIdentity(CrowdCase):
    def test_a_certificate_speaks_for_its_own_name_only(self) -> None:
        rollout_id = self.publish("aaa1", ("web-000", "web-001"))
        web, other = self.crowd(2)
        web.beat()
        other.beat()
        self.assertIsNotNone(other.poll(wait=10))
        event = {"kind": "DispatchAck", "seq": 1, "receivedAt": now()}
        body = {"hostname": "web-001", "rolloutId": rollout_id, "event": event}
        reply = web.call("POST", "/v1/agent/events", body)
        self.assertEqual(reply.status, 403)
        self.assertIn("in the name of web-001, with the certificate of web-000", json.loads(reply.body)["error"])
        self.assertEqual(self.logged("web-001", rollout_id), [])


if __name__ == "__main__":
    unittest.main()
