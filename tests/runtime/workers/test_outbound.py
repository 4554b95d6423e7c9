"""The outbound worker against a real mTLS server: what each answer does to the files, and in which order they go."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

from nixfleet_agent.identity.event_signer import EventSigner
from nixfleet_agent.journal.delivery import BLOCKED_LIMIT
from nixfleet_agent.journal.entries import Entry, decode, entry_of
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.runtime.workers.outbound import EVENTS, MISMATCH_PAUSE, Outbound, envelope
from nixfleet_agent.telemetry.status import RolloutsView, StatusBoard
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.trust.canonical import canonical
from tests.net.base import NetTestCase
from tests.runtime.harness import HOSTNAME, bad_disk, until
from tests.runtime.parts import services
from tests.state_machine.machine import T0, event
from tests.support.behaviours import CloseSilently, Drip, HalfBody, Hang, Raw, Reply, Request, Reset, page, refusal
from tests.support.clock import PATIENCE, FakeClock

R, S = "stable@aa", "edge@bb"
QUEUE, REJECTED = "outbound-queue", "outbound-rejected"


class Case(NetTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.number = 0
        self.server = self.serve()
        self.fresh()

    def fresh(self) -> None:
        """Another host on the same server."""
        self.number += 1
        self.state = self.folder / f"state-{self.number}"
        self.clock = FakeClock()
        self.shutdown = ShutdownToken(self.clock)
        self.board = StatusBoard()
        self.board.publish_rollouts(RolloutsView(active_id=R, active_open=True))
        self.server.requests.clear()
        self.control_plane = self.connect(self.server)
        self.journal = Journal(self.state, HOSTNAME)
        self.journal.open()
        self.worker = self.make()

    def make(self, sign: Callable[[dict[str, object]], str | None] = lambda event: None) -> Outbound:
        parts = services(
            shutdown=self.shutdown,
            clock=self.clock,
            journal=self.journal,
            control_plane=self.control_plane,
            board=self.board,
        )
        return Outbound(parts, sign)

    def fill(self, *seqs: int, rollout_id: str = R) -> None:
        self.journal.accept(
            Entry(seq=0, hostname=HOSTNAME, rollout_id=rollout_id, kind="Dispatch", created_at=T0, event={"kind": "x"})
        )
        for seq in seqs:
            self.journal.append(entry_of(event("ProbeResult", seq), HOSTNAME, rollout_id, T0))

    def answer(self, *behaviours: Any) -> None:
        self.server.route("POST", EVENTS, *behaviours)

    def names(self, folder: str) -> list[str]:
        return sorted(os.listdir(self.state / folder))

    def seqs(self, folder: str = QUEUE) -> list[int]:
        return [int(name[:20]) for name in self.names(folder)]

    def posted(self) -> list[tuple[str, int]]:
        bodies = [request.json() for request in self.server.requests]
        return [(body["rolloutId"], body["event"]["seq"]) for body in bodies]

    def trouble(self) -> dict[str, str]:
        queue: Any = self.board.get("queue")
        found: dict[str, str] = queue["trouble"]
        return found

    def wait_of(self, next_try: float | None) -> float:
        assert next_try is not None
        return next_try - self.clock.monotonic()


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


class Refusals(Case):
    def test_the_event_is_set_aside_with_the_answer_and_the_next_one_goes_on(self) -> None:
        for status in (400, 413, 415, 422):
            with self.subTest(status=status):
                self.fresh()
                self.fill(1, 2)
                self.answer(refusal(status, "seq 1 is \x1b[31mwrong" + "!" * 5000), Reply(204))
                with self.assertLogs("nixfleet_agent.outbound", "ERROR") as logs:
                    self.assertIsNone(self.worker.drain())
                self.assertNotIn("\x1b", "".join(logs.output))
                [name] = self.names(REJECTED)
                self.assertEqual(name, f"{1:020}-web-01-{R}-ProbeResult.json")
                refused = decode((self.state / REJECTED / name).read_bytes())
                assert refused.refusal is not None
                self.assertEqual(refused.refusal["status"], status)
                self.assertEqual(len(refused.refusal["answer"]), 2048)
                self.assertEqual((self.seqs(), self.seqs(f"outbound-sent/{R}")), ([], [0, 2]))
                self.assertEqual(self.journal.counts(), (0, 1))
                self.assertEqual(self.trouble(), {})

    def test_one_that_later_events_rest_on_holds_them_for_ten_minutes_and_goes_out_if_it_is_taken_meanwhile(
        self,
    ) -> None:
        self.fill()
        for seq, kind in ((1, "DispatchAck"), (2, "ActivationStarted")):
            self.journal.append(entry_of(event(kind, seq), HOSTNAME, R, T0))
        self.answer(refusal(422, "no such rollout"))
        self.worker.drain()
        self.clock.advance(599)
        self.worker.drain()
        self.assertEqual((self.seqs(), self.seqs(REJECTED), self.posted()), ([1, 2], [], [(R, 1)] * 2))
        self.assertIn("422", self.trouble()[R])
        self.answer(Reply(204))
        self.clock.advance(60)
        self.worker.drain()
        self.assertEqual((self.seqs(), self.seqs(f"outbound-sent/{R}")), ([], [0, 1, 2]))

    def test_and_is_set_aside_after_that(self) -> None:
        self.fill()
        for seq, kind in ((1, "DispatchAck"), (2, "ActivationStarted")):
            self.journal.append(entry_of(event(kind, seq), HOSTNAME, R, T0))
        self.answer(refusal(422, "no such rollout"))
        self.worker.drain()
        self.clock.advance(600)
        self.answer(refusal(400, "no such rollout"), Reply(204))
        with self.assertLogs("nixfleet_agent.outbound", "ERROR"):
            self.worker.drain()
        self.assertEqual((self.seqs(), self.seqs(REJECTED)), ([], [1]))

    def conflict_for(self, seconds: float) -> None:
        self.answer(Reply(409, b"the soak is not over"))
        until = self.clock.monotonic() + seconds
        while self.clock.monotonic() < until:
            self.worker.drain()
            self.clock.advance(min(3600.0, until - self.clock.monotonic()))
        self.worker.drain()

    def test_what_a_conflict_is_about_is_sent_at_once_when_it_comes(self) -> None:
        self.fill(1, 2)
        self.answer(Reply(204), Reply(409, b"events from seq 1 on are missing here"))
        self.worker.drain()
        self.clock.advance(0.01)
        self.worker.drain()
        self.assertEqual(self.posted(), [(R, 1), (R, 2)], "a refused event waits")
        self.journal.replay(R, 1)
        self.answer(Reply(204))
        self.worker.drain()
        self.assertEqual(self.posted(), [(R, 1), (R, 2), (R, 1), (R, 2)])
        self.assertEqual(self.seqs(), [])

    def test_a_conflict_is_given_up_after_a_day_when_the_rollout_is_over(self) -> None:
        self.fill(1, 2)
        self.board.publish_rollouts(RolloutsView(active_id=R))
        self.conflict_for(86_399)
        self.assertEqual(self.seqs(), [1, 2])
        self.clock.advance(60)
        self.worker.drain()
        self.assertEqual((self.seqs(), self.seqs(REJECTED)), ([2], [1]))
        self.clock.advance(3600)
        self.worker.drain()
        self.assertEqual(self.seqs(), [2], "the next event has a day of its own")

    def test_but_never_of_a_rollout_that_goes_on(self) -> None:
        self.fill(1)
        self.conflict_for(3 * 86_400)
        self.assertEqual((self.seqs(), self.seqs(REJECTED)), ([1], []))

    def test_a_conflict_that_was_over_meanwhile_begins_anew(self) -> None:
        self.fill(1)
        self.board.publish_rollouts(RolloutsView(active_id=R))
        self.conflict_for(80_000)
        self.answer(Reply(503))
        self.clock.advance(60)
        self.worker.drain()
        self.conflict_for(80_000)
        self.assertEqual(self.seqs(), [1])

    def test_nor_does_the_conflict_of_an_event_that_is_gone_count_for_the_next(self) -> None:
        self.fill(1, 2)
        self.board.publish_rollouts(RolloutsView(active_id=R))
        self.conflict_for(80_000)
        (self.state / QUEUE / self.names(QUEUE)[0]).unlink()
        self.clock.advance(60)
        with self.assertLogs("nixfleet_agent.journal", "ERROR"):
            self.conflict_for(80_000)
        self.assertEqual((self.seqs(), self.seqs(REJECTED)), ([2], []))


class InPlaceOfTheControlPlane(Case):
    """A portal, a maintenance page, a firewall: none of them crosses an event off, and none holds up a rollout."""

    def drain_for(self, seconds: float) -> None:
        until = self.clock.monotonic() + seconds
        while self.clock.monotonic() < until:
            self.worker.drain()
            self.clock.advance(30)
        self.worker.drain()

    def unloved(self, *seqs: int, answer: Any) -> None:
        """A firewall that dislikes the bodies of these events, and no others."""

        def judge(request: Request) -> Any:
            return answer if request.json()["event"]["seq"] in seqs else Reply(204)

        self.answer(judge)

    def test_no_page_or_redirect_acknowledges_or_refuses_an_event(self) -> None:
        text = {"Content-Type": "text/plain"}
        for answer in (
            page(200, "Log in to the guest network"),
            Reply(200, b"OK", text),
            Reply(200, b"OK"),
            Reply(200, b'{"ok": true}', text),
            Reply(302, b"", {"Location": "https://portal.example/"}),
            page(400),
            page(422),
            Reply(422, b"Failed to read the JSON body", text),
            Reply(422),
            Reply(422, b'{"message": "Forbidden"}', {"Content-Type": "application/json"}),
        ):
            with self.subTest(answer=answer):
                self.fresh()
                self.fill(1, 2)
                self.answer(answer)
                wait = self.wait_of(self.worker.drain())
                self.assertTrue(3.0 <= wait <= 60.0, wait)
                self.assertEqual((self.seqs(), self.seqs(REJECTED), self.seqs(f"outbound-sent/{R}")), ([1, 2], [], [0]))
                self.assertEqual(len(self.server.requests), 1)

    def test_what_it_was_is_said_once_and_in_full(self) -> None:
        self.fill(1)
        self.answer(page(200, "Wartung\x1b[2J bis 12:00"))
        with self.assertLogs("nixfleet_agent", "WARNING") as logs:
            self.drain_for(1200)
        told = [line for line in logs.output if "in place of the control plane" in line]
        self.assertEqual(len(told), 1, logs.output)
        self.assertIn("status 200, a page titled 'Wartung\\x1b[2J bis 12:00', Server: ", told[0])
        self.assertEqual(list(self.control_plane.foreign.current()), [EVENTS])
        self.answer(Reply(204))
        with self.assertLogs("nixfleet_agent.net", "INFO"):
            self.drain_for(600)
        self.assertEqual((self.seqs(), self.control_plane.foreign.current()), ([], {}))

    def test_one_event_that_is_refused_alone_goes_out_of_the_way_after_ten_minutes(self) -> None:
        for answer in (page(403, "Request blocked"), Reply(403), Reply(400, b"blocked"), page(200), Reset()):
            with self.subTest(answer=answer):
                self.fresh()
                self.fill(1, 2, 3, 4)
                self.unloved(2, answer=answer)
                self.drain_for(BLOCKED_LIMIT - 90)
                self.assertEqual((self.seqs(), self.seqs(REJECTED)), ([2, 3, 4], []))
                with self.assertLogs("nixfleet_agent.outbound", "ERROR"):
                    self.drain_for(600)
                self.assertEqual((self.seqs(), self.seqs(REJECTED)), ([], [2]))
                self.assertEqual(self.seqs(f"outbound-sent/{R}"), [0, 1, 3, 4])
                [name] = self.names(REJECTED)
                kept = decode((self.state / REJECTED / name).read_bytes()).refusal
                assert kept is not None
                self.assertTrue(kept["answer"])
                self.assertEqual(self.trouble(), {})

    def test_so_do_several_in_a_row(self) -> None:
        self.fill(1, 2, 3, 4)
        self.unloved(1, 2, 3, answer=page(403))
        self.drain_for(2 * BLOCKED_LIMIT)
        self.assertEqual((self.seqs(), self.seqs(REJECTED)), ([], [1, 2, 3]))

    def test_a_door_that_is_shut_to_all_costs_no_event(self) -> None:
        for answer in (page(403), Reply(404), Reset(), page(200)):
            with self.subTest(answer=answer):
                self.fresh()
                self.fill(1, 2, 3)
                self.answer(answer)
                self.drain_for(BLOCKED_LIMIT + 400)
                self.assertEqual((self.seqs(), self.seqs(REJECTED)), ([1, 2, 3], []))
                self.answer(Reply(204))
                self.drain_for(900)
                self.assertEqual((self.seqs(), self.seqs(f"outbound-sent/{R}")), ([], [0, 1, 2, 3]))

    def test_the_last_event_waits_for_one_behind_it(self) -> None:
        self.fill(1)
        self.unloved(1, answer=page(403))
        self.drain_for(2 * BLOCKED_LIMIT)
        self.assertEqual(self.seqs(), [1])
        self.fill(2)
        self.drain_for(600)
        self.assertEqual((self.seqs(), self.seqs(REJECTED)), ([], [1]))

    def test_what_was_set_aside_is_replayed_too_and_without_the_answer(self) -> None:
        self.fill(1, 2, 3)
        before = {name: (self.state / QUEUE / name).read_bytes() for name in self.names(QUEUE)}
        self.answer(Reply(204), refusal(422), Reply(204))
        self.worker.drain()
        self.assertEqual((self.seqs(REJECTED), self.journal.counts()), ([2], (0, 1)))
        self.assertEqual(self.journal.replay(R, 1), 3)
        self.assertEqual(before, {name: (self.state / QUEUE / name).read_bytes() for name in self.names(QUEUE)})
        self.assertEqual(self.journal.counts(), (3, 0))
        self.worker.drain()
        self.assertEqual(self.posted()[3:], [(R, 1), (R, 2), (R, 3)])

    def test_an_operator_may_have_what_waits_tried_at_once(self) -> None:
        self.fill(1)
        self.answer(Reply(503, b"", {"Retry-After": "600"}), Reply(204))
        self.worker.drain()
        self.worker.retry_now()
        self.assertIsNone(self.worker.drain())
        self.assertEqual(self.seqs(), [])

    def test_an_event_that_an_operator_dropped_is_let_go(self) -> None:
        self.fill(1, 2)
        (self.state / QUEUE / self.names(QUEUE)[0]).unlink()
        self.assertEqual(self.journal.rescan_queue(), 0)
        self.answer(Reply(204))
        self.assertIsNone(self.worker.drain())
        self.assertEqual(self.posted(), [(R, 2)])


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
