"""When a soak ends and a failure is sustained: one tick before, at the boundary, across clock steps and restarts."""

from __future__ import annotations

import unittest
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from nixfleet_agent.state_machine import Mode, ProbeStatus, RolloutRecord, State, step, timing
from nixfleet_agent.state_machine.timing import Convergence, ProbeTimer, SustainedFailure, Timers
from tests.state_machine.machine import NOW, ROLLBACK, TARGET, THIRD, at, declared, event, probed, record

PASS, FAIL = ProbeStatus.PASS, ProbeStatus.FAIL
THRESHOLD = 120.0
#: The monotonic second at which the activation of these stories completes.
START = 5000.0


class Soak:
    """One soaking rollout as a process measures it; the wall clock of the events is set apart from it."""

    def __init__(
        self, *gates: str, run_once: bool = False, soak: float = 600.0, floor: int = 0, completed: float = 0.0
    ) -> None:
        self.record = record(State.ACTIVATING, soak_floor=floor, soak_due_at=at(soak), last_event_seq=0)
        self.timers = Timers()
        self.wall_step = 0.0
        self.tell("ActivationCompleted", START, completed_at=at(completed))
        topology = tuple(declared(name, run_once=run_once) for name in gates)
        self.tell("ProbeTopologyDeclared", START, probes=topology)

    def tell(self, kind: str, monotonic: float, **changes: Any) -> None:
        happened = event(kind, self.record.last_event_seq + 1, **changes)
        self.record, _ = step(self.record, happened, NOW, ROLLBACK)
        self.timers = timing.applied(self.timers, self.record, happened, monotonic)

    def probe(self, second: float, status: ProbeStatus, name: str = "web", *, journaled: bool = True) -> None:
        """A run of a probe ``second`` seconds after the activation completed."""
        if journaled:
            stamp = at(second + self.wall_step)
            self.tell("ProbeResult", START + second, probe_name=name, status=status, observed_at=stamp)
        self.timers = timing.observed(self.timers, name, status, START + second)

    def at(self, second: float, current: str | None = TARGET) -> SustainedFailure | Convergence | None:
        return timing.decide(self.record, self.timers, START + second, current, THRESHOLD)


class TheSoakEnds(unittest.TestCase):
    def test_at_its_last_second_and_not_one_tick_before(self) -> None:
        soak = Soak("web")
        soak.probe(1, PASS)
        self.assertIsNone(soak.at(599.999))
        self.assertEqual(soak.at(600), Convergence())

    def test_only_once_every_gate_has_passed(self) -> None:
        soak = Soak("web", "db")
        soak.probe(1, PASS)
        self.assertIsNone(soak.at(700))
        soak.probe(701, FAIL, "db")
        self.assertIsNone(soak.at(702))
        soak.probe(703, PASS, "db")
        self.assertEqual(soak.at(703), Convergence())

    def test_without_gates_only_the_topology_is_waited_for(self) -> None:
        soak = Soak()
        self.assertIsNone(soak.at(599))
        self.assertEqual(soak.at(600), Convergence())
        soak.record = replace(soak.record, topology=None)
        self.assertIsNone(soak.at(600))

    def test_probes_that_observe_never_gate(self) -> None:
        soak = Soak()
        soak.tell("ProbeTopologyDeclared", START, probes=(declared("disk", Mode.OBSERVE),))
        soak.probe(1, FAIL, "disk")
        soak.probe(300, FAIL, "disk")
        self.assertEqual(soak.at(600), Convergence())

    def test_a_rollout_whose_activation_never_completed_decides_nothing(self) -> None:
        for state in State:
            if state is not State.SOAKING:
                self.assertIsNone(timing.decide(record(state), Timers(0.0), 1e9, TARGET, THRESHOLD))
        unmeasured = replace(Soak().record)
        self.assertIsNone(timing.decide(unmeasured, Timers(), 1e9, TARGET, THRESHOLD))

    def test_a_soak_that_was_over_when_the_activation_completed_still_waits_for_the_gates(self) -> None:
        soak = Soak("web", soak=-500)
        self.assertEqual(soak.timers.soak_ends, START)
        self.assertIsNone(soak.at(0))
        soak.probe(1, PASS)
        self.assertEqual(soak.at(1), Convergence())


