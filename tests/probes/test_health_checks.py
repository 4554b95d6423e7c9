"""Declarations fail closed: nothing that an operator wrote is ever silently not probed."""

from __future__ import annotations

import json
import unittest
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from nixfleet_agent.probes import health_checks
from nixfleet_agent.probes.declarations import (
    BadDecl,
    DeclaredProbes,
    EvidenceDecl,
    ExecDecl,
    HttpDecl,
    Override,
    ProbeDecl,
    TcpDecl,
)
from nixfleet_agent.state_machine.states import Mode

SCHEMA = Path(__file__).resolve().parents[2] / "conf" / "schemas" / "health-checks.schema.json"
FLOOR = 5.0

GOOD: dict[str, dict[str, Any]] = {
    "http": {"kind": "http", "url": "http://127.0.0.1:8080/health"},
    "http-all": {
        "kind": "http",
        "url": "https://[::1]/",
        "expectStatus": 204,
        "bodyContains": "ok",
        "timeoutSecs": 2.5,
        "mode": "observe",
        "intervalSeconds": 60,
        "runOnce": True,
        "someFutureKey": {"deep": [1]},
    },
    "tcp": {"kind": "tcp", "port": 22},
    "tcp-all": {"kind": "tcp", "host": "[::1]", "port": 65535, "connectTimeoutSecs": 1},
    "exec": {"kind": "exec", "command": ["/bin/true"]},
    "exec-string": {"kind": "exec", "command": "/bin/sh -c 'exit 3'", "expectExitCode": 3, "timeoutSecs": 1},
    "evidence": {"kind": "evidence", "framework": "nis2"},
    "evidence-all": {
        "kind": "evidence",
        "controls": {"c1": {"mode": "observe", "reason": "known"}, "c2": {}},
        "controlOverrides": {"c2": {"mode": "disabled"}},
        "evidencePath": "/run/evidence.json",
        "maxAgeSecs": 90 * 86400,
    },
    "nulls": {"kind": "evidence", "framework": "nis2", "controls": None, "maxAgeSecs": None, "mode": None},
}

