"""The probe worker: what it tells, in which order, and that after a reset nothing old is told or left running."""

from __future__ import annotations

import json
import os
import threading
import unittest
from typing import Any
from unittest import mock

from nixfleet_agent.probes import runners
from nixfleet_agent.probes.declarations import ProbeDecl
from nixfleet_agent.probes.runners import RunnerContext, RunnerOutcome, failed, passed
from nixfleet_agent.runtime.workers.probe import read_declarations
from nixfleet_agent.state_machine.events import (
    LocalProbeFailureFirst,
    LocalProbeObservedFirst,
    LocalProbeResult,
    LocalProbeTopologyDeclared,
)
from nixfleet_agent.state_machine.states import Mode, ProbeStatus
from tests.probes.support import descriptors
from tests.probes.worker_case import NEXT, ROLLOUT, WorkerCase, always, port


class Telling(WorkerCase):
    def test_an_absent_or_empty_file_declares_an_empty_topology(self) -> None:
        with self.working():
            self.reset()
            self.told.wait(lambda: len(self.told.topologies()) == 1, "the topology")
            self.declare()
            self.reset(NEXT)
            self.told.wait(lambda: len(self.told.topologies()) == 2, "the second topology")
        self.assertEqual([(r, e.probes) for r, e in self.told.events], [(ROLLOUT, ()), (NEXT, ())])  # type: ignore[attr-defined]

    def test_the_topology_comes_first_and_names_every_probe(self) -> None:
        self.declare(a=port(mode="observe"), b=port(mode="disabled"), c={"kind": "http"}, d=port(runOnce=True))
        with self.working(always(passed())):
            self.reset()
            self.told.wait(lambda: all(self.told.results(n) for n in "acd"), "a result of each probe that runs")
        first = self.told.events[0][1]
        assert isinstance(first, LocalProbeTopologyDeclared)
        lines = [(p.probe_name, p.kind, p.mode, p.run_once) for p in first.probes]
        expected = [
            ("a", "tcp", Mode.OBSERVE, False),
            ("b", "tcp", Mode.DISABLED, False),
            ("c", "http", Mode.ENFORCE, False),
            ("d", "tcp", Mode.ENFORCE, True),
        ]
        self.assertEqual(lines, expected)
        self.assertEqual(self.told.results("b"), [])

    def test_first_result_then_first_failure_then_the_result(self) -> None:
        self.declare(p=port(mode="observe", intervalSeconds=0.05))
        with self.working(always(failed("down"))):
            self.reset()
            self.told.wait(lambda: len(self.told.results("p")) >= 2, "two results")
        self.assertEqual(
            self.told.kinds("p")[:4], ["ProbeObservedFirst", "ProbeFailureFirst", "ProbeResult", "ProbeResult"]
        )
        observed, failure, result = (event for _, event in self.told.events[1:4])
        assert isinstance(observed, LocalProbeObservedFirst)
        assert isinstance(failure, LocalProbeFailureFirst)
        assert isinstance(result, LocalProbeResult)
        self.assertEqual(observed.observed_at, result.observed_at)
        self.assertEqual(failure.first_failed_at, result.observed_at)
        self.assertEqual((result.mode, result.status, result.failure_reason), (Mode.OBSERVE, ProbeStatus.FAIL, "down"))

    def test_a_failure_is_first_after_each_pass(self) -> None:
        self.declare(p=port(intervalSeconds=0.05))
        outcomes = iter([passed(), failed("1"), failed("2"), passed(), failed("3")])
        with self.working(lambda decl, ctx: next(outcomes, failed("3"))):
            self.reset()
            self.told.wait(lambda: len(self.told.results("p")) >= 5, "five results")
        first, result, failure = "ProbeObservedFirst", "ProbeResult", "ProbeFailureFirst"
        self.assertEqual(self.told.kinds("p")[:8], [first, result, failure, result, result, result, failure, result])

    def test_a_bad_declaration_fails_alone(self) -> None:
        self.declare(good=port(), bad={"kind": "htpp", "mode": "observe"})
        with self.working(lambda decl, ctx: passed() if decl.name == "good" else runners.run(decl, ctx)):
            self.reset()
            self.told.wait(lambda: all(self.told.results(n) for n in ("good", "bad")), "both results")
        self.assertIs(self.told.results("good")[0].status, ProbeStatus.PASS)
        bad = self.told.results("bad")[0]
        self.assertEqual((bad.status, bad.mode), (ProbeStatus.FAIL, Mode.ENFORCE))
        self.assertIn("'htpp' is not known", bad.failure_reason or "")

    def test_run_once_runs_once(self) -> None:
        self.declare(once=port(runOnce=True, intervalSeconds=0.05), often=port(intervalSeconds=0.05))
        with self.working(always(passed())):
            self.reset()
            self.told.wait(lambda: len(self.told.results("often")) >= 4, "four results of the other probe")
        self.assertEqual(len(self.told.results("once")), 1)

    def test_a_runner_that_breaks_down_is_a_fail_and_is_started_again(self) -> None:
        self.declare(p=port(intervalSeconds=0.05))
        runs: list[int] = []
        logged: list[Any] = []

        def runner(decl: ProbeDecl, ctx: RunnerContext) -> RunnerOutcome:
            runs.append(1)
            if len(runs) == 1:
                raise KeyError("a defect")
            return passed()

        hook, threading.excepthook = threading.excepthook, lambda args: logged.append(args.exc_value)
        self.addCleanup(setattr, threading, "excepthook", hook)
        with mock.patch("nixfleet_agent.runtime.workers.probe.TEND_SECS", 0.05), self.working(runner):
            self.reset()
            self.told.wait(lambda: len(self.told.results("p")) >= 2, "a second result")
        self.assertIn("broke down", self.told.results("p")[0].failure_reason or "")
        self.assertIs(self.told.results("p")[1].status, ProbeStatus.PASS)
        self.assertEqual([repr(error) for error in logged], ["KeyError('a defect')"])