class AFailureIsSustained(unittest.TestCase):
    def test_at_the_threshold_and_not_one_tick_before(self) -> None:
        soak = Soak("web")
        soak.probe(10, FAIL)
        soak.probe(40, FAIL)
        self.assertIsNone(soak.at(10 + 119.999))
        self.assertEqual(soak.at(10 + 120), SustainedFailure(("web",), 120.0))

    def test_only_by_two_failures_in_a_row(self) -> None:
        soak = Soak("web")
        soak.probe(10, FAIL)
        self.assertIsNone(soak.at(500))
        soak.probe(501, FAIL)
        self.assertEqual(soak.at(501), SustainedFailure(("web",), 491.0))

    def test_by_one_failure_of_a_probe_that_runs_once(self) -> None:
        soak = Soak("web", run_once=True)
        soak.probe(10, FAIL)
        self.assertIsNone(soak.at(129.9))
        self.assertEqual(soak.at(130), SustainedFailure(("web",), 120.0))

    def test_never_by_a_probe_that_flaps(self) -> None:
        soak = Soak("web")
        for second in range(0, 2000, 100):
            soak.probe(second, FAIL)
            soak.probe(second + 50, FAIL)
            self.assertIsNone(soak.at(second + 99))
            soak.probe(second + 99, PASS)

    def test_names_every_probe_that_failed_so_long_sorted_and_no_other(self) -> None:
        soak = Soak("web", "db", "api", "new")
        for name, first in (("web", 10), ("db", 5), ("api", 20), ("new", 100)):
            soak.probe(first, FAIL, name)
            soak.probe(first + 15, FAIL, name)
        self.assertEqual(soak.at(140), SustainedFailure(("api", "db", "web"), 135.0))

    def test_beats_a_soak_that_ends_in_the_same_tick(self) -> None:
        soak = Soak("web", "db", soak=130)
        soak.probe(10, FAIL)
        soak.probe(40, FAIL)
        soak.probe(40, PASS, "db")
        self.assertEqual(soak.at(130), SustainedFailure(("web",), 120.0))

    def test_by_results_that_were_not_journaled_too(self) -> None:
        soak = Soak("web")
        soak.probe(10, FAIL)
        soak.probe(40, FAIL, journaled=False)
        self.assertEqual(soak.at(130), SustainedFailure(("web",), 120.0))


class NothingIsDecided(unittest.TestCase):
    def test_while_an_operators_own_switch_runs(self) -> None:
        for current in (THIRD, None):
            soak = Soak("web")
            soak.probe(10, FAIL)
            soak.probe(40, FAIL)
            self.assertIsNone(soak.at(1000, current))
            soak.probe(1001, PASS)
            self.assertIsNone(soak.at(1002, current))
            self.assertEqual(soak.at(1002), Convergence())

    def test_before_each_gate_has_a_result_not_even_a_failure(self) -> None:
        soak = Soak("web", "db")
        soak.probe(10, FAIL)
        soak.probe(40, FAIL)
        self.assertIsNone(soak.at(1000))
        soak.probe(1000, PASS, "db")
        self.assertEqual(soak.at(1000), SustainedFailure(("web",), 990.0))

    def test_by_a_result_of_a_probe_that_a_new_topology_no_longer_names(self) -> None:
        soak = Soak("web", "db")
        soak.probe(10, PASS)
        soak.probe(10, FAIL, "db")
        soak.probe(40, FAIL, "db")
        soak.tell("ProbeTopologyDeclared", START + 50, probes=(declared("web"),))
        self.assertEqual(set(soak.timers.probes), {"web"})
        self.assertEqual(soak.at(600), Convergence())


