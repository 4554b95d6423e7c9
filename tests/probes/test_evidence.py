"""The evidence runner: real keys and signatures, and every rule of which control counts for what."""

from __future__ import annotations

import base64
import json
import os
import tempfile
import threading
import unittest
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nixfleet_agent.identity.host_key import HostKey
from nixfleet_agent.probes.declarations import EvidenceDecl, Override
from nixfleet_agent.probes.runners import RunnerContext, RunnerOutcome, evidence, evidence_file, run
from nixfleet_agent.proto.events import to_wire
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.state_machine.events import LocalProbeResult, SubResult
from nixfleet_agent.state_machine.states import Mode, ProbeStatus
from tests.probes.support import MACHINE, context
from tests.support.tls import new_host_key, write_host_key

ENFORCE, OBSERVE, DISABLED = Mode.ENFORCE, Mode.OBSERVE, Mode.DISABLED
PASS, FAIL = ProbeStatus.PASS, ProbeStatus.FAIL


def control(name: str, passed: bool = True, **articles: list[str]) -> dict[str, Any]:
    return {"controlId": name, "passed": passed, "frameworkArticles": articles}


def sub(name: str, status: ProbeStatus, framework: str, article: str | None, mode: Mode = ENFORCE, **more: Any) -> Any:
    return SubResult(control_id=name, status=status, framework=framework, article=article, effective_mode=mode, **more)


