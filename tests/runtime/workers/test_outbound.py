"""The outbound worker against a real mTLS server: what each answer does to the files, and in which order they go."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

from nixfleet_agent.identity.event_signer import EventSigner
from nixfleet_agent.journal.entries import entry_of
from nixfleet_agent.runtime.workers.outbound import MISMATCH_PAUSE, envelope
from nixfleet_agent.trust.canonical import canonical
from tests.runtime.harness import HOSTNAME, bad_disk, until
from tests.runtime.workers.outbound_case import QUEUE, Case, R, S
from tests.state_machine.machine import T0, event
from tests.support.behaviours import CloseSilently, Drip, HalfBody, Hang, Raw, Reply, Request, Reset
from tests.support.clock import PATIENCE


class Delivery(Case):
    def test_goes_by_seq_in_the_form_of_the_protocol_and_files_what_was_taken(self) -> None:
        self.fill(*range(1, 13))
        self.answer(Reply(204))
        self.assertIsNone(self.worker.drain())
        self.assertEqual(self.posted(), [(R, seq) for seq in range(1, 13)])
        self.assertEqual(self.seqs(), [])
        self.assertEqual(self.seqs(f"outbound-sent/{R}"), list(range(13)))
        request = self.server.requests[0]
        wire = {
            "kind": "ProbeResult",
            "seq": 1,
            "probeName": "web",
            "mode": "enforce",
            "status": "pass",
            "observedAt": "2026-05-16T01:00:08.000000Z",
        }
        self.assertEqual(request.json(), {"hostname": HOSTNAME, "rolloutId": R, "event": wire})
        self.assertEqual(request.headers["X-Nixfleet-Protocol"], "1")
        self.assertEqual(request.headers["Content-Type"], "application/json")
        self.assertEqual(request.client_name, "web-01")
        self.assertEqual(self.server.connections, 1)
        self.assertEqual(self.board.get("queue"), {"queued": 0, "rejected": 0, "oldest": None, "trouble": {}})

    def test_every_2xx_of_the_control_plane_is_delivery(self) -> None:
        self.fill(1, 2, 3)
        self.answer(Reply(200, b'{"seq": 1}'), Reply(202), Reply(204))
        self.worker.drain()
        self.assertEqual(self.seqs(f"outbound-sent/{R}"), [0, 1, 2, 3])

    def test_signs_the_event_by_the_hosts_key(self) -> None:
        self.worker = self.make(EventSigner(self.folder / "key").sign)
        self.fill(1)
        self.answer(Reply(204))
        self.worker.drain()
        body = self.server.requests[0].json()
        self.key.private.public_key().verify(bytes.fromhex(body["signature"]), canonical(body["event"]))

    def test_sends_without_a_signature_while_there_is_no_key(self) -> None:
        self.worker = self.make(EventSigner(self.folder / "no-key").sign)
        self.fill(1)
        self.answer(Reply(204))
        self.worker.drain()
        self.assertNotIn("signature", self.server.requests[0].json())

    def test_takes_rollouts_in_turn(self) -> None:
        self.fill(1, 2, 3)
        self.fill(1, 2, rollout_id=S)
        self.answer(Reply(204))
        self.worker.drain()
        self.assertEqual(sorted(self.posted()[:2]), [(S, 1), (R, 1)])
        self.assertEqual([seq for rollout, seq in self.posted() if rollout == R], [1, 2, 3])
        self.assertEqual([seq for rollout, seq in self.posted() if rollout == S], [1, 2])

    def test_what_was_played_back_is_sent_again_lowest_first(self) -> None:
        self.fill(1, 2, 3)
        self.answer(Reply(204))
        self.worker.drain()
        self.journal.replay(R, 2)
        self.worker.drain()
        self.assertEqual(self.posted(), [(R, 1), (R, 2), (R, 3), (R, 2), (R, 3)])


class Trouble(Case):
    def check_kept(self, behaviour: Any, least: float, most: float) -> None:
        self.fill(1, 2)
        before = {name: (self.state / QUEUE / name).read_bytes() for name in self.names(QUEUE)}
        self.answer(behaviour, Reply(204))
        wait = self.wait_of(self.worker.drain())
        self.assertTrue(least <= wait <= most, wait)
        self.assertEqual(len(self.server.requests), 1, "nothing overtakes the event that waits")
        self.assertEqual(before, {name: (self.state / QUEUE / name).read_bytes() for name in self.names(QUEUE)})
        self.assertIn(R, self.trouble())
        self.worker.drain()
        self.assertEqual(len(self.server.requests), 1, "not before its time")
        self.clock.advance(wait)
        self.assertIsNone(self.worker.drain())
        bodies = [request.body for request in self.server.requests]
        self.assertEqual(bodies[0], bodies[1], "the same event is the same bytes")
        self.assertEqual((self.seqs(), self.trouble()), ([], {}))

    def test_what_passes_is_tried_again_with_backoff(self) -> None:
        for status in (408, 425, 429, 409, 500, 502, 503, 599):
            with self.subTest(status=status):
                self.fresh()
                self.check_kept(Reply(status, b"later"), 0.05, 1.0)

    def test_so_is_a_server_that_gives_no_answer(self) -> None:
        for behaviour in (CloseSilently(), Reset(), HalfBody(), Raw(b"garbage\r\n\r\n")):
            with self.subTest(behaviour=behaviour):
                self.fresh()
                requests = 1
                self.fill(1)
                self.answer(behaviour)
                wait = self.wait_of(self.worker.drain())
                self.assertGreater(wait, 0)
                self.assertEqual(self.seqs(), [1])
                self.assertGreaterEqual(len(self.server.requests), requests)

    def test_a_wrong_door_or_identity_is_tried_again_slowly_and_said_once(self) -> None:
        for status in (301, 302, 401, 403, 404, 410, 451):
            with self.subTest(status=status):
                self.fresh()
                with self.assertLogs("nixfleet_agent.outbound", "ERROR") as logs:
                    self.check_kept(Reply(status, b"who are you", {"Location": "https://elsewhere/"}), 3.0, 60.0)
                self.assertEqual(len(logs.output), 1)

    def test_waits_grow_to_the_maximum_and_five_times_that_for_a_wrong_door(self) -> None:
        for status, most in ((503, 60.0), (403, 300.0)):
            with self.subTest(status=status):
                self.fill(1)
                self.answer(Reply(status))
                waits = []
                for _ in range(40):
                    waits.append(self.wait_of(self.worker.drain()))
                    self.clock.advance(waits[-1])
                self.assertLessEqual(max(waits), most)
                self.assertGreater(max(waits), most * 0.6)
                self.fresh()

    def test_retry_after_is_honoured_up_to_ten_minutes(self) -> None:
        later = format_datetime(self.clock.now() + timedelta(seconds=120), usegmt=True)
        for said, wait in (("45", 45.0), ("86400", 600.0), (later, 120.0), ("soon", None)):
            with self.subTest(said=said):
                self.fresh()
                self.fill(1)
                self.answer(Reply(503, b"", {"Retry-After": said}))
                waited = self.wait_of(self.worker.drain())
                if wait is None:
                    self.assertLessEqual(waited, 1.0)
                else:
                    self.assertAlmostEqual(waited, wait, places=3)

    def test_a_protocol_mismatch_stops_everything_for_five_minutes(self) -> None:
        self.fill(1)
        self.fill(1, rollout_id=S)
        self.answer(Reply(426, b"speak 2"), Reply(204))
        with self.assertLogs("nixfleet_agent.outbound", "ERROR"):
            self.assertEqual(self.wait_of(self.worker.drain()), MISMATCH_PAUSE)
        self.assertEqual(len(self.server.requests), 1)
        self.fill(1, rollout_id="new@cc")
        self.clock.advance(299.9)
        self.worker.drain()
        self.assertEqual(len(self.server.requests), 1)
        self.clock.advance(0.1)
        self.worker.drain()
        self.assertEqual((len(self.server.requests), self.seqs()), (4, []))

    def test_one_stuck_rollout_holds_up_no_other(self) -> None:
        self.fill(1, 2, 3)
        self.fill(1, 2, 3, rollout_id=S)

        def judge(request: Request) -> Reply:
            return Reply(503 if request.json()["rolloutId"] == R else 204)

        self.answer(judge)
        self.assertIsNotNone(self.worker.drain())
        self.assertEqual([name for name in self.names(QUEUE) if S in name], [])
        self.assertEqual(len([name for name in self.names(QUEUE) if R in name]), 3)
        self.assertEqual(set(self.trouble()), {R})

    def test_the_first_failure_and_each_change_are_said_and_the_end_of_it(self) -> None:
        self.fill(1, 2)
        self.answer(Reply(503), Reply(503), Reply(500), Reply(500), Reply(204))
        with self.assertLogs("nixfleet_agent.outbound", "INFO") as logs:
            for _ in range(5):
                self.worker.drain()
                self.clock.advance(60)
        said = [(record.levelname, "503" in record.getMessage()) for record in logs.records]
        self.assertEqual(said, [("WARNING", True), ("WARNING", False), ("INFO", False)])

    def test_a_backoff_begins_anew_after_a_delivery(self) -> None:
        self.fill(1, 2)
        self.answer(*[Reply(503)] * 8, Reply(204), Reply(503))
        for _ in range(8):
            self.worker.drain()
            self.clock.advance(60)
        self.assertLessEqual(self.wait_of(self.worker.drain()), 1.0)


class TheFiles(Case):
    def test_an_unreadable_event_is_set_aside_and_the_next_one_goes_on(self) -> None:
        self.fill(1, 2, 3)
        first, second, _ = self.names(QUEUE)
        (self.state / QUEUE / first).write_bytes(b"{torn")
        (self.state / QUEUE / second).unlink()
        (self.state / QUEUE / second).mkdir()
        self.answer(Reply(204))
        with self.assertLogs("nixfleet_agent.journal", "ERROR"):
            self.assertIsNone(self.worker.drain())
        self.assertEqual(self.posted(), [(R, 3)])
        self.assertEqual(self.names("outbound-corrupt"), [first, second])

    def test_text_that_has_no_utf8_form_kills_nobody(self) -> None:
        self.fill(1, 2)
        path = self.state / QUEUE / self.names(QUEUE)[0]
        path.write_bytes(path.read_bytes().replace(b'"web"', b'"\\udc80"'))
        self.answer(Reply(204))
        self.worker.drain()
        self.assertEqual((self.posted(), len(self.names("outbound-corrupt"))), ([(R, 2)], 1))

    def test_an_event_that_somebody_removed_no_longer_stops_its_rollout(self) -> None:
        self.fill(1, 2)
        (self.state / QUEUE / self.names(QUEUE)[0]).unlink()
        self.answer(Reply(204))
        with self.assertLogs("nixfleet_agent.journal", "ERROR"):
            self.assertIsNone(self.worker.drain())
        self.assertEqual(self.posted(), [(R, 2)])

    def test_a_disk_that_cant_file_what_was_delivered_means_that_it_is_sent_again(self) -> None:
        self.fill(1)
        self.answer(Reply(204))
        with bad_disk() as disk:
            disk.break_down(5)
            wait = self.wait_of(self.worker.drain())
        self.assertEqual(self.seqs(), [1])
        self.clock.advance(wait)
        self.worker.drain()
        self.assertEqual(self.posted(), [(R, 1), (R, 1)])
        self.assertEqual(self.server.requests[0].body, self.server.requests[1].body)
        self.assertEqual(self.seqs(), [])


class TheLoop(Case):
    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self.worker.run)
        thread.start()
        self.addCleanup(thread.join, PATIENCE)
        self.addCleanup(self.control_plane.abort)
        self.addCleanup(self.shutdown.set)
        return thread

    def test_sends_at_once_when_kicked_and_looks_again_each_interval(self) -> None:
        self.answer(Reply(204))
        self.start()
        self.clock.until_waiting(1)
        self.fill(1)
        self.worker.kick()
        until(lambda: self.seqs() == [], "the event is sent")
        self.clock.until_waiting(1)
        self.fill(2)
        self.clock.advance(15)
        until(lambda: self.seqs() == [], "the event is sent")

    def test_a_retry_does_not_wait_for_the_interval(self) -> None:
        self.answer(Reply(503), Reply(204))
        self.fill(1)
        self.start()
        until(lambda: len(self.server.requests) == 1, "the first try")
        self.clock.until_waiting(1)
        deadline = self.clock.next_deadline()
        assert deadline is not None
        self.assertLessEqual(deadline - self.clock.monotonic(), 1.0)
        self.clock.advance(1)
        until(lambda: self.seqs() == [], "the event is sent")

    def test_shutdown_ends_it_though_the_server_says_nothing(self) -> None:
        for behaviour in (Hang(), Drip(where="status")):
            with self.subTest(behaviour=behaviour):
                self.answer(behaviour)
                self.fill(1)
                thread = self.start()
                until(lambda: len(self.server.requests) == 1, "the request")
                self.shutdown.set()
                self.control_plane.abort()
                thread.join(30)
                self.assertFalse(thread.is_alive())
                self.assertEqual(self.seqs(), [1])
                self.fresh()

    def test_the_body_is_what_the_file_says_and_nothing_of_the_host(self) -> None:
        local = entry_of(event("ActivationFailed", 1), HOSTNAME, R, T0)
        self.assertTrue(local.local)
        body = json.loads(envelope(local, lambda event: None))
        self.assertEqual(set(body), {"hostname", "rolloutId", "event"})
        self.assertEqual(set(body["event"]), {"kind", "seq", "exitCode", "stderrTail", "failedAt"})


if __name__ == "__main__":
    import unittest

    unittest.main()