class TheWallClockIsSet(unittest.TestCase):
    """The stamps of the results jump; what was measured does not."""

    def test_forwards_by_a_day_fires_no_rollback_and_ends_no_soak(self) -> None:
        soak = Soak("web")
        soak.probe(10, FAIL)
        soak.wall_step = 86400
        soak.probe(40, FAIL)
        self.assertIsNone(soak.at(60))
        soak.probe(70, PASS)
        self.assertIsNone(soak.at(599))
        self.assertEqual(soak.at(600), Convergence())

    def test_backwards_by_a_day_delays_neither(self) -> None:
        soak = Soak("web")
        soak.probe(10, FAIL)
        soak.wall_step = -86400
        soak.probe(40, FAIL)
        self.assertEqual(soak.at(130), SustainedFailure(("web",), 120.0))

    def test_backwards_by_a_month_before_the_activation_completes_adds_no_month_to_the_soak(self) -> None:
        soak = Soak(soak=600, completed=-30 * 86400)
        self.assertIsNone(soak.at(599))
        self.assertEqual(soak.at(600), Convergence())

    def test_backwards_by_a_month_before_the_activation_completes_takes_nothing_from_the_signed_soak(self) -> None:
        soak = Soak(soak=0, floor=10, completed=-30 * 86400)
        self.assertIsNone(soak.at(599))
        self.assertEqual(soak.at(600), Convergence())


class ARestart(unittest.TestCase):
    """The next process has the record and its own monotonic clock, which says nothing about the last one's."""

    def resumed(self, soak: Soak, last_stamp_second: float, monotonic: float = 7.0) -> Timers:
        return timing.resumed(soak.record, at(last_stamp_second), monotonic)

    def decide(self, soak: Soak, timers: Timers, monotonic: float) -> Any:
        return timing.decide(soak.record, timers, monotonic, TARGET, THRESHOLD)

    def test_only_time_that_the_log_proves_counts_for_the_soak(self) -> None:
        soak = Soak("web")
        soak.probe(200, PASS)
        timers = timing.observed(self.resumed(soak, 200), "web", PASS, 8.0)
        self.assertIsNone(self.decide(soak, timers, 7 + 399.9))
        self.assertEqual(self.decide(soak, timers, 7 + 400), Convergence())

    def test_nothing_is_decided_before_each_gate_has_a_result_of_this_process(self) -> None:
        soak = Soak("web", "db")
        soak.probe(500, PASS)
        soak.probe(500, PASS, "db")
        timers = self.resumed(soak, 650)
        self.assertIsNone(self.decide(soak, timers, 7))
        timers = timing.observed(timers, "web", PASS, 8)
        self.assertIsNone(self.decide(soak, timers, 8))
        timers = timing.observed(timers, "db", PASS, 9)
        self.assertEqual(self.decide(soak, timers, 9), Convergence())

    def test_a_failure_goes_on_from_what_was_proven(self) -> None:
        soak = Soak("web")
        soak.probe(10, FAIL)
        soak.probe(40, FAIL)
        timers = self.resumed(soak, 40)
        self.assertIsNone(self.decide(soak, timers, 7 + 500), "no result of this process yet")
        timers = timing.observed(timers, "web", FAIL, 8)
        self.assertIsNone(self.decide(soak, timers, 7 + 89.9))
        self.assertEqual(self.decide(soak, timers, 7 + 90), SustainedFailure(("web",), 120.0))

    def test_a_pass_after_it_takes_the_failure_back(self) -> None:
        soak = Soak("web")
        soak.probe(10, FAIL)
        soak.probe(40, FAIL)
        timers = timing.observed(self.resumed(soak, 40), "web", PASS, 8)
        timers = timing.observed(timers, "web", FAIL, 9)
        self.assertEqual(timers.probes["web"], ProbeTimer(FAIL, 9, 1))

    def test_stamps_that_run_backwards_prove_no_time(self) -> None:
        soak = Soak("web")
        backwards = probed(FAIL, failing_since=at(50), last_observed_at=at(20), failures_in_row=2)
        soak.record = replace(soak.record, probes=MappingProxyType({"web": backwards}))
        timers = self.resumed(soak, -300)
        self.assertEqual(timers.probes["web"].failing_since, 7.0)
        self.assertEqual(timers.soak_ends, 7.0 + 900)

    def test_of_a_rollout_that_does_not_soak_leaves_nothing_to_measure(self) -> None:
        for state in State:
            if state is not State.SOAKING:
                self.assertEqual(timing.resumed(record(state), at(0), 7), Timers())
        without: RolloutRecord = replace(record(State.SOAKING), soak_due_at=None)
        self.assertEqual(timing.resumed(without, at(0), 7), Timers())


if __name__ == "__main__":
    unittest.main()