#: Options as a NixOS module renders them, with everything that was not set.
RENDERED: dict[str, tuple[dict[str, Any], ProbeDecl]] = {
    "whole framework": (
        {
            "kind": "evidence",
            "mode": "observe",
            "intervalSeconds": 300,
            "runOnce": False,
            "framework": "nis2",
            "controls": {},
            "controlOverrides": {},
        },
        EvidenceDecl(name="p", mode=Mode.OBSERVE, interval=300.0, framework="nis2"),
    ),
    "chosen controls": (
        {
            "kind": "evidence",
            "mode": "enforce",
            "intervalSeconds": 300,
            "runOnce": False,
            "framework": None,
            "controls": {"ssh": {"mode": "enforce", "reason": ""}},
            "controlOverrides": {},
        },
        EvidenceDecl(name="p", interval=300.0, controls={"ssh": Override(mode=Mode.ENFORCE)}),
    ),
    "with overrides": (
        {
            "kind": "evidence",
            "framework": "cis",
            "controls": [],
            "maxAgeSecs": {},
            "controlOverrides": {"tls": {"mode": "observe", "reason": "waived"}},
        },
        EvidenceDecl(name="p", framework="cis", overrides={"tls": Override(mode=Mode.OBSERVE, reason="waived")}),
    ),
    "http": (
        {
            "kind": "http",
            "mode": "enforce",
            "intervalSeconds": 30,
            "runOnce": False,
            "url": "http://h/",
            "expectStatus": 200,
            "bodyContains": None,
            "timeoutSecs": 10,
        },
        HttpDecl(name="p", url="http://h/"),
    ),
    "empty for everything": (
        {
            "kind": "tcp",
            "port": 22,
            "host": {},
            "mode": [],
            "intervalSeconds": {},
            "runOnce": [],
            "connectTimeoutSecs": None,
        },
        TcpDecl(name="p", port=22),
    ),
}

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no kind": ({"url": "http://x/"}, "`kind` is missing"),
    "unknown kind": ({"kind": "icmp"}, "'icmp' is not known"),
    "kind is a list": ({"kind": ["http"]}, "is not known"),
    "http without url": ({"kind": "http"}, "`url`"),
    "file url": ({"kind": "http", "url": "file:///etc/passwd"}, "`url`"),
    "url without host": ({"kind": "http", "url": "http:///x"}, "`url`"),
    "url with a bad port": ({"kind": "http", "url": "http://h:99999/"}, "`url`"),
    "url with a newline": ({"kind": "http", "url": "http://h/\nHost: other"}, "`url`"),
    "status out of range": ({"kind": "http", "url": "http://h/", "expectStatus": 99}, "`expectStatus`"),
    "status as text": ({"kind": "http", "url": "http://h/", "expectStatus": "200"}, "`expectStatus`"),
    "status as a truth": ({"kind": "http", "url": "http://h/", "expectStatus": True}, "`expectStatus`"),
    "empty needle": ({"kind": "http", "url": "http://h/", "bodyContains": ""}, "`bodyContains`"),
    "no time": ({"kind": "http", "url": "http://h/", "timeoutSecs": 0}, "`timeoutSecs`"),
    "endless time": ({"kind": "http", "url": "http://h/", "timeoutSecs": 1e300}, "`timeoutSecs`"),
    "tcp without port": ({"kind": "tcp"}, "`port`"),
    "port 0": ({"kind": "tcp", "port": 0}, "`port`"),
    "port as text": ({"kind": "tcp", "port": "22"}, "`port`"),
    "empty host": ({"kind": "tcp", "port": 22, "host": ""}, "`host`"),
    "exec without command": ({"kind": "exec"}, "`command`"),
    "empty command": ({"kind": "exec", "command": []}, "`command`"),
    "empty program": ({"kind": "exec", "command": [""]}, "`command`"),
    "blank command": ({"kind": "exec", "command": "  "}, "`command`"),
    "number in command": ({"kind": "exec", "command": ["/bin/true", 1]}, "`command`"),
    "exit code 256": ({"kind": "exec", "command": ["/bin/true"], "expectExitCode": 256}, "`expectExitCode`"),
    "neither framework nor controls": ({"kind": "evidence"}, "exactly one of"),
    "both framework and controls": ({"kind": "evidence", "framework": "f", "controls": {"c": {}}}, "exactly one of"),
    "nothing but empty": ({"kind": "evidence", "framework": None, "controls": {}}, "exactly one of"),
    "empty url": ({"kind": "http", "url": {}}, "`url`"),
    "controls as a list": ({"kind": "evidence", "controls": ["c1"]}, "`controls`"),
    "overrides as text": ({"kind": "evidence", "framework": "f", "controlOverrides": ""}, "`controlOverrides`"),
    "override reason as number": ({"kind": "evidence", "controls": {"c": {"reason": 1}}}, "reason"),
    "relative evidence": ({"kind": "evidence", "framework": "f", "evidencePath": "e.json"}, "`evidencePath`"),
    "age 0": ({"kind": "evidence", "framework": "f", "maxAgeSecs": 0}, "`maxAgeSecs`"),
    "endless age": ({"kind": "evidence", "framework": "f", "maxAgeSecs": 1e12}, "`maxAgeSecs`"),
    "interval as text": ({"kind": "tcp", "port": 1, "intervalSeconds": "30"}, "`intervalSeconds`"),
    "endless interval": ({"kind": "tcp", "port": 1, "intervalSeconds": 1e12}, "`intervalSeconds`"),
    "runOnce as text": ({"kind": "tcp", "port": 1, "runOnce": "no"}, "`runOnce`"),
}


def parse(declarations: object) -> DeclaredProbes:
    return health_checks.parse(json.dumps(declarations).encode(), FLOOR)


def only(declaration: dict[str, Any], name: str = "p") -> ProbeDecl:
    (probe,) = parse({name: declaration}).probes
    return probe


