"""Each judgement on a recording that is sound, and on one that is wrong in just that."""

from __future__ import annotations

import json
import unittest
from datetime import datetime, timedelta, timezone
from typing import Any

from nixfleet_agent.conformance import judging
from nixfleet_agent.conformance.recording import Exchange
from nixfleet_agent.proto.contract import DISPATCH, EVENTS, FLEET, HEARTBEAT
from nixfleet_agent.proto.times import format_time

R = "stable@def4567abc"
RUNNING = "v5sv61sszx301i0x6xysaqzla09nksnd-nixos-system-web-01"
HEADERS = {
    "x-nixfleet-protocol": "1",
    "x-nixfleet-agent-version": "0.2.0",
    "user-agent": "nixfleet-agent/0.2.0",
    "accept": "application/json",
}
AT = datetime(2026, 5, 16, 1, 27, tzinfo=timezone.utc)
ACK = {"kind": "DispatchAck", "currentClosureAtDispatch": RUNNING, "receivedAt": format_time(AT)}
STARTED = {"kind": "ActivationStarted", "switchMethod": "noop", "startedAt": format_time(AT)}


def exchange(path: str, at: float = 0.0, body: Any = None, **changes: Any) -> Exchange:
    values: dict[str, Any] = {
        "began": at,
        "ended": at + 0.01,
        "method": "GET" if body is None else "POST",
        "path": path,
        "params": {},
        "headers": HEADERS,
        "peer": "web-01",
        "body": b"" if body is None else json.dumps(body).encode(),
        "status": 204,
        "answer": b"",
    }
    return Exchange(**values | changes)


def event(seq: int, fields: dict[str, Any], at: float = 0.0, **changes: Any) -> Exchange:
    return exchange(
        EVENTS, at or float(seq), {"hostname": "web-01", "rolloutId": R, "event": fields | {"seq": seq}}, **changes
    )


SOUND = (event(1, ACK), event(2, STARTED), event(1, ACK, 3.0), event(2, STARTED, 4.0))


class Requests(unittest.TestCase):
    def test_the_contract_of_headers_and_bodies(self) -> None:
        self.assertEqual(judging.contract(SOUND), (None, None))
        nameless = event(1, ACK, headers={k: v for k, v in HEADERS.items() if k != "x-nixfleet-protocol"})
        self.assertIn("headers", str(judging.contract([nameless])[0]))
        wanting = event(1, {k: v for k, v in ACK.items() if k != "currentClosureAtDispatch"})
        self.assertIn("POST /v1/agent/events", str(judging.contract([wanting])[1]))

    def test_endpoints_of_others(self) -> None:
        self.assertIsNone(judging.known_endpoints(SOUND))
        self.assertIn("/elsewhere", str(judging.known_endpoints([exchange("/elsewhere")])))

    def test_calls_without_the_hosts_certificate(self) -> None:
        self.assertIsNone(judging.identity([*SOUND, exchange("/v1/enroll", body={}, peer=None)], "web-01"))
        self.assertIn("nobody", str(judging.identity([event(1, ACK, peer=None)], "web-01")))
        self.assertIn("web-02", str(judging.identity([event(1, ACK, peer="web-02")], "web-01")))

    def test_a_fleet_that_is_fetched_whole_each_time(self) -> None:
        first, asked = (
            exchange(FLEET, status=200),
            exchange(FLEET, status=304, headers=HEADERS | {"if-none-match": "x"}),
        )
        self.assertIsNone(judging.etags([first, asked]))
        self.assertIn("2 times", str(judging.etags([first, first])))
        self.assertIn("never fetched", str(judging.etags([])))

    def test_long_polls_that_come_like_rain_or_do_not_wait(self) -> None:
        waits = {"wait": "60"}
        self.assertIsNone(judging.polls([exchange(DISPATCH, float(at), params=waits) for at in range(9)]))
        self.assertIn("within 0.8 s", str(judging.polls([exchange(DISPATCH, at / 5, params=waits) for at in range(9)])))
        for wait in ("", "0", "600", "x"):
            self.assertIn("wait=", str(judging.polls([exchange(DISPATCH, params={"wait": wait})])))
        self.assertIn("no long poll", str(judging.polls([])))

    def test_the_first_heartbeat(self) -> None:
        beat = {"current_closure": RUNNING}
        self.assertIsNone(judging.first_heartbeat([exchange(HEARTBEAT, body=beat)], RUNNING))
        for wrong in ({}, beat | {"rollout_id": R}):
            self.assertIsNotNone(judging.first_heartbeat([exchange(HEARTBEAT, body=wrong)], RUNNING))
        self.assertIn("no heartbeat", str(judging.first_heartbeat([], RUNNING)))


