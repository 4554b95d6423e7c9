"""Which controls of the evidence count, and how often the file is read."""

from __future__ import annotations

import base64
import json
import os
import threading
import unittest
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest import mock

from nixfleet_agent.probes.declarations import EvidenceDecl, Override
from nixfleet_agent.probes.runners import evidence, evidence_file, run
from nixfleet_agent.proto.events import to_wire
from nixfleet_agent.state_machine.events import LocalProbeResult, SubResult
from nixfleet_agent.state_machine.states import Mode
from tests.probes.evidence_case import DISABLED, ENFORCE, FAIL, OBSERVE, PASS, EvidenceCase, control, sub
from tests.support.tls import new_host_key, write_host_key


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