class GoodDeclarations(unittest.TestCase):
    def test_each_kind_has_its_defaults(self) -> None:
        self.assertEqual(only(GOOD["http"]), HttpDecl(name="p", url="http://127.0.0.1:8080/health"))
        self.assertEqual(only(GOOD["tcp"]), TcpDecl(name="p", port=22))
        self.assertEqual(only(GOOD["exec"]), ExecDecl(name="p", command=("/bin/true",)))
        self.assertEqual(only(GOOD["evidence"]), EvidenceDecl(name="p", framework="nis2"))
        decl = only(GOOD["http"])
        assert isinstance(decl, HttpDecl)
        self.assertEqual((decl.mode, decl.interval, decl.run_once), (Mode.ENFORCE, 30.0, False))
        self.assertEqual((decl.timeout, decl.expect_status, decl.body_contains), (10.0, 200, None))
        tcp = only(GOOD["tcp"])
        assert isinstance(tcp, TcpDecl)
        self.assertEqual((tcp.host, tcp.connect_timeout), ("127.0.0.1", 5.0))
        evidence = only(GOOD["evidence"])
        assert isinstance(evidence, EvidenceDecl)
        self.assertEqual(str(evidence.path), "/var/lib/nixfleet-compliance/evidence.json")

    def test_every_field_is_read_and_unknown_ones_are_ignored(self) -> None:
        self.assertEqual(
            only(GOOD["http-all"]),
            HttpDecl(
                name="p",
                url="https://[::1]/",
                expect_status=204,
                body_contains="ok",
                timeout=2.5,
                mode=Mode.OBSERVE,
                interval=60.0,
                run_once=True,
            ),
        )
        self.assertEqual(only(GOOD["tcp-all"]), TcpDecl(name="p", host="::1", port=65535, connect_timeout=1.0))
        self.assertEqual(
            only(GOOD["exec-string"]),
            ExecDecl(name="p", command=("/bin/sh", "-c", "exit 3"), expect_exit_code=3, timeout=1.0),
        )
        self.assertEqual(
            only(GOOD["evidence-all"]),
            EvidenceDecl(
                name="p",
                controls={"c1": Override(mode=Mode.OBSERVE, reason="known"), "c2": Override()},
                overrides={"c2": Override(mode=Mode.DISABLED)},
                path=Path("/run/evidence.json"),
                max_age=7776000.0,
            ),
        )

    def test_null_counts_as_absent(self) -> None:
        self.assertEqual(only(GOOD["nulls"]), EvidenceDecl(name="p", framework="nis2"))

    def test_what_a_module_writes_for_an_option_that_is_not_set_counts_as_absent(self) -> None:
        for case, (declaration, decl) in RENDERED.items():
            with self.subTest(case):
                self.assertEqual(only(declaration), decl)

    def test_an_interval_below_the_floor_counts_as_the_floor(self) -> None:
        for asked in (4.9, 1, 0, -3):
            self.assertEqual(only({"kind": "tcp", "port": 1, "intervalSeconds": asked}).interval, FLOOR)
        self.assertEqual(only({"kind": "tcp", "port": 1, "intervalSeconds": 5.5}).interval, 5.5)

    def test_an_unknown_mode_counts_as_enforce(self) -> None:
        for mode in ("Observe", "off", "", 0, False, ["disabled"], {"disabled": 1}):
            self.assertIs(only({"kind": "tcp", "port": 1, "mode": mode}).mode, Mode.ENFORCE, mode)

    def test_order_is_that_of_the_file(self) -> None:
        self.assertEqual([p.name for p in parse(GOOD).probes], list(GOOD))


