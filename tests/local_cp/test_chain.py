"""The control plane keeps what each event says it follows, and says where a chain does not hold."""

from __future__ import annotations

from typing import Any

from nixfleet_agent.journal import chain
from nixfleet_agent.trust.canonical import canonical
from tests.local_cp.scripted import ControlPlaneCase, now, to_converged, until_soaking

ELSEWHERE = "e" * 64


class Chain(ControlPlaneCase):
    def setUp(self) -> None:
        super().setUp()
        self.rollout = self.publish("aaa1", ("web-01",))
        self.agent_01 = self.agent("web-01")
        self.agent_01.beat()
        self.assertIsNotNone(self.agent_01.poll(wait=10))
        self.target_01 = self.target(self.rollout, "web-01")

    def verdicts(self) -> list[str]:
        links = self.cp.control.store.links("web-01", self.rollout)
        return [links[seq] for seq in sorted(links)]

    def test_a_whole_rollout_follows_and_is_kept_as_it_came(self) -> None:
        self.play(self.agent_01, self.rollout, to_converged(self.target_01), link=True)
        self.assertEqual(self.verdicts(), ["good"] * 6)
        self.assertEqual(self.cp.control.store.broken_links(10), [])
        rows = self.cp.control.store.rows("SELECT previous, chain_signature FROM links ORDER BY seq")
        self.assertEqual(rows[0][0], chain.beginning("web-01", self.rollout))
        events = self.cp.control.store.events("web-01", self.rollout)
        for event, (previous, signature) in zip(events, rows, strict=True):
            said = chain.statement("web-01", self.rollout, event, previous)
            self.assertEqual(signature, self.agent_01.key.sign(canonical(said)).hex())

    def test_an_event_that_is_sent_twice_is_no_break(self) -> None:
        self.play(self.agent_01, self.rollout, until_soaking(self.target_01)[:2], link=True)
        tails = dict(self.agent_01.tails)
        self.agent_01.tails[self.rollout] = ELSEWHERE
        kind, fields = until_soaking(self.target_01)[1]
        self.assertEqual(self.agent_01.event(self.rollout, kind, seq=2, link=True, **fields).status, 204)
        self.agent_01.tails = tails
        self.play(self.agent_01, self.rollout, until_soaking(self.target_01)[2:], link=True)
        self.assertEqual(self.verdicts(), ["good"] * 4)

    def test_an_event_that_follows_something_else_is_a_gap_and_the_next_one_is_not(self) -> None:
        events = until_soaking(self.target_01)
        self.play(self.agent_01, self.rollout, events[:2], link=True)
        self.agent_01.tails[self.rollout] = ELSEWHERE
        with self.assertLogs("nixfleet_agent.local_cp", "WARNING") as logged:
            self.play(self.agent_01, self.rollout, events[2:], link=True)
        self.assertEqual(self.verdicts(), ["good", "good", "gap", "good"])
        self.assertEqual(self.cp.control.store.broken_links(10), [("web-01", self.rollout, 3, "gap")])
        self.assertEqual(len([line for line in logged.output if "is broken before seq 3: gap" in line]), 1)

    def test_events_of_an_older_agent_have_none_and_those_of_a_newer_one_cover_them(self) -> None:
        events = until_soaking(self.target_01)
        self.play(self.agent_01, self.rollout, events[:2])
        follows = chain.beginning("web-01", self.rollout)
        for event in self.cp.control.store.events("web-01", self.rollout):
            follows = chain.link("web-01", self.rollout, event, follows)
        self.agent_01.tails[self.rollout] = follows
        self.play(self.agent_01, self.rollout, events[2:3], link=True)
        self.play(self.agent_01, self.rollout, events[3:])
        self.assertEqual(self.verdicts(), ["missing", "missing", "good", "stripped"])

    def test_a_link_that_is_not_the_hosts_is_refused(self) -> None:
        event: dict[str, Any] = {"kind": "DispatchAck", "seq": 1, "receivedAt": now()}
        good = chain.beginning("web-01", self.rollout)
        signed = self.agent_01.key.sign(canonical(chain.statement("web-01", self.rollout, event, good))).hex()
        elsewhere = self.agent_01.key.sign(canonical(chain.statement("web-02", self.rollout, event, good))).hex()
        for previous, signature, status in (
            (good, elsewhere, 422),
            (ELSEWHERE, signed, 422),
            (good, None, 422),
            (good, 7, 422),
            (None, signed, 400),
            ("nonsense", signed, 400),
            (good, signed, 204),
        ):
            with self.subTest(previous=previous, signature=signature):
                body = {"hostname": "web-01", "rolloutId": self.rollout, "event": event}
                body |= {"previous": previous, "chainSignature": signature}
                reply = self.agent_01.call("POST", "/v1/agent/events", body)
                self.assertEqual(reply.status, status, reply.body)


if __name__ == "__main__":
    import unittest

    unittest.main()
