"""Events on the wire and in the journal: the exact names of the protocol, both ways, and nothing that stays here."""

from __future__ import annotations

import json
import unittest
from dataclasses import fields
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.events import from_wire, local_fields, to_wire
from nixfleet_agent.proto.heartbeat import MAX_SEQ
from nixfleet_agent.state_machine import KINDS, Event, Mode, ProbeStatus
from nixfleet_agent.state_machine.events import Local, Phase, Remote, SubResult
from tests.state_machine.machine import at, declared, event
from tests.state_machine.test_properties import FIELDS

STAMP = "2026-05-16T01:00:{:02}.000000Z".format
PRIOR, TARGET = "a" * 32 + "-prior", "b" * 32 + "-target"

#: What the sample of each kind is on the wire, literally.
WIRE: dict[str, dict[str, Any]] = {
    "DispatchAck": {"currentClosureAtDispatch": PRIOR, "receivedAt": STAMP(1)},
    "ActivationStarted": {"startedAt": STAMP(2), "switchMethod": "systemd-run"},
    "ActivationCompleted": {"observedCurrentClosure": TARGET, "exitCode": 0, "completedAt": STAMP(3)},
    "ActivationFailed": {"exitCode": 4, "stderrTail": "no", "failedAt": STAMP(4)},
    "ActivationDeferred": {"component": "kernel", "deferredAt": STAMP(5)},
    "ProbeTopologyDeclared": {
        "probes": [{"probeName": "web", "kind": "http", "mode": "enforce"}],
        "declaredAt": STAMP(6),
    },
    "ProbeObservedFirst": {"probeName": "web", "mode": "enforce", "observedAt": STAMP(7)},
    "ProbeResult": {
        "probeName": "web",
        "mode": "enforce",
        "status": "fail",
        "observedAt": STAMP(8),
        "failureReason": "status 500",
        "subResults": [
            {
                "controlId": "AC-2",
                "status": "pass",
                "framework": "nist",
                "article": "2",
                "effectiveMode": "observe",
                "overrideReason": "waived",
            },
            {"controlId": "AC-3", "status": "fail", "framework": "nist", "effectiveMode": "enforce"},
        ],
    },
    "ProbeFailureFirst": {"probeName": "web", "mode": "enforce", "firstFailedAt": STAMP(9)},
    "Failed": {
        "failedAt": STAMP(10),
        "sustainedDurationSecs": 120,
        "failingProbes": ["web"],
        "policyApplied": "rollback-and-halt",
    },
    "RollbackComplete": {"revertedToClosure": PRIOR, "exitCode": 0, "completedAt": STAMP(11)},
    "Converged": {"convergedAt": "2026-05-16T02:23:20.000000Z", "currentClosure": TARGET},
}
_SUB = (
    SubResult(
        control_id="AC-2",
        status=ProbeStatus.PASS,
        framework="nist",
        article="2",
        effective_mode=Mode.OBSERVE,
        override_reason="waived",
    ),
    SubResult(control_id="AC-3", status=ProbeStatus.FAIL, framework="nist", effective_mode=Mode.ENFORCE),
)
_PHASES = (Phase(name="realise", seconds=1.5),)
#: Changes to the samples, so that every optional and every local field has a value.
FULL: dict[str, dict[str, Any]] = {
    "ActivationCompleted": {"phases": _PHASES},
    "ActivationFailed": {"phases": _PHASES},
    "ActivationDeferred": {"phases": _PHASES},
    "RollbackComplete": {"phases": _PHASES},
    "ProbeTopologyDeclared": {"probes": (declared("web", run_once=True),)},
    "ProbeResult": {"status": ProbeStatus.FAIL, "failure_reason": "status 500", "sub_results": _SUB},
}
LOCAL_NAMES = {"phases", "switchFired", "observedAtFailure", "bootId", "runOnce"}


def sample(kind: str, *, local: bool = True) -> Event:
    return event(kind, 7, local=local, **FULL.get(kind, {}))


