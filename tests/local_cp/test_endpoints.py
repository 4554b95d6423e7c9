"""Each endpoint, over real mutual TLS with a certificate that was really issued."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import unittest
from datetime import timedelta
from unittest import mock

from nixfleet_agent.identity.csr import make_csr
from nixfleet_agent.local_cp import store
from nixfleet_agent.local_cp.ca import CertificateAuthority
from nixfleet_agent.local_cp.dispatcher import Options
from nixfleet_agent.threads.clock import SystemClock
from tests.local_cp.scripted import ControlPlaneCase, result, to_converged, to_reverted, until_soaking
from tests.runtime.harness import until
from tests.support.signing import closure_name

ONE = ("web-01",)


class PollingCase(ControlPlaneCase):
    def wait_for_polls(self, count: int) -> None:
        waiters = self.cp.control.waiters
        for _ in range(500):
            if len(waiters) == count:
                return
            threading.Event().wait(0.01)
        self.fail(f"{len(waiters)} long polls are open, not {count}")


class Turns(PollingCase):
    OPTIONS = Options(redeliver_after=timedelta(seconds=0.2))

    def test_a_turn_is_handed_out_once_the_host_was_heard_of(self) -> None:
        rollout_id = self.publish("aaa1", ONE)
        agent = self.agent("web-01")
        self.assertIsNone(agent.poll())
        agent.beat()
        turn = agent.poll(wait=5)
        assert turn is not None
        self.assertEqual(turn["rollout_id"], rollout_id)
        self.assertEqual(turn["target_closure"], self.target(rollout_id, "web-01"))
        self.assertEqual(set(turn), {"hostname", "rollout_id", "target_closure", "soak_due_at", "enqueued_at"})

    def test_an_open_long_poll_is_answered_when_the_rollout_is_published(self) -> None:
        self.publish("aaa1", ("web-02",))
        agent = self.agent("web-01")
        agent.beat()
        timer = threading.Timer(0.2, self.publish, ("bbb2", ONE))
        timer.start()
        self.addCleanup(timer.join)
        turn = agent.poll(wait=8)
        assert turn is not None
        self.assertEqual(turn["rollout_id"], "stable@bbb2")

    def test_a_turn_that_was_never_acknowledged_is_offered_again(self) -> None:
        self.publish("aaa1", ONE)
        agent = self.agent("web-01")
        agent.beat()
        first, second = agent.poll(wait=5), agent.poll(wait=5)
        assert first is not None and second is not None
        for name in ("hostname", "rollout_id", "target_closure"):
            self.assertEqual(first[name], second[name])

    def test_a_newer_poll_of_the_same_host_ends_the_older(self) -> None:
        self.publish("aaa1", ("web-02",))
        agent = self.agent("web-01")
        older = agent.connect()
        self.addCleanup(older.close)
        older.request("GET", "/v1/agent/dispatch?wait=60")
        self.wait_for_polls(1)
        self.assertIsNone(agent.poll(wait=0.1))
        self.assertEqual(older.getresponse().status, 204)

    def test_a_wait_that_is_no_number_is_refused(self) -> None:
        self.publish("aaa1", ONE)
        self.assertEqual(self.agent("web-01").call("GET", "/v1/agent/dispatch?wait=soon").status, 400)


class DeadClients(PollingCase):
    """With the usual patience, which hides nothing: what is lost here stays lost for a minute and a half."""

    def test_a_turn_does_not_go_to_a_client_that_has_hung_up(self) -> None:
        self.publish("aaa1", ("web-02",))
        agent = self.agent("web-01")
        agent.beat()
        dead = agent.connect()
        # What the handshake left unread would make the close a reset, which any write notices.
        dead.request("GET", "/v1/nothing")
        dead.getresponse().read()
        dead.request("GET", "/v1/agent/dispatch?wait=60")
        self.wait_for_polls(1)
        dead.close()
        rollout_id = self.publish("bbb2", ONE)
        self.wait_for_polls(0)
        turn = agent.poll(wait=3)
        assert turn is not None
        self.assertEqual(turn["rollout_id"], rollout_id)


class Events(ControlPlaneCase):
    def setUp(self) -> None:
        super().setUp()
        self.rollout_id = self.publish("aaa1", ONE, ("web-02",))
        self.web = self.agent("web-01")
        self.web.beat()
        self.assertIsNotNone(self.web.poll(wait=5))
        self.closure = self.target(self.rollout_id, "web-01")

    def state(self, hostname: str = "web-01") -> str:
        record = self.cp.control.store.record(self.rollout_id, hostname)
        assert record is not None
        return record.state.value

    def test_a_rollout_is_mirrored_to_its_end_and_the_next_wave_begins(self) -> None:
        second = self.agent("web-02")
        second.beat()
        self.assertIsNone(second.poll(wait=0.3))
        self.play(self.web, self.rollout_id, to_converged(self.closure))
        self.assertEqual(self.state(), "Converged")
        self.assertIsNotNone(second.poll(wait=5))

    def test_an_event_sent_twice_is_answered_alike_and_logged_once(self) -> None:
        kind, fields = until_soaking(self.closure)[0]
        for _ in range(2):
            self.assertEqual(self.web.event(self.rollout_id, kind, seq=1, **fields).status, 204)
        self.assertEqual(self.logged("web-01", self.rollout_id), [(1, "DispatchAck")])

    def test_a_gap_is_held_back_and_asked_for_until_it_is_filled(self) -> None:
        events = until_soaking(self.closure)
        self.assertEqual(self.web.event(self.rollout_id, events[0][0], seq=1, **events[0][1]).status, 204)
        self.assertEqual(self.web.event(self.rollout_id, events[2][0], seq=3, **events[2][1]).status, 409)
        reply = self.web.beat(self.rollout_id, seqs={self.rollout_id: 3})
        self.assertEqual(reply.headers["x-nixfleet-replay-from"], "2")
        for number in (1, 2):
            kind, fields = events[number]
            self.assertEqual(self.web.event(self.rollout_id, kind, seq=number + 1, **fields).status, 204)
        reply = self.web.beat(self.rollout_id, seqs={self.rollout_id: 3})
        self.assertNotIn("x-nixfleet-replay-from", reply.headers)
        self.assertEqual([seq for seq, _ in self.logged("web-01", self.rollout_id)], [1, 2, 3])

    def test_an_event_that_the_state_can_never_take_is_refused_for_good(self) -> None:
        kind, fields = result("pass")
        self.assertEqual(self.web.event(self.rollout_id, kind, seq=1, **fields).status, 422)
        self.assertEqual(self.logged("web-01", self.rollout_id), [])

    def test_a_convergence_that_breaks_the_promise_is_held_back(self) -> None:
        self.play(self.web, self.rollout_id, [*until_soaking(self.closure), result("fail")])
        kind, fields = to_converged(self.closure)[-1]
        self.assertEqual(self.web.event(self.rollout_id, kind, seq=6, **fields).status, 409)
        self.assertEqual(self.state(), "Soaking")

    def test_a_rollback_halts_the_rollout_and_quarantines_the_closure(self) -> None:
        second = self.agent("web-02")
        second.beat()
        self.play(self.web, self.rollout_id, to_reverted(self.closure, closure_name("before")))
        self.assertEqual(self.state(), "Reverted")
        self.assertIn(("stable", self.closure), self.cp.control.store.quarantined())
        self.assertIsNone(second.poll(wait=0.5))
        halted = {row.rollout_id: row.halted for row in self.cp.control.store.rollouts()}
        self.assertEqual(halted[self.rollout_id], "halted: failed on web-01")

    def test_a_good_signature_is_kept_and_a_bad_one_refused(self) -> None:
        kind, fields = until_soaking(self.closure)[0]
        bad = {"kind": kind, "seq": 1, **fields}
        envelope = {"hostname": "web-01", "rolloutId": self.rollout_id, "event": bad, "signature": "00" * 64}
        self.assertEqual(self.web.call("POST", "/v1/agent/events", envelope).status, 422)
        self.assertEqual(self.web.event(self.rollout_id, kind, seq=1, sign=True, **fields).status, 204)

    def test_what_is_not_an_event_is_refused(self) -> None:
        good = {"kind": "DispatchAck", "seq": 1, "receivedAt": "2026-01-01T00:00:00Z"}
        envelope = {"hostname": "web-01", "rolloutId": self.rollout_id, "event": good}
        for name, wrong, status in (
            ("not JSON", b"{", 400),
            ("a list", [], 400),
            ("another host", {**envelope, "hostname": "web-02"}, 403),
            ("a bad rollout id", {**envelope, "rolloutId": "../x"}, 400),
            ("an unknown rollout", {**envelope, "rolloutId": "stable@fff"}, 404),
            ("an unknown kind", {**envelope, "event": {**good, "kind": "Nonsense"}}, 400),
            ("seq 0", {**envelope, "event": {**good, "seq": 0}}, 400),
            ("a missing stamp", {**envelope, "event": {"kind": "DispatchAck", "seq": 1}}, 400),
        ):
            with self.subTest(name):
                self.assertEqual(self.web.call("POST", "/v1/agent/events", wrong).status, status)
        self.assertEqual(self.logged("web-01", self.rollout_id), [])


class Heartbeats(ControlPlaneCase):
    def setUp(self) -> None:
        super().setUp()
        self.rollout_id = self.publish("aaa1", ONE)
        self.web = self.agent("web-01")
        self.web.beat()
        self.assertIsNotNone(self.web.poll(wait=5))
        self.closure = self.target(self.rollout_id, "web-01")

    def test_snapshots_come_only_to_a_heartbeat_that_names_no_rollout(self) -> None:
        self.play(self.web, self.rollout_id, until_soaking(self.closure))
        self.assertEqual(self.web.beat(self.rollout_id).json()["bootstrap_rollouts"], [])
        (snapshot,) = self.web.beat().json()["bootstrap_rollouts"]
        self.assertEqual(snapshot["rolloutId"], self.rollout_id)
        self.assertEqual(snapshot["state"], "Soaking")
        self.assertEqual(snapshot["targetClosure"], self.closure)
        self.assertEqual(snapshot["lastEventSeq"], 4)
        self.assertNotIn("currentClosureAtDispatch", snapshot)

    def test_a_finished_rollout_is_in_no_snapshot(self) -> None:
        self.play(self.web, self.rollout_id, to_converged(self.closure))
        self.assertEqual(self.web.beat().json()["bootstrap_rollouts"], [])

    def test_events_still_under_way_are_not_asked_for(self) -> None:
        reply = self.web.beat(self.rollout_id, seqs={self.rollout_id: 2})
        self.assertNotIn("x-nixfleet-replay-from", reply.headers)
        reply = self.web.beat(self.rollout_id, seqs={self.rollout_id: 2})
        self.assertEqual(reply.headers["x-nixfleet-replay-from"], "1")

    def test_a_wiped_database_is_filled_again_by_replays(self) -> None:
        events = to_converged(self.closure)
        self.play(self.web, self.rollout_id, events[:4])
        self.cp.control.wipe()
        reply = self.web.beat(self.rollout_id)
        self.assertEqual(reply.headers["x-nixfleet-replay-from"], "1")
        for number, (kind, fields) in enumerate(events[:4], start=1):
            self.assertEqual(self.web.event(self.rollout_id, kind, seq=number, **fields).status, 204)
        self.play(self.web, self.rollout_id, events[4:])
        record = self.cp.control.store.record(self.rollout_id, "web-01")
        assert record is not None
        self.assertEqual(record.state.value, "Converged")
        self.assertEqual([seq for seq, _ in self.logged("web-01", self.rollout_id)], [1, 2, 3, 4, 5, 6])

    def test_a_host_whose_events_were_lost_gets_no_second_turn(self) -> None:
        self.play(self.web, self.rollout_id, to_converged(self.closure))
        self.cp.control.wipe()
        self.web.beat()
        self.assertIsNone(self.web.poll(wait=0.5))

    def test_a_heartbeat_in_another_name_or_form_is_refused(self) -> None:
        self.assertEqual(self.web.call("POST", "/v1/agent/heartbeat", {"hostname": "web-01"}).status, 400)
        other = self.agent("web-02")
        other.hostname = "web-01"
        self.assertEqual(other.beat().status, 403)


class Artifacts(ControlPlaneCase):
    def test_the_signed_bytes_are_served_as_published_and_304_when_known(self) -> None:
        rollout_id = self.publish("aaa1", ONE)
        web = self.agent("web-01")
        published = self.cp.folder / "published"
        for path, file in (
            ("fleet.resolved", "fleet.resolved"),
            ("fleet.resolved/sig", "fleet.resolved.sig"),
            (f"rollouts/{rollout_id}", f"rollouts/{rollout_id}"),
            (f"rollouts/{rollout_id}/sig", f"rollouts/{rollout_id}.sig"),
        ):
            with self.subTest(path):
                reply = web.call("GET", f"/v1/{path}")
                self.assertEqual(reply.status, 200)
                self.assertEqual(reply.body, (published / file).read_bytes())
                known = web.call("GET", f"/v1/{path}", headers={"If-None-Match": reply.headers["etag"]})
                self.assertEqual((known.status, known.body), (304, b""))

    def test_before_the_first_publication_the_answer_is_503(self) -> None:
        agent = self.agent("web-01", enrolled=False)
        reply = agent.enroll(self.token(agent))
        self.assertEqual((reply.status, reply.body), (503, b"control plane not ready"))

    def test_an_unknown_rollout_is_404(self) -> None:
        self.publish("aaa1", ONE)
        self.assertEqual(self.agent("web-01").call("GET", "/v1/rollouts/stable@fff").status, 404)

    def test_a_path_that_climbs_finds_nothing(self) -> None:
        self.publish("aaa1", ONE)
        reply = self.agent("web-01").call("GET", "/v1/rollouts/../../server.key")
        self.assertEqual(reply.status, 404)


class Doors(ControlPlaneCase):
    def test_without_a_certificate_only_the_open_doors_answer(self) -> None:
        self.publish("aaa1", ONE)
        stranger = self.agent("web-01", enrolled=False)
        for method, path in (
            ("GET", "/v1/agent/dispatch?wait=0"),
            ("GET", "/v1/fleet.resolved"),
            ("POST", "/v1/agent/events"),
            ("POST", "/v1/agent/heartbeat"),
            ("POST", "/v1/agent/renew"),
        ):
            with self.subTest(path):
                self.assertEqual(stranger.call(method, path, b"{}" if method == "POST" else None).status, 401)
        report = {
            "hostname": "web-01",
            "agentVersion": "0.1.0",
            "occurredAt": "2026-01-01T00:00:00Z",
            "token": {"secret": "x"},
            "event": {"event": "enrollment-failed", "details": {"reason": "no"}},
        }
        self.assertEqual(stranger.call("POST", "/v1/agent/bootstrap-report", report).status, 204)
        (kept,) = self.cp.control.store.bootstrap_reports()
        self.assertNotIn("token", kept)
        with mock.patch.object(store, "REPORTS_KEPT", 3):
            for number in range(6):
                report["event"] = {"kind": "EnrollmentFailed", "reason": str(number)}
                self.assertEqual(stranger.call("POST", "/v1/agent/bootstrap-report", report).status, 204)
        newest = [kept["event"]["reason"] for kept in self.cp.control.store.bootstrap_reports()]
        self.assertEqual(newest, ["3", "4", "5"], "anybody may report: the newest are kept")

    def test_another_protocol_an_unknown_path_and_a_wrong_method(self) -> None:
        stranger = self.agent("web-01", enrolled=False)
        newer = stranger.call("GET", "/v1/fleet.resolved", headers={"X-Nixfleet-Protocol": "2"})
        self.assertEqual(newer.status, 426)
        self.assertEqual(stranger.call("GET", "/v1/nothing").status, 404)
        self.assertEqual(stranger.call("GET", "/v1/enroll").status, 405)

    def test_a_certificate_of_another_authority_does_not_open_a_connection(self) -> None:
        self.publish("aaa1", ONE)
        agent = self.agent("web-01")
        now = SystemClock().now()
        csr = make_csr(agent.key, "web-01")
        foreign = CertificateAuthority.create(now).issue(csr, "web-01", now, timedelta(hours=1))
        agent.certificate_file.write_text(foreign.pem)
        connection = agent.connect()
        self.addCleanup(connection.close)
        with self.assertRaises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            connection.request("GET", "/v1/fleet.resolved")
            connection.getresponse()

    def test_tls_below_1_3_is_refused(self) -> None:
        context = ssl.create_default_context(cafile=str(self.cp.ca_file))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        plain = socket.create_connection(("127.0.0.1", self.cp.server.port), timeout=5)
        self.addCleanup(plain.close)
        with self.assertRaises(ssl.SSLError):
            context.wrap_socket(plain, server_hostname="127.0.0.1")

    def test_a_body_without_length_or_too_large_is_refused(self) -> None:
        stranger = self.agent("web-01", enrolled=False)
        reply = stranger.call("POST", "/v1/enroll", b"x", headers={"Content-Length": str(2**21)})
        self.assertEqual(reply.status, 413)

    def test_a_silent_client_does_not_keep_others_waiting(self) -> None:
        self.publish("aaa1", ONE)
        with socket.create_connection(("127.0.0.1", self.cp.server.port), timeout=5):
            self.assertEqual(self.agent("web-01").call("GET", "/v1/fleet.resolved").status, 200)

    def test_the_page_is_for_anyone_and_escapes_what_came_over_the_wire(self) -> None:
        self.publish("aaa1", ONE)
        stranger = self.agent("web-01", enrolled=False)
        report = {
            "hostname": "web-01",
            "agentVersion": "0.1.0",
            "occurredAt": "2026-01-01T00:00:00Z",
            "event": {"kind": "TrustError", "reason": "<script>alert(1)</script>\x1b[31m"},
        }
        stranger.call("POST", "/v1/agent/bootstrap-report", report)
        page = stranger.call("GET", "/")
        self.assertEqual(page.status, 200)
        self.assertIn("text/html", page.headers["content-type"])
        self.assertNotIn(b"<script>alert", page.body)
        self.assertIn(b"&lt;script&gt;alert", page.body)
        self.assertIn("script-src 'sha256-", page.headers["content-security-policy"])
        self.assertNotIn(b"\x1b", page.body)
        until(lambda: b"stable@aaa1" in stranger.call("GET", "/status.json").body, "the planner's record of it")


class Stopping(ControlPlaneCase):
    def test_a_stop_ends_an_open_long_poll_and_every_thread(self) -> None:
        self.publish("aaa1", ("web-02",))
        agent = self.agent("web-01")
        connection = agent.connect()
        self.addCleanup(connection.close)
        connection.request("GET", "/v1/agent/dispatch?wait=60")
        self.cp.stop()
        self.assertEqual([thread.name for thread in threading.enumerate() if thread.name.startswith("local-cp")], [])
        self.assertEqual(self.cp.server.connections, 0)


if __name__ == "__main__":
    unittest.main()
