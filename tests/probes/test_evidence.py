"""The evidence runner: real keys and signatures, and every rule of which control counts for what."""

from __future__ import annotations

import base64
import json
import os
import unittest
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nixfleet_agent.probes.declarations import Override
from nixfleet_agent.probes.runners import evidence_file
from nixfleet_agent.proto.times import format_time
from tests.probes.evidence_case import PASS, EvidenceCase, control, sub
from tests.support.tls import new_host_key


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


if __name__ == "__main__":
    unittest.main()