def names_in(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {name for item in value.values() for name in names_in(item)}
    return {name for item in value for name in names_in(item)} if isinstance(value, list) else set()


class TheWire(unittest.TestCase):
    def test_every_kind_is_written_as_the_protocol_names_it(self) -> None:
        self.assertEqual(set(WIRE), set(KINDS))
        for kind, body in WIRE.items():
            for local in (True, False):
                with self.subTest(kind=kind, local=local):
                    self.assertEqual(to_wire(sample(kind, local=local)), {"kind": kind, "seq": 7, **body})

    def test_every_kind_is_read_from_what_the_protocol_names(self) -> None:
        for kind, body in WIRE.items():
            with self.subTest(kind=kind):
                read = from_wire({"kind": kind, "seq": 7, **body}, remote=True)
                self.assertIs(type(read), KINDS[kind].remote)
                self.assertEqual(to_wire(read), {"kind": kind, "seq": 7, **body})

    def test_fields_of_the_host_never_reach_the_wire(self) -> None:
        for kind in KINDS:
            with self.subTest(kind=kind):
                self.assertEqual(names_in(to_wire(sample(kind))) & LOCAL_NAMES, set())
        kept = {kind: set(local_fields(sample(kind))) for kind in KINDS if local_fields(sample(kind))}
        self.assertEqual(
            kept,
            {
                "ActivationCompleted": {"phases"},
                "ActivationFailed": {"phases", "switchFired", "observedAtFailure"},
                "ActivationDeferred": {"phases", "bootId"},
                "Failed": {"observedAtFailure"},
                "RollbackComplete": {"phases"},
            },
        )

    def test_nor_are_they_taken_from_it(self) -> None:
        forged = {
            "phases": [{"name": "x", "seconds": 1}],
            "switchFired": False,
            "observedAtFailure": PRIOR,
            "bootId": "boot",
        }
        for kind in KINDS:
            with self.subTest(kind=kind):
                plain = {"kind": kind, "seq": 7, **WIRE[kind]}
                self.assertEqual(from_wire({**plain, **forged}, remote=True), from_wire(plain, remote=True))
        probes = [{"probeName": "web", "kind": "http", "mode": "enforce", "runOnce": True}]
        topology: Any = from_wire(
            {"kind": "ProbeTopologyDeclared", "seq": 1, "probes": probes, "declaredAt": STAMP(1)}, remote=True
        )
        self.assertFalse(topology.probes[0].run_once)

    def test_what_is_not_known_is_absent_and_null_is_read_as_absent(self) -> None:
        ack = event("DispatchAck", 1, current_closure_at_dispatch=None)
        self.assertEqual(to_wire(ack), {"kind": "DispatchAck", "seq": 1, "receivedAt": STAMP(1)})
        result = event("ProbeResult", 1)
        self.assertEqual(set(to_wire(result)), {"kind", "seq", "probeName", "mode", "status", "observedAt"})
        for kind, optional in (
            ("DispatchAck", ("currentClosureAtDispatch",)),
            ("ProbeResult", ("failureReason", "subResults")),
        ):
            body = {"kind": kind, "seq": 7, **WIRE[kind]}
            absent = {name: value for name, value in body.items() if name not in optional}
            null = {**body, **dict.fromkeys(optional)}
            self.assertEqual(from_wire(null, remote=False), from_wire(absent, remote=False))
        entry = {**WIRE["ProbeResult"]["subResults"][1], "article": None, "overrideReason": None}
        read: Any = from_wire(
            {"kind": "ProbeResult", "seq": 1, **WIRE["ProbeResult"], "subResults": [entry]}, remote=True
        )
        self.assertEqual(read.sub_results, _SUB[1:])

    def test_fields_of_a_newer_version_are_ignored(self) -> None:
        for kind, body in WIRE.items():
            newer = {"kind": kind, "seq": 7, **body, "somethingNew": {"a": [1]}}
            self.assertEqual(from_wire(newer, remote=True), from_wire({"kind": kind, "seq": 7, **body}, remote=True))

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_whatever_is_written_is_read_back_through_real_json(self, data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(sorted(KINDS)))
        build: Any = KINDS[kind].local
        happened = build(seq=data.draw(st.integers(1, MAX_SEQ)), **data.draw(st.fixed_dictionaries(FIELDS[kind])))
        wire = json.loads(json.dumps(to_wire(happened)))
        kept = json.loads(json.dumps(local_fields(happened)))
        self.assertEqual(from_wire(wire, remote=False, local=kept), happened)
        mirrored = from_wire(wire, remote=True, local=kept)
        self.assertIsInstance(happened, Local)
        self.assertIsInstance(mirrored, Remote)
        self.assertEqual(
            [getattr(mirrored, f.name) for f in fields(mirrored)], [getattr(happened, f.name) for f in fields(happened)]
        )


class BadInput(unittest.TestCase):
    def refused(self, value: object, *words: str) -> None:
        with self.assertRaises(ProtoError) as caught:
            from_wire(value, remote=True)
        for word in words:
            self.assertIn(word, str(caught.exception))
        self.assertLess(len(str(caught.exception)), 500)

    def test_what_is_no_object_or_of_no_known_kind(self) -> None:
        for value in (None, [], "x", 3, {}, {"kind": None}, {"kind": ["Failed"]}, {"kind": "Nonsense" * 100}):
            with self.subTest(value=value):
                self.refused(value)

    def test_each_field_that_is_missing_is_named(self) -> None:
        optional = {"currentClosureAtDispatch", "failureReason", "subResults"}
        for kind, body in WIRE.items():
            whole = {"kind": kind, "seq": 7, **body}
            for name in set(whole) - optional - {"kind"}:
                for broken in ({k: v for k, v in whole.items() if k != name}, {**whole, name: None}):
                    with self.subTest(kind=kind, name=name):
                        self.refused(broken, kind, name, "missing")

    def test_each_field_of_another_type_is_named(self) -> None:
        for kind, body in WIRE.items():
            for name in body:
                with self.subTest(kind=kind, name=name):
                    self.refused({"kind": kind, "seq": 7, **body, name: {"an": "object"}}, kind, name)

    def test_a_seq_is_an_unsigned_integer_that_every_reader_keeps_exact(self) -> None:
        for seq in (-1, 2**53, 10**400, 1.5, 7.0, True, "7", float("inf"), float("nan")):
            with self.subTest(seq=str(seq)[:20]):
                self.refused({"kind": "Converged", "seq": seq, **WIRE["Converged"]}, "seq")
        self.assertEqual(from_wire({"kind": "Converged", "seq": 0, **WIRE["Converged"]}, remote=True).seq, 0)

    def test_closed_vocabularies_are_closed(self) -> None:
        for kind, name in (
            ("ActivationStarted", "switchMethod"),
            ("ProbeObservedFirst", "mode"),
            ("ProbeResult", "status"),
            ("Failed", "policyApplied"),
        ):
            for value in ("Enforce", "", "unknown", 1, True):
                self.refused({"kind": kind, "seq": 1, **WIRE[kind], name: value}, name)

    def test_what_stands_inside_a_list_is_checked_too(self) -> None:
        for code in (1.5, True, "0", 2**53, float("nan")):
            self.refused(
                {"kind": "ActivationFailed", "seq": 1, **WIRE["ActivationFailed"], "exitCode": code}, "exitCode"
            )
        topology = {"kind": "ProbeTopologyDeclared", "seq": 1, "declaredAt": STAMP(1)}
        for probes in ("web", {"a": 1}, [1], [{}], [{"probeName": "w", "kind": "http", "mode": "maybe"}], [None]):
            with self.subTest(probes=probes):
                self.refused({**topology, "probes": probes})
        failed = {"kind": "Failed", "seq": 1, **WIRE["Failed"]}
        for names in ("web", [1], [None], [["web"]]):
            with self.subTest(names=names):
                self.refused({**failed, "failingProbes": names}, "failingProbes")

    def test_local_fields_of_a_damaged_log_are_refused_and_no_other_exception_gets_out(self) -> None:
        body = {"kind": "ActivationFailed", "seq": 1, **WIRE["ActivationFailed"]}
        for local in (
            {"phases": [{"name": "x", "seconds": 10**400}]},
            {"phases": [{"name": "x"}]},
            {"phases": "x"},
            {"switchFired": 1},
            {"switchFired": "no"},
            {"observedAtFailure": 3},
        ):
            with self.subTest(local=str(local)[:40]), self.assertRaises(ProtoError):
                from_wire(body, remote=True, local=local)
        self.assertEqual(from_wire(body, remote=True, local="damaged"), from_wire(body, remote=True))

    def test_seconds_may_be_a_whole_number(self) -> None:
        body = {"kind": "ActivationCompleted", "seq": 1, **WIRE["ActivationCompleted"]}
        read: Any = from_wire(body, remote=True, local={"phases": [{"name": "x", "seconds": 2}]})
        self.assertEqual(read.phases, (Phase(name="x", seconds=2.0),))
        self.assertEqual(read.at, at(3))

    @settings(max_examples=300, deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["kind", "seq", "probes", "mode", "at", "phases"]), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        st.sampled_from(sorted(KINDS)),
    )
    def test_no_value_raises_anything_but_a_proto_error(self, value: Any, kind: str) -> None:
        for body in (value, {"kind": kind, **(value if isinstance(value, dict) else {"seq": value})}):
            try:
                from_wire(body, remote=True, local=value)
            except ProtoError:
                continue


if __name__ == "__main__":
    unittest.main()
