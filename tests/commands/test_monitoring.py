"""`status` for machines: one verdict with the exit code of a monitoring plugin, and JSON of a form that stays."""

from __future__ import annotations

import json
import unittest
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import jsonschema

from nixfleet_agent.commands.health import Level, judge
from nixfleet_agent.proto.times import format_time
from tests.commands.host_case import HostCase

TOP = Path(__file__).resolve().parents[2]
DATA = TOP / "tests" / "data"
SCHEMA: dict[str, Any] = json.loads((TOP / "conf" / "schemas" / "status.schema.json").read_text())
NOW = datetime(2026, 11, 28, 12, tzinfo=timezone.utc)


def ago(**span: float) -> str:
    return format_time(NOW - timedelta(**span))


def host(state: str, **more: object) -> dict[str, object]:
    """The sections of a host whose one rollout is in that state."""
    return {"host": {"active_id": "stable@aa"}, "rollouts": [{"rollout_id": "stable@aa", "state": state, **more}]}


GOOD: dict[str, object] = {
    "running": True,
    "certificate": {"path": "/c", "state": "valid", "not_after": format_time(NOW + timedelta(days=20))},
    "queue": {"queued": 1, "rejected": 0, "oldest": ago(seconds=20)},
    "contacts": {"/v1/agent/heartbeat": {"last_at": ago(seconds=30), "answered_at": ago(seconds=30)}},
    **host("Converged"),
}

#: What is different from a good host -> the level, and a word of the line.
CASES: dict[str, tuple[dict[str, object], Level, str]] = {
    "nothing": ({}, Level.OK, "stable@aa is Converged"),
    "no rollout yet": ({"host": None, "rollouts": []}, Level.OK, "no rollout accepted yet"),
    "it does not run": ({"running": False, "not_running": "no socket"}, Level.CRITICAL, "no socket"),
    "a silent worker": ({"silent_workers": ["probe"]}, Level.CRITICAL, "worker unresponsive: probe"),
    "a full disk": ({"journal_error": "No space left"}, Level.CRITICAL, "not durable: No space left"),
    "no trust": ({"trust_error": "not JSON"}, Level.CRITICAL, "nothing can be verified"),
    "a hold": ({"hold": {"reason": "disk swap", "until": None}}, Level.WARNING, "disk swap"),
    "drift": ({"drift": "abc-nixos"}, Level.WARNING, "abc-nixos runs"),
    "on its way": (host("Activating"), Level.OK, "stable@aa is Activating"),
    "deferred": (host("Deferred"), Level.WARNING, "waits for a reboot"),
    "deferred until a window": (
        {**host("Deferred"), "reboot": {"reason": "it reboots in the next maintenance window"}},
        Level.WARNING,
        "stable@aa waits for a reboot: it reboots in the next maintenance window",
    ),
    "a rollback that was rebooted for in vain": (
        {
            **host("Failed", rollback_owed=True),
            "rollback": {"deferred": "kernel", "closure": "old"},
            "reboot": {"reason": "it was rebooted once"},
        },
        Level.CRITICAL,
        "can't be replaced while the host runs: it was rebooted once",
    ),
    "reverted": (host("Reverted"), Level.WARNING, "was rolled back"),
    "going back": (host("Failed", rollback_owed=True), Level.WARNING, "is being rolled back"),
    "left broken by policy": (host("Failed", rollback_owed=False), Level.CRITICAL, "stable@aa failed"),
    "a rollback that fails": (
        {**host("Failed", rollback_owed=True), "rollback": {"failures": 2, "reason": "lock"}},
        Level.CRITICAL,
        "not rolled back: lock",
    ),
    "a rollback given up": (
        {**host("Failed", rollback_owed=True), "rollback": {"given_up": True}},
        Level.CRITICAL,
        "not rolled back",
    ),
    "no certificate": ({"certificate": {"path": "/c", "state": "missing"}}, Level.CRITICAL, "/c is missing"),
    "an old certificate": (
        {"certificate": {"state": "due", "not_after": format_time(NOW + timedelta(hours=30))}},
        Level.WARNING,
        "expires in 30 h",
    ),
    "late events": ({"queue": {"queued": 4, "oldest": ago(hours=3)}}, Level.WARNING, "4 undelivered events"),
    "refused events": ({"queue": {"queued": 0, "rejected": 2, "oldest": None}}, Level.WARNING, "2 events refused"),
    "a silent control plane": ({"contacts": {"/x": {"answered_at": ago(hours=1)}}}, Level.WARNING, "for 60 min"),
    "a control plane never heard of": ({"contacts": {"/x": {"answered_at": None}}}, Level.WARNING, "since the agent"),
}


class Verdicts(unittest.TestCase):
    def test_each_condition_has_its_level_and_its_words(self) -> None:
        for name, (changed, level, word) in CASES.items():
            with self.subTest(name):
                verdict = judge({**GOOD, **changed}, NOW)
                self.assertEqual((verdict.level, verdict.line.split(" - ")[0]), (level, level.name))
                self.assertIn(word, verdict.line)

    def test_the_worst_comes_first_and_all_are_named(self) -> None:
        line = judge({**GOOD, "hold": {"reason": "swap"}, "journal_error": "full"}, NOW).line
        self.assertRegex(line, "^CRITICAL - events are not durable: full; held back by an operator: swap$")


class Command(HostCase):
    def test_check_prints_one_line_and_exits_as_a_monitoring_plugin(self) -> None:
        ran = self.call("status", "--check")
        self.assertEqual((ran.code, ran.out.count("\n"), ran.err), (2, 1, ""))
        self.assertRegex(ran.out, "^CRITICAL - the agent does not run")
        as_json = self.call("status", "--check", "--json")
        self.assertEqual((as_json.code, as_json.json["level"]), (2, "CRITICAL"))

    def test_json_of_an_agent_that_does_not_run_has_the_form_of_the_schema(self) -> None:
        jsonschema.validate(self.call("status", "--json").json, SCHEMA)


class Schema(unittest.TestCase):
    def test_what_a_running_agent_said_in_version_1_has_its_form(self) -> None:
        jsonschema.Draft202012Validator.check_schema(SCHEMA)
        jsonschema.validate(json.loads((DATA / "status-1.json").read_text()), SCHEMA)

    def test_no_field_of_version_1_is_gone_or_of_another_type(self) -> None:
        """`status-1-fields.txt` only grows: whoever reads version 1 reads it for good."""
        promised = (DATA / "status-1-fields.txt").read_text().splitlines()
        self.assertEqual(sorted(set(promised) - set(leaves(SCHEMA, ""))), [])
        self.assertEqual(SCHEMA["properties"]["schema_version"], {"const": 1})


def leaves(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """One line for each field: where it is, its type, and whether it is always there."""
    for name, inner in schema.get("properties", {}).items():
        required = " required" if name in schema.get("required", ()) else ""
        what = inner.get("type") or inner.get("enum") or inner.get("const")
        yield f"{path}/{name} {json.dumps(what)}{required}"
        yield from leaves(inner, f"{path}/{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), Mapping):
            yield from leaves(schema[name], f"{path}/*")


if __name__ == "__main__":
    unittest.main()