class BrokenFile(WorkerCase):
    def test_it_is_one_failing_probe_and_is_read_again_every_interval(self) -> None:
        self.file.write_text("[", encoding="utf-8")
        with mock.patch("nixfleet_agent.probes.health_checks.DEFAULT_INTERVAL", 0.1), self.working():
            self.reset()
            self.told.wait(lambda: len(self.told.results("health-checks.json")) >= 3, "three fails")
            self.assertEqual(len(self.told.topologies()), 1)
            self.declare(p=port(1))
            self.told.wait(lambda: bool(self.told.results("p")), "the probe of the mended file")
        first, second = self.told.topologies()
        (line,) = first.probes
        self.assertEqual((line.probe_name, line.kind, line.mode), ("health-checks.json", "config", Mode.ENFORCE))
        self.assertEqual([p.probe_name for p in second.probes], ["p"])
        after = self.told.events.index((ROLLOUT, second))
        self.assertNotIn("health-checks.json", [getattr(e, "probe_name", "") for _, e in self.told.events[after:]])

    def test_what_is_no_readable_file_is_a_broken_one(self) -> None:
        os.mkfifo(self.file)
        with self.working():
            self.reset()
            self.told.wait(lambda: bool(self.told.results("health-checks.json")), "the fail")
            before = descriptors()
            self.file.unlink()
            self.file.mkdir()
            self.reset(NEXT)
            self.told.wait(lambda: len(self.told.results("health-checks.json")) >= 2, "the second fail")
            self.assertEqual(descriptors(), before)
        self.assertIn("not a regular file", self.told.results("health-checks.json")[1].failure_reason or "")

    def test_a_link_that_leads_nowhere_is_no_absent_file(self) -> None:
        store = self.folder / "store"
        self.file.symlink_to(store / "health-checks.json")
        with mock.patch("nixfleet_agent.probes.health_checks.DEFAULT_INTERVAL", 0.1), self.working():
            self.reset()
            self.told.wait(lambda: bool(self.told.results("health-checks.json")), "the fail")
            store.mkdir()
            (store / "health-checks.json").write_text(json.dumps({"p": port()}), encoding="utf-8")
            self.told.wait(lambda: bool(self.told.results("p")), "the probe of the file that came")
        reason = self.told.results("health-checks.json")[0].failure_reason
        self.assertEqual(reason, f"can't read {self.file}: {self.file} is a link that leads nowhere")

    def test_a_link_to_its_folder_that_leads_nowhere_is_none_either(self) -> None:
        (self.folder / "agent").symlink_to(self.folder / "gone")
        declared = read_declarations(self.folder / "agent" / "health-checks.json", 5.0)
        self.assertTrue(declared.broken)
        self.assertFalse(read_declarations(self.folder / "nothing" / "health-checks.json", 5.0).broken)


if __name__ == "__main__":
    unittest.main()