class EvidenceCase(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.key_file = self.folder / "ssh_host_ed25519_key"
        self.key = write_host_key(self.key_file)
        self.path = self.folder / "evidence.json"
        self.ctx: RunnerContext = context(self.key_file)

    def document(self, *controls: Any, **fields: Any) -> dict[str, Any]:
        now = format_time(datetime.now(timezone.utc))
        return {"schemaVersion": 1, "hostname": MACHINE, "collectedAt": now, "controls": list(controls), **fields}

    def collect(self, document: Any, key: HostKey | None = None) -> None:
        """Write evidence as the collector does: indented JSON, signed over its canonical form."""
        self.path.write_text(json.dumps(document, indent=2), encoding="utf-8")
        signature = (key or self.key).sign(rfc8785.dumps(document))
        Path(f"{self.path}.sig").write_text(base64.b64encode(signature).decode() + "\n", encoding="ascii")

    def probe(self, **fields: Any) -> RunnerOutcome:
        if "controls" not in fields:
            fields.setdefault("framework", "nis2")
        return run(EvidenceDecl(name="p", path=self.path, **fields), self.ctx)

    def assert_fails(self, words: str, **fields: Any) -> None:
        outcome = self.probe(**fields)
        self.assertFalse(outcome.passed)
        self.assertIn(words, outcome.failure_reason or "")


class Signature(EvidenceCase):
    def setUp(self) -> None:
        super().setUp()
        self.good = self.document(control("c1", nis2=["21"]), control("c2", nis2=[]))
        self.collect(self.good)

    def test_evidence_signed_by_this_hosts_key_is_used(self) -> None:
        self.assertTrue(self.probe().passed)

    def test_the_public_key_file_goes_before_the_private_key(self) -> None:
        other = new_host_key()
        Path(f"{self.key_file}.pub").write_text(f"{other.public_openssh} root@web-01\n", encoding="ascii")
        self.assert_fails("not signed by this host's key")
        self.collect(self.good, other)
        self.assertTrue(self.probe().passed)
        self.key_file.unlink()
        self.assertTrue(self.probe().passed)

    def test_another_key_is_refused(self) -> None:
        self.collect(self.good, new_host_key())
        self.assert_fails("not signed by this host's key")

    def test_edited_evidence_is_refused(self) -> None:
        self.collect(self.document(control("c1", False, nis2=["21"])))
        self.path.write_text(self.path.read_text().replace("false", "true"), encoding="utf-8")
        self.assert_fails("not signed by this host's key, or was changed since")

    def test_other_white_space_and_key_order_are_no_edit(self) -> None:
        self.path.write_text(json.dumps(dict(reversed(self.good.items()))), encoding="utf-8")
        self.assertTrue(self.probe().passed)

    def test_evidence_of_another_host_is_refused_whoever_signed_it(self) -> None:
        self.collect({**self.good, "hostname": "web-02"})
        self.assert_fails("evidence of 'web-02', and this host is 'web-01'")
        document = dict(self.good)
        del document["hostname"]
        self.collect(document)
        self.assert_fails("evidence of None")

    def test_a_signature_over_the_typed_part_covers_all_that_is_read(self) -> None:
        bare = {"controlId": "c1", "passed": True}
        typed = self.document(control("c1", nis2=["21"]), {**bare, "frameworkArticles": {}})
        full = {
            **typed,
            "overall": "2/2",
            "_note": {"x": 1},
            "controls": [
                {**typed["controls"][0], "checks": {}, "schema": None, "details": None},
                bare,
            ],
        }
        self.collect(full)
        signature = base64.b64encode(self.key.sign(rfc8785.dumps(typed))).decode()
        Path(f"{self.path}.sig").write_text(signature, encoding="ascii")
        self.assertTrue(self.probe().passed)
        # Of what is read nothing can be changed: each of these would give another result if it were believed.
        for change in (
            lambda d: d.update(hostname="WEB-01"),
            lambda d: d.update(collectedAt="2026-01-01T00:00:00Z"),
            lambda d: d["controls"][0].update(passed=False),
            lambda d: d["controls"][0].update(controlId="c9"),
            lambda d: d["controls"][0]["frameworkArticles"].update(nis2=["22"]),
            lambda d: d["controls"][1].update(frameworkArticles={"nis2": []}),
            lambda d: d["controls"].pop(),
        ):
            edited = json.loads(json.dumps(full))
            change(edited)
            self.path.write_text(json.dumps(edited), encoding="utf-8")
            self.assert_fails("not signed by this host's key, or was changed since")

    def test_a_signature_over_the_controls_alone_is_none(self) -> None:
        signature = base64.b64encode(self.key.sign(rfc8785.dumps(self.good["controls"]))).decode()
        Path(f"{self.path}.sig").write_text(signature, encoding="ascii")
        self.assert_fails("not signed by this host's key")

    def test_the_host_is_named_as_collectors_name_it(self) -> None:
        for said, names, same in (
            ("web-01", ("web-01",), True),
            ("WEB-01", ("web-01",), True),
            ("web-01.example.org", ("web-01",), True),
            ("web-01", ("web-01.example.org",), True),
            ("web-01.example.org.", ("web-01.example.org",), True),
            ("box", ("web-01", "box"), True),
            ("web-01.example.com", ("web-01.example.org",), False),
            ("web-011", ("web-01",), False),
            ("web", ("web-01",), False),
            ("web-01.", ("web-02",), False),
            ("", ("web-01",), False),
            (None, ("web-01",), False),
            (["web-01"], ("web-01",), False),
        ):
            with self.subTest(said=said, names=names):
                self.assertIs(evidence_file.names_host(said, names), same)
        for said in ("Web-01.example.org", os.uname().nodename):
            self.collect({**self.good, "hostname": said})
            self.assertTrue(self.probe().passed, said)

    def test_controls_of_older_collectors_cover_no_framework(self) -> None:
        self.collect(self.document({"controlId": "c1", "passed": True}, {"controlId": "c2", "passed": False}))
        outcome = self.probe(controls={"c1": Override()})
        self.assertEqual((outcome.passed, outcome.sub_results), (True, (sub("c1", PASS, "custom", None),)))
        self.assert_fails("no control is left to judge")

    def test_a_missing_or_malformed_signature_is_refused(self) -> None:
        signature = Path(f"{self.path}.sig")
        good = signature.read_bytes()
        for raw, words in (
            (good.strip()[:-8], "Ed25519 signature has 64"),
            (base64.b64encode(b"x" * 65), "Ed25519 signature has 64"),
            (b"", "holds 0 bytes"),
            (b"not base64!", "not base64"),
            (b"\xff\xfe", "not base64"),
            (b"A" * 5000, "larger than"),
        ):
            signature.write_bytes(raw)
            self.assert_fails(words)
        signature.unlink()
        self.assert_fails("No such file")
        signature.write_bytes(good)
        self.assertTrue(self.probe().passed)

    def test_a_signature_in_lines_as_base64_writes_it_is_read(self) -> None:
        signature = Path(f"{self.path}.sig")
        text = signature.read_text(encoding="ascii").strip()
        signature.write_text(f"{text[:76]}\r\n{text[76:]}\n\n", encoding="ascii")
        self.assertTrue(self.probe().passed)

    def test_no_usable_host_key_is_a_fail(self) -> None:
        public = Path(f"{self.key_file}.pub")
        for raw in (b"", b"ssh-ed25519 garbage", b"\xff"):
            public.write_bytes(raw)
            self.assert_fails("no host key to verify evidence with")
        public.write_bytes(
            generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        )
        self.assert_fails("not an Ed25519 key")
        public.unlink()
        self.key_file.unlink()
        self.assert_fails("no host key to verify evidence with")


class TheFile(EvidenceCase):
    def test_missing_unreadable_and_strange_files_fail(self) -> None:
        self.assert_fails("No such file")
        self.path.mkdir()
        self.assert_fails("not a regular file")
        self.path.rmdir()
        os.mkfifo(self.path)
        self.assert_fails("not a regular file")  # and does not wait for a writer

    def test_truncated_or_foreign_content_fails(self) -> None:
        self.collect(self.document(control("c1", nis2=["21"])))
        whole = self.path.read_bytes()
        for raw in (b"", whole[:-5], b"\xff" + whole, b"[1]", b'{"a":1,"a":2}', b"null"):
            self.path.write_bytes(raw)
            self.assertFalse(self.probe().passed)

    def test_too_large_a_file_is_not_read(self) -> None:
        self.path.write_bytes(b" " * (evidence_file.EVIDENCE_LIMIT + 1))
        self.assert_fails("larger than")

    def test_signed_but_malformed_documents_fail(self) -> None:
        good = self.document(control("c1", nis2=["21"]))
        cases: list[tuple[Any, str]] = [
            ([1], "not a JSON object"),
            ({**good, "schemaVersion": 2}, "schemaVersion 2"),
            ({**good, "schemaVersion": "1"}, "schemaVersion '1'"),
            ({**good, "schemaVersion": True}, "schemaVersion True"),
            ({k: v for k, v in good.items() if k != "schemaVersion"}, "schemaVersion None"),
            ({**good, "collectedAt": "yesterday"}, f"collectedAt of {self.path} is not an RFC 3339 timestamp"),
            ({**good, "controls": {}}, "no list of controls"),
            ({**good, "controls": ["c1"]}, "a control without"),
            ({**good, "controls": [{**control("c1", nis2=[]), "passed": 1}]}, "a control without"),
            ({**good, "controls": [{"passed": True, "frameworkArticles": {}}]}, "a control without"),
            ({**good, "controls": [{"controlId": "c1", "passed": True, "frameworkArticles": []}]}, "a control without"),
            ({**good, "controls": [control("c1", nis2="21")]}, "articles of control 'c1'"),  # type: ignore[arg-type]
            ({**good, "controls": [control("c1", nis2=[21])]}, "articles of control 'c1'"),  # type: ignore[list-item]
        ]
        for document, words in cases:
            with self.subTest(words):
                self.collect(document)
                self.assert_fails(words)

    def test_fields_of_a_newer_collector_are_ignored(self) -> None:
        self.collect(self.document({**control("c1", nis2=["21"]), "details": {"a": 1.5}, "schema": "x"}, more=[]))
        self.assertTrue(self.probe().passed)


class Age(EvidenceCase):
    def collected(self, **ago: float) -> None:
        at = datetime.now(timezone.utc) - timedelta(**ago)
        self.collect(self.document(control("c1", nis2=["21"]), collectedAt=format_time(at)))

    def test_old_evidence_fails_only_when_an_age_is_set(self) -> None:
        self.collected(seconds=100)
        self.assertTrue(self.probe().passed)
        self.assertTrue(self.probe(max_age=110.0).passed)
        self.assert_fails("longer ago than maxAgeSecs (90)", max_age=90.0)

    def test_evidence_grows_old_while_its_file_stays_the_same(self) -> None:
        self.collected(seconds=100)
        self.assertTrue(self.probe(max_age=110.0).passed)
        later = datetime.now(timezone.utc) + timedelta(seconds=20)
        with mock.patch("nixfleet_agent.threads.clock.SystemClock.now", return_value=later):
            self.assert_fails("longer ago than maxAgeSecs (110)", max_age=110.0)

    def test_the_reason_stays_the_same_so_that_repeats_are_no_events(self) -> None:
        self.collected(seconds=100)
        first = self.probe(max_age=90.0)
        later = datetime.now(timezone.utc) + timedelta(seconds=20)
        with mock.patch("nixfleet_agent.threads.clock.SystemClock.now", return_value=later):
            self.assertEqual(self.probe(max_age=90.0), first)

    def test_evidence_from_the_future_does_not_stay_young_for_ever(self) -> None:
        self.collected(seconds=-1000)
        self.assert_fails("in the future", max_age=90.0)
        self.collected(seconds=-100)
        self.assertTrue(self.probe(max_age=90.0).passed)


class Caching(EvidenceCase):
    def setUp(self) -> None:
        super().setUp()
        self.collect(self.document(control("c1", nis2=["21"])))
        self.verified = self.enterContext(
            mock.patch.object(evidence_file, "canonical", side_effect=evidence_file.canonical)
        )

    def test_unchanged_files_are_verified_once(self) -> None:
        for _ in range(5):
            self.assertTrue(self.probe().passed)
        self.assertTrue(self.probe(controls={"c1": Override()}).passed)
        self.assertEqual(self.verified.call_count, 1)

    def test_new_evidence_is_verified_again(self) -> None:
        self.assertTrue(self.probe().passed)
        self.collect(self.document(control("c1", False, nis2=["21"])))
        self.assert_fails("c1")
        self.assertEqual(self.verified.call_count, 2)

    def test_a_rename_with_the_same_time_and_size_is_seen(self) -> None:
        self.assertTrue(self.probe().passed)
        before = self.path.stat()
        replacement = self.folder / "new"
        replacement.write_bytes(self.path.read_bytes().replace(b"true", b"null"))
        os.utime(replacement, ns=(before.st_atime_ns, before.st_mtime_ns))
        replacement.rename(self.path)
        self.assertFalse(self.probe().passed)

    def test_a_rewrite_in_place_is_seen_by_its_size_or_its_time(self) -> None:
        for stays in ("time", "size"):
            self.collect(self.document(control("c1", nis2=["21"])))
            self.assertTrue(self.probe().passed)
            before = self.path.stat()
            raw = self.path.read_bytes()
            self.path.write_bytes(raw.replace(b"true", b"null" if stays == "size" else b"false"))
            if stays == "time":
                os.utime(self.path, ns=(before.st_atime_ns, before.st_mtime_ns))
            else:
                os.utime(self.path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
            self.assertEqual(self.path.stat().st_ino, before.st_ino)
            self.assertFalse(self.probe().passed, stays)

    def test_a_new_private_key_is_seen_where_there_is_no_public_one(self) -> None:
        self.assertTrue(self.probe().passed)
        write_host_key(self.key_file)
        self.assert_fails("not signed by this host's key")

    def test_a_new_signature_or_host_key_is_seen(self) -> None:
        self.assertTrue(self.probe().passed)
        other = new_host_key()
        Path(f"{self.key_file}.pub").write_text(other.public_openssh, encoding="ascii")
        self.assert_fails("not signed by this host's key")
        Path(f"{self.key_file}.pub").unlink()
        self.assertTrue(self.probe().passed)
        Path(f"{self.path}.sig").write_text(base64.b64encode(b"x" * 64).decode(), encoding="ascii")
        self.assert_fails("not signed by this host's key")

    def test_a_file_that_hangs_delays_no_other(self) -> None:
        real, entered, leave = evidence_file.read_regular, threading.Event(), threading.Event()
        self.addCleanup(leave.set)

        def hang(path: Path, limit: int) -> bytes:
            if path.name == "hanging":
                entered.set()
                leave.wait(30)
            return real(path, limit)

        self.enterContext(mock.patch.object(evidence_file, "read_regular", hang))
        elsewhere = EvidenceDecl(name="q", path=self.folder / "hanging", framework="nis2")
        thread = threading.Thread(target=run, args=(elsewhere, self.ctx))
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(leave.set)
        entered.wait(30)
        other = threading.Thread(target=self.probe)
        other.start()
        other.join(10)
        self.assertFalse(other.is_alive())
        self.assertEqual(self.verified.call_count, 1)

    def test_a_fail_is_not_kept(self) -> None:
        Path(f"{self.path}.sig").rename(self.folder / "away")
        self.assert_fails("No such file")
        (self.folder / "away").rename(f"{self.path}.sig")
        self.assertTrue(self.probe().passed)


class Selection(EvidenceCase):
    """Who is judged, under which name, and what counts."""

    def setUp(self) -> None:
        super().setUp()
        self.collect(
            self.document(
                control("both", nis2=["21.2", "23"], iso=["A.5"]),
                control("bare", False, nis2=[]),
                control("iso-only", False, iso=["A.8"]),
                control("none", False),
                control("plain"),
            )
        )

    def results(self, **fields: Any) -> list[SubResult]:
        return list(self.probe(**fields).sub_results or ())

    def test_a_framework_selects_its_controls_with_one_result_for_each_article(self) -> None:
        outcome = self.probe(framework="nis2")
        expected = (
            sub("both", PASS, "nis2", "21.2"),
            sub("both", PASS, "nis2", "23"),
            sub("bare", FAIL, "nis2", None),
        )
        self.assertEqual(outcome.sub_results, expected)
        self.assertEqual(outcome.failure_reason, "controls 1 failing: bare")

    def test_controls_select_exactly_those_with_one_result_for_each_framework_and_article(self) -> None:
        outcome = self.probe(controls={"both": Override(), "plain": Override()})
        expected = (
            sub("both", PASS, "nis2", "21.2"),
            sub("both", PASS, "nis2", "23"),
            sub("both", PASS, "iso", "A.5"),
            sub("plain", PASS, "custom", None),
        )
        self.assertEqual((outcome.passed, outcome.sub_results), (True, expected))

    def test_a_control_asked_for_by_name_that_was_not_collected_fails(self) -> None:
        outcome = self.probe(controls={"plain": Override(), "gone": Override(), "away": Override(mode=DISABLED)})
        self.assertEqual(outcome.failure_reason, "controls 1 not in the evidence: gone")
        expected = (sub("plain", PASS, "custom", None), sub("gone", FAIL, "custom", None))
        self.assertEqual(outcome.sub_results, expected)
        watched = {"plain": Override(), "gone": Override(mode=OBSERVE)}
        self.assertTrue(self.probe(controls=watched).passed)

    def test_the_effective_mode_is_the_controls_then_the_overrides_then_the_probes(self) -> None:
        def mode(own: Mode | None, override: Mode | None, probes: Mode) -> Mode:
            (result,) = self.results(
                controls={"plain": Override(mode=own)}, overrides={"plain": Override(mode=override)}, mode=probes
            )
            return result.effective_mode

        self.assertIs(mode(ENFORCE, OBSERVE, OBSERVE), ENFORCE)
        self.assertIs(mode(OBSERVE, ENFORCE, ENFORCE), OBSERVE)
        self.assertIs(mode(None, OBSERVE, ENFORCE), OBSERVE)
        self.assertIs(mode(None, ENFORCE, OBSERVE), ENFORCE)
        self.assertIs(mode(None, None, OBSERVE), OBSERVE)
        self.assertIs(mode(None, None, ENFORCE), ENFORCE)

    def test_the_reason_of_an_override_is_reported_also_when_empty(self) -> None:
        def reason(own: Override, override: Override) -> str | None:
            (result,) = self.results(controls={"plain": own}, overrides={"plain": override})
            return result.override_reason

        self.assertEqual(reason(Override(mode=OBSERVE, reason="own"), Override(mode=ENFORCE, reason="other")), "own")
        self.assertEqual(reason(Override(mode=OBSERVE), Override(mode=ENFORCE, reason="other")), "")
        self.assertEqual(reason(Override(reason="no mode"), Override(mode=ENFORCE, reason="other")), "other")
        self.assertIsNone(reason(Override(reason="no mode"), Override(reason="no mode either")))

    def test_overrides_apply_to_a_framework_too(self) -> None:
        accepted = {"bare": Override(mode=OBSERVE, reason="accepted until May")}
        outcome = self.probe(overrides=accepted)
        self.assertTrue(outcome.passed)
        last = sub("bare", FAIL, "nis2", None, OBSERVE, override_reason="accepted until May")
        self.assertEqual((outcome.sub_results or ())[-1], last)

    def test_disabled_controls_are_left_out(self) -> None:
        outcome = self.probe(overrides={"bare": Override(mode=DISABLED)})
        self.assertTrue(outcome.passed)
        self.assertEqual({r.control_id for r in outcome.sub_results or ()}, {"both"})

    def test_no_control_left_fails(self) -> None:
        nothing = "no control is left"
        self.assert_fails(nothing, framework="pci")
        self.assert_fails(nothing, controls={})
        self.assert_fails(nothing, controls={"gone": Override(mode=OBSERVE)})
        self.assert_fails(nothing, controls={"plain": Override(mode=DISABLED)})
        every = {name: Override(mode=DISABLED) for name in ("both", "bare")}
        self.assert_fails(nothing, overrides=every)

    def test_only_enforced_controls_decide(self) -> None:
        self.assertTrue(self.probe(mode=OBSERVE).passed)
        self.assert_fails("1 failing: bare", mode=OBSERVE, overrides={"bare": Override(mode=ENFORCE)})

    def test_every_copy_of_a_control_counts(self) -> None:
        self.collect(self.document(control("twice", nis2=["1"]), control("twice", False, nis2=["1"])))
        self.assert_fails("1 failing: twice")

    def test_more_results_than_an_event_holds_fail_without_them(self) -> None:
        self.collect(self.document(*(control(f"c{n}" + "x" * 200, nis2=["1"]) for n in range(3000))))
        outcome = self.probe()
        self.assertIsNone(outcome.sub_results)
        self.assertIn("3000 results do not fit into one event", outcome.failure_reason or "")
        self.collect(self.document(*(control(f"c{n}", nis2=["1"]) for n in range(3000))))
        outcome = self.probe()
        result = LocalProbeResult(
            probe_name="p",
            mode=ENFORCE,
            status=outcome.status,
            observed_at=datetime.now(timezone.utc),
            sub_results=outcome.sub_results,
        )
        self.assertTrue(outcome.passed)
        estimate = sum(map(evidence._size, outcome.sub_results or ()))
        self.assertLess(len(json.dumps(to_wire(result), separators=(",", ":"))), estimate + 300)

    def test_many_failing_controls_make_a_reason_that_fits(self) -> None:
        self.collect(self.document(*(control(f"prüfung-{n}", False, nis2=["1"]) for n in range(200))))
        reason = self.probe().failure_reason or ""
        self.assertTrue(reason.startswith("controls 200 failing: "))
        self.assertTrue(reason.endswith("...[truncated]"))
        self.assertLessEqual(len(reason.encode()), 512 + 14)


if __name__ == "__main__":
    unittest.main()
