"""Events that are refused, by the control plane or by what stands in its place."""

from __future__ import annotations

from typing import Any

from nixfleet_agent.journal.delivery import BLOCKED_LIMIT
from nixfleet_agent.journal.entries import decode, entry_of
from nixfleet_agent.runtime.workers.outbound import EVENTS
from nixfleet_agent.telemetry.status import RolloutsView
from tests.runtime.harness import HOSTNAME
from tests.runtime.workers.outbound_case import QUEUE, REJECTED, Case, R
from tests.state_machine.machine import T0, event
from tests.support.behaviours import Reply, Request, Reset, page, refusal


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


if __name__ == "__main__":
    import unittest

    unittest.main()
