"""The gate of a release that changes the agent: declared only then, told as a probe, and heard of before it passes."""

from __future__ import annotations

import unittest
from typing import Any
from unittest import mock

from nixfleet_agent.probes.runners import RunnerContext, make_context
from nixfleet_agent.runtime import start_gate
from nixfleet_agent.runtime.own_unit import UnitStart
from nixfleet_agent.runtime.rollout.orders import ResetProbes
from nixfleet_agent.runtime.start_gate import StartGate
from nixfleet_agent.runtime.successor import Trial, Verdict
from nixfleet_agent.state_machine.states import Mode, ProbeStatus
from tests.probes.test_worker import ROLLOUT, WorkerCase

OLD, NEW = UnitStart(("/old",)), UnitStart(("/new",))


class Unit:
    """Stands for the service: ``start`` is what it starts now, None when systemd does not say."""

    name = "nixfleet-agent.service"

    def __init__(self) -> None:
        self.start: UnitStart | None = OLD

    def ask(self) -> UnitStart | None:
        return self.start

    def differs(self) -> bool:
        return self.start != OLD


class Case(WorkerCase):
    def setUp(self) -> None:
        super().setUp()
        self.unit: Any = Unit()
        self.trial = Trial(Verdict.GOOD)
        self.trials = 0
        self.tried: list[str] = []
        self.enterContext(mock.patch.object(start_gate, "try_successor", self.try_it))
        self.enterContext(mock.patch.object(start_gate, "INTERVAL_SECS", 0.05))
        self.gate = StartGate(self.unit, self.note)
        self.context: RunnerContext = make_context(self.config, self.clock)

    def note(self, rollout_id: str) -> None:
        self.tried.append(f"{rollout_id} after {len(self.told.results('agent-start'))} results")

    def try_it(self, start: UnitStart, clock: object, check: Any) -> Trial:
        check()
        self.trials += 1
        return self.trial


class Outcomes(Case):
    def test_it_is_declared_only_where_something_else_would_start(self) -> None:
        self.assertIsNone(self.gate.declaration(1.0))
        self.unit.start = NEW
        declared = self.gate.declaration(5.0)
        assert declared is not None
        self.assertEqual(
            (declared.name, declared.mode, declared.interval, declared.run_once),
            ("agent-start", Mode.ENFORCE, 5.0, False),
        )
        self.unit.start = None
        self.assertIsNotNone(self.gate.declaration(1.0), "a systemd that does not answer is not taken for a yes")

    def test_a_good_one_is_told_before_it_passes(self) -> None:
        self.unit.start = NEW
        self.assertTrue(self.gate.run(ROLLOUT, self.context).passed)
        self.assertEqual(self.tried, [f"{ROLLOUT} after 0 results"])

    def test_a_bad_one_fails_with_its_words_and_is_not_told(self) -> None:
        self.unit.start, self.trial = NEW, Trial(Verdict.BAD, "no module named ssl")
        outcome = self.gate.run(ROLLOUT, self.context)
        self.assertEqual((outcome.passed, outcome.failure_reason, self.tried), (False, "no module named ssl", []))

    def test_one_that_can_not_be_tried_passes_is_not_left_for_and_is_tried_once(self) -> None:
        self.unit.start, self.trial = NEW, Trial(Verdict.UNTRIED, "too old")
        with self.assertLogs("nixfleet_agent.start_gate", "WARNING"):
            self.assertTrue(self.gate.run(ROLLOUT, self.context).passed)
        self.assertTrue(self.gate.run(ROLLOUT, self.context).passed)
        self.assertEqual((self.trials, self.tried), (1, []))

    def test_a_systemd_that_does_not_answer_fails(self) -> None:
        self.unit.start = None
        outcome = self.gate.run(ROLLOUT, self.context)
        self.assertEqual((outcome.passed, "does not say" in (outcome.failure_reason or "")), (False, True))

    def test_a_unit_that_is_as_it_was_again_passes(self) -> None:
        self.assertTrue(self.gate.run(ROLLOUT, self.context).passed)
        self.assertEqual((self.trials, self.tried), (0, []))

    def test_an_order_to_stop_ends_it_without_a_word(self) -> None:
        self.unit.start = NEW
        self.context.cancel.set()
        self.assertFalse(self.gate.run(ROLLOUT, self.context).passed)
        self.assertEqual(self.tried, [])


class InTheWorker(Case):
    def worker(self, runner: Any = None) -> Any:
        worker = super().worker(runner) if runner else super().worker()
        worker.gated_by(self.gate)
        return worker

    def names(self) -> list[str]:
        return [probe.probe_name for probe in self.told.topologies()[-1].probes]

    def test_it_is_a_probe_beside_the_declared_ones(self) -> None:
        self.unit.start, self.trial = NEW, Trial(Verdict.BAD, "no module named ssl")
        self.declare(ok={"kind": "exec", "command": ["true"]}, **{"agent-start": {"kind": "exec", "command": ["true"]}})
        with self.working():
            self.mailbox.put(ResetProbes(ROLLOUT))
            self.told.wait(lambda: len(self.told.results("agent-start")) > 1, "results of the gate")
            self.assertEqual(self.names(), ["ok", "agent-start"])
            result = self.told.results("agent-start")[0]
            self.assertEqual(
                (result.status, result.mode, result.failure_reason),
                (ProbeStatus.FAIL, Mode.ENFORCE, "no module named ssl"),
            )

    def test_it_is_not_there_where_the_agent_stays_the_same(self) -> None:
        self.declare(ok={"kind": "exec", "command": ["true"]})
        with self.working():
            self.mailbox.put(ResetProbes(ROLLOUT))
            self.told.wait(lambda: bool(self.told.results("ok")), "a result")
        self.assertEqual(self.names(), ["ok"])

    def test_a_broken_file_beside_it_is_read_again(self) -> None:
        self.unit.start, self.trial = NEW, Trial(Verdict.BAD, "no")
        self.file.write_text("{")
        with mock.patch("nixfleet_agent.probes.health_checks.DEFAULT_INTERVAL", 0.05), self.working():
            self.mailbox.put(ResetProbes(ROLLOUT))
            self.told.wait(lambda: bool(self.told.results("health-checks.json")), "a result")
            self.declare(ok={"kind": "exec", "command": ["true"]})
            self.told.wait(lambda: bool(self.told.results("ok")), "the file as it is now", 20)
        self.assertEqual(self.names(), ["ok", "agent-start"])


if __name__ == "__main__":
    unittest.main()