class BadDeclarations(unittest.TestCase):
    def test_each_fails_alone_as_an_enforce_probe_of_its_own_name(self) -> None:
        for case, (declaration, words) in BAD.items():
            with self.subTest(case):
                declared = parse({"good": GOOD["tcp"], case: {**declaration, "mode": "observe"}})
                good, bad = declared.probes
                self.assertEqual(good, TcpDecl(name="good", port=22))
                assert isinstance(bad, BadDecl)
                self.assertEqual((bad.name, bad.mode, declared.broken), (case, Mode.ENFORCE, False))
                self.assertIn(words, bad.reason)
                self.assertIn(bad.kind, ("http", "tcp", "exec", "evidence", "config"))

    def test_one_that_is_disabled_gates_nothing(self) -> None:
        for case, (declaration, _) in BAD.items():
            with self.subTest(case):
                bad = only({**declaration, "mode": "disabled"})
                self.assertIs(bad.mode, Mode.DISABLED)
                raw = json.dumps({"p": {**declaration, "mode": "disabled"}}).encode()
                self.assertFalse(any(finding.fails for finding in health_checks.lint(raw, FLOOR)))

    def test_a_name_too_long_or_empty_fails_under_a_name_that_can_be_shown(self) -> None:
        for name, shown in (("", "(no name)"), ("é" * 101, "é" * 100)):
            bad = only(GOOD["tcp"], name)
            assert isinstance(bad, BadDecl)
            self.assertEqual(bad.name, shown)

    def test_a_cut_name_that_meets_another_does_not_hide_behind_it(self) -> None:
        for names in (("é" * 101, "é" * 100), ("é" * 100, "é" * 101)):
            declared = parse(dict.fromkeys(names, GOOD["tcp"]))
            self.assertEqual([(p.name, type(p)) for p in declared.probes], [("é" * 100, BadDecl)])


class TheFile(unittest.TestCase):
    def test_an_absent_file_is_an_empty_set(self) -> None:
        self.assertEqual(health_checks.parse(None, FLOOR), DeclaredProbes((), broken=False))
        self.assertEqual(parse({}), DeclaredProbes((), broken=False))

    def test_anything_but_an_object_of_objects_is_one_failing_probe(self) -> None:
        cases = {
            b"": "not JSON",
            b"{": "not JSON",
            b"[]": "not a JSON object",
            b"null": "not a JSON object",
            b'{"a": []}': "'a' is not a JSON object",
            b'{"a": null, "b": {"kind": "tcp", "port": 1}}': "'a' is not a JSON object",
            b'{"a": {"kind": "tcp"}, "a": {"kind": "http"}}': "twice",
            b'\xff{"a": {}}': "UTF-8",
            b'{"a": {"x": NaN}}': "NaN",
            b'{"\\ud800": {}}': "surrogate",
            b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}": "nested",
            b'{"a": {"x": "' + b"x" * health_checks.FILE_LIMIT + b'"}}': "health-checks.json",
        }
        for raw, words in cases.items():
            with self.subTest(raw[:40]):
                declared = health_checks.parse(raw, FLOOR)
                (bad,) = declared.probes
                assert isinstance(bad, BadDecl)
                self.assertEqual((bad.name, bad.kind, bad.mode), ("health-checks.json", "config", Mode.ENFORCE))
                self.assertEqual((bad.interval, declared.broken), (30.0, True))
                self.assertIn(words, bad.reason)

    def test_more_probes_than_a_host_can_run_are_one_failing_probe(self) -> None:
        most = {f"p{n}": GOOD["tcp"] for n in range(health_checks.PROBES_LIMIT)}
        self.assertEqual(len(parse(most).probes), health_checks.PROBES_LIMIT)
        declared = parse({**most, "one": GOOD["tcp"]})
        (bad,) = declared.probes
        assert isinstance(bad, BadDecl)
        self.assertTrue(declared.broken)
        self.assertEqual(bad.reason, "health-checks.json declares 1001 probes, and the limit is 1000")
        self.assertEqual(
            [f.text for f in health_checks.lint(json.dumps({**most, "one": {}}).encode(), 5)], [bad.reason]
        )