class Delivery(unittest.TestCase):
    def test_seqs_begin_at_1_without_a_gap_and_in_order(self) -> None:
        self.assertIsNone(judging.gapless(SOUND))
        for seqs in ((2, 3), (1, 3), (2, 1)):
            self.assertIn(str(list(seqs)), str(judging.gapless([event(seq, ACK) for seq in seqs])))

    def test_an_event_keeps_its_bytes(self) -> None:
        self.assertIsNone(judging.same_bytes(SOUND))
        self.assertIn("seq 1", str(judging.same_bytes([event(1, ACK), event(1, STARTED)])))

    def test_one_event_is_under_way_at_a_time(self) -> None:
        self.assertIsNone(judging.one_in_flight(SOUND))
        slow = event(1, ACK, ended=2.5)
        self.assertIn("before DispatchAck", str(judging.one_in_flight([slow, event(2, STARTED)])))

    def test_a_signature_of_another_key(self) -> None:
        self.assertIsNone(judging.signatures_or_none(SOUND))
        for name in ("signature", "chainSignature"):
            said = f'{{"error": "{name} is not the host key\'s over the event"}}'.encode()
            self.assertIn("DispatchAck", str(judging.signatures_or_none([event(1, ACK, status=422, answer=said)])))

    def test_a_replay_is_everything_lowest_first_and_the_same(self) -> None:
        log = judging.log(SOUND, R)
        self.assertEqual([entry["seq"] for entry in log], [1, 2])
        self.assertIsNone(judging.replayed(judging.events_sent(SOUND, R, since=2.5), log))
        self.assertIn("[2]", str(judging.replayed([STARTED | {"seq": 2}], log)))
        self.assertIn("[2, 1]", str(judging.replayed(list(reversed(log)), log)))
        self.assertIn("another content", str(judging.replayed([log[0], STARTED | {"seq": 2, "startedAt": "x"}], log)))


class Strange(unittest.TestCase):
    def test_whatever_an_agent_sends_is_judged_and_breaks_nothing(self) -> None:
        bodies: tuple[Any, ...] = (
            *([], "x", 5, {"event": "x"}, {"rolloutId": [R], "event": {}}),
            {"rolloutId": R, "event": {"seq": [1], "kind": {}, "probes": 5, "probeName": [], "convergedAt": 7}},
            {"rolloutId": R, "event": {"seq": "one", "kind": "ProbeTopologyDeclared", "probes": [5]}},
        )
        strange = [exchange(EVENTS, float(at), body=body) for at, body in enumerate(bodies)]
        strange.append(exchange(HEARTBEAT, body=[1]))
        self.assertIn("POST /v1/agent/events", str(judging.contract(strange)[1]))
        self.assertIn("one", str(judging.gapless(strange)))
        for judge in (judging.same_bytes, judging.one_in_flight, judging.signatures_or_none):
            judge(strange)
        log = judging.log(strange, R)
        self.assertIsNotNone(judging.first_heartbeat(strange, RUNNING))
        self.assertIsNotNone(judging.probes_declared_first(log))
        self.assertIsNotNone(judging.in_order(log, "Converged"))
        self.assertIsNotNone(judging.replayed(log, log))
        self.assertIsNotNone(judging.soaked(log, AT))


class Logs(unittest.TestCase):
    def test_kinds_in_their_order(self) -> None:
        log = judging.log(SOUND, R)
        self.assertIsNone(judging.in_order(log, "DispatchAck", "ActivationStarted"))
        self.assertIn(
            "ActivationStarted is not where", str(judging.in_order(log[::-1], "DispatchAck", "ActivationStarted"))
        )
        self.assertIsNone(judging.without(log, "Converged"))
        self.assertEqual(judging.without(log, "DispatchAck"), "DispatchAck came")

    def test_fields(self) -> None:
        log = judging.log(SOUND, R)
        self.assertIsNone(judging.fields(log, "DispatchAck", seq=1, currentClosureAtDispatch=RUNNING, receivedAt=bool))
        self.assertIn("is None", str(judging.fields(log, "DispatchAck", currentClosureAtDispatchs=RUNNING)))
        self.assertIn("never came", str(judging.fields(log, "Failed")))

    def test_probes_are_declared_and_observed_before_they_have_results(self) -> None:
        declared = {"kind": "ProbeTopologyDeclared", "probes": [{"probeName": "app"}]}
        observed, result = ({"kind": kind, "probeName": "app"} for kind in ("ProbeObservedFirst", "ProbeResult"))
        self.assertIsNone(judging.probes_declared_first([declared, observed, result]))
        for wrong in ([observed, result, declared], [declared, result, observed], []):
            self.assertIsNotNone(judging.probes_declared_first(wrong))

    def test_the_soak(self) -> None:
        log = [{"kind": "Converged", "convergedAt": format_time(AT)}]
        self.assertIsNone(judging.soaked(log, AT))
        self.assertIn("before", str(judging.soaked(log, AT + timedelta(seconds=1))))
        self.assertIn("never came", str(judging.soaked([], AT)))


if __name__ == "__main__":
    unittest.main()
