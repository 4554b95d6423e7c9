"""The wire as a contract: its schemas hold for their own examples and for the guide's, and breaches are found."""

from __future__ import annotations

import copy
import json
import unittest
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from nixfleet_agent.local_cp.api import ROUTES
from nixfleet_agent.proto.contract import ANSWERS, BODIES, EVENTS, HEARTBEAT, answer_faults, request_faults
from nixfleet_agent.state_machine import KINDS
from tests.docs.pages import blocks

WIRE = Path(__file__).resolve().parents[2] / "conf" / "schemas" / "wire"
HEADERS = {
    "X-Nixfleet-Protocol": "1",
    "X-Nixfleet-Agent-Version": "0.1.0",
    "User-Agent": "nixfleet-agent/0.1.0",
    "Accept": "application/json",
}


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((WIRE / f"{name}.schema.json").read_text(encoding="utf-8"))
    return found


def guide(what: str) -> Any:
    (block,) = blocks(f"json {what}")
    return json.loads(block.text)


def faults(path: str, body: Any, headers: dict[str, str] | None = None) -> list[str]:
    return list(request_faults("POST", path, HEADERS if headers is None else headers, json.dumps(body).encode()))


class Schemas(unittest.TestCase):
    def test_every_one_is_sound_and_holds_for_its_examples(self) -> None:
        for file in sorted(WIRE.iterdir()):
            with self.subTest(file.name):
                body = json.loads(file.read_text(encoding="utf-8"))
                Draft202012Validator.check_schema(body)
                self.assertTrue(body["examples"])
                for example in body["examples"]:
                    self.assertEqual([e.message for e in Draft202012Validator(body).iter_errors(example)], [])

    def test_the_examples_of_an_event_have_every_kind(self) -> None:
        self.assertEqual({example["event"]["kind"] for example in schema("event")["examples"]}, set(KINDS))

    def test_every_message_has_one_and_every_one_a_message(self) -> None:
        used = {*BODIES.values(), *ANSWERS.values(), "request-headers", "answer-headers", "error"}
        self.assertEqual(used, {file.name.removesuffix(".schema.json") for file in WIRE.iterdir()})
        self.assertEqual({path for method, path in ROUTES if method == "POST"} | {"/v1/agent/renew"}, set(BODIES))

    def test_the_guides_examples_fit(self) -> None:
        envelope = guide("event") | {"signature": "5f" * 64, "chainSignature": "77" * 64}
        for event in (envelope["event"], *guide("events")):
            self.assertEqual(faults(EVENTS, envelope | {"event": event}), [])
        self.assertEqual(faults(HEARTBEAT, guide("heartbeat")), [])
        self.assertEqual(list(answer_faults("/v1/agent/dispatch", 200, {}, json.dumps(guide("Dispatch")).encode())), [])
        answer = {"received_at": "2026-05-16T01:28:00Z", "bootstrap_rollouts": [guide("snapshot")]}
        self.assertEqual(list(answer_faults(HEARTBEAT, 200, {}, json.dumps(answer).encode())), [])


class Breaches(unittest.TestCase):
    def test_no_field_of_any_message_can_be_left_out_misspelt_or_of_another_type(self) -> None:
        optional = {"signature", "rollout_id", "current_closure", "token", "failureReason", "subResults"}
        for path, name in BODIES.items():
            for example in schema(name)["examples"]:
                for at in ((), ("event",)) if name == "event" else ((),):
                    for key in example["event"] if at else example:
                        for change in ("left out", "misspelt", "null"):
                            body = copy.deepcopy(example)
                            holder = body["event"] if at else body
                            value = holder.pop(key)
                            if change != "left out":
                                holder[key + "s" if change == "misspelt" else key] = None if change == "null" else value
                            if change == "left out" and key in optional:
                                continue
                            with self.subTest(name, key=key, change=change):
                                self.assertNotEqual(faults(path, body), [])

    def test_headers_are_on_every_request(self) -> None:
        for name in HEADERS:
            headers = {key: value for key, value in HEADERS.items() if key != name}
            self.assertNotEqual(list(request_faults("GET", "/v1/agent/dispatch", headers, b"")), [], name)
        self.assertEqual(list(request_faults("GET", "/v1/agent/dispatch", HEADERS, b"")), [])
        self.assertIn("octet-stream", next(iter(request_faults("GET", "/v1/fleet.resolved/sig", HEADERS, b""))))

    def test_what_is_no_json_or_has_a_time_in_another_form_is_found(self) -> None:
        self.assertIn("not JSON", next(iter(request_faults("POST", EVENTS, HEADERS, b"{"))))
        beat = guide("heartbeat")
        self.assertIn("at: ", faults(HEARTBEAT, beat | {"at": "2026-05-16T01:28:00Z"})[0])

    def test_endpoints_of_others_are_not_looked_at(self) -> None:
        for path in ("/", "/host", "/status.json"):
            self.assertEqual(list(request_faults("GET", path, {}, b"")), [])

    def test_answers(self) -> None:
        self.assertEqual(list(answer_faults(EVENTS, 204, {}, b"")), [])
        self.assertEqual(list(answer_faults(EVENTS, 422, {}, b'{"error": "no"}')), [])
        self.assertNotEqual(list(answer_faults(EVENTS, 422, {}, b"<html>")), [])
        self.assertNotEqual(list(answer_faults(HEARTBEAT, 200, {"X-Nixfleet-Replay-From": "-1"}, b"{}")), [])


if __name__ == "__main__":
    unittest.main()