class Schema(unittest.TestCase):
    def setUp(self) -> None:
        schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
        Draft202012Validator.check_schema(schema)
        self.validator = Draft202012Validator(schema)

    def test_schema_and_parser_agree(self) -> None:
        rendered = {case: declaration for case, (declaration, _) in RENDERED.items()}
        self.assertEqual(list(self.validator.iter_errors(GOOD | rendered)), [])
        hard_to_say = {"url with a bad port"}
        for case, (declaration, _) in BAD.items():
            if case not in hard_to_say:
                with self.subTest(case):
                    self.assertFalse(self.validator.is_valid({"p": declaration}))

    def test_schema_names_every_key_that_the_parser_reads(self) -> None:
        definitions = self.validator.schema["$defs"]
        for kind, keys in health_checks.KIND_KEYS.items():
            self.assertEqual(set(definitions[kind]["properties"]), keys)
        self.assertEqual(set(definitions["declaration"]["properties"]), health_checks.COMMON_KEYS)


class Lint(unittest.TestCase):
    def lint(self, declaration: dict[str, Any], name: str = "p") -> list[str]:
        return [finding.text for finding in health_checks.lint(json.dumps({name: declaration}).encode(), FLOOR)]

    def test_good_declarations_have_no_findings(self) -> None:
        for name, declaration in GOOD.items():
            clean = {key: value for key, value in declaration.items() if key != "someFutureKey"}
            self.assertEqual(self.lint(clean), [], name)

    def test_findings_name_the_probe_and_the_nearest_key(self) -> None:
        cases: list[tuple[dict[str, Any], str]] = [
            ({**GOOD["http"], "expectstatus": 204}, "'expectstatus' is ignored (did you mean 'expectStatus'?)"),
            ({**GOOD["tcp"], "timeoutSecs": 3}, "key 'timeoutSecs' means nothing to kind 'tcp'"),
            ({**GOOD["tcp"], "intervalSeconds": 1}, "intervalSeconds 1 is below the floor and counts as 5"),
            ({**GOOD["tcp"], "mode": "observed"}, "mode 'observed' is not known and counts as enforce (did"),
            ({**GOOD["evidence"], "controlOverrides": {"c": {"mode": "off"}}}, "mode of controlOverrides.c 'off'"),
            ({**GOOD["evidence"], "controlOverrides": {"c": {"mod": "observe"}}}, "(did you mean 'mode'?)"),
            ({"kind": "exec", "command": "curl localhost"}, "'curl' is not an absolute path"),
            ({"kind": "exec", "command": ["/x"], "timeoutSecs": 60}, "longer than its interval"),
            ({"kind": "htpp", "url": "http://h/"}, "(did you mean 'http'?)"),
            ({"kind": "http"}, "`url` must be"),
        ]
        for declaration, words in cases:
            with self.subTest(words):
                findings = self.lint(declaration)
                self.assertTrue(any(words in line and line.startswith("p: ") for line in findings), findings)

    def test_a_broken_file_is_one_finding(self) -> None:
        self.assertEqual(len(health_checks.lint(b"[]", FLOOR)), 1)

    def test_findings_are_one_line_each_whatever_the_file_holds(self) -> None:
        raw = json.dumps({"a\nb\x1b[31m": {"kind": "x\ny", "k\x1b": 1, "mode": "\x07"}}).encode()
        for finding in health_checks.lint(raw, FLOOR):
            self.assertTrue(finding.text.isprintable(), repr(finding.text))

    def test_what_fails_is_told_from_what_is_odd_whatever_the_name(self) -> None:
        for name in ("p", "a: b", "a\nb", "x" * 150, "", "ü" * 150):
            raw = json.dumps({name: {"kind": "htpp", "mod": 1}}).encode()
            self.assertEqual([f.fails for f in health_checks.lint(raw, FLOOR)], [True, False], name)
        raw = json.dumps({"p": {**GOOD["tcp"], "prot": 1}}).encode()
        self.assertEqual([f.fails for f in health_checks.lint(raw, FLOOR)], [False])
        self.assertEqual([f.fails for f in health_checks.lint(b"[]", FLOOR)], [True])


if __name__ == "__main__":
    unittest.main()
