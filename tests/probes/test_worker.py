"""The probe worker: what it tells, in which order, and that after a reset nothing old is told or left running."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import tempfile
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from nixfleet_agent.config.model import Config, TuningConfig
from nixfleet_agent.probes import runners
from nixfleet_agent.probes.declarations import DeclaredProbes, ProbeDecl, TcpDecl
from nixfleet_agent.probes.runners import RunnerContext, RunnerOutcome, failed, passed
from nixfleet_agent.probes.runners.evidence_file import EvidenceReader
from nixfleet_agent.probes.set import ProbeSet
from nixfleet_agent.runtime.rollout.inputs import HostEvent
from nixfleet_agent.runtime.rollout.orders import ProbeOrder, ResetProbes, StopProbes
from nixfleet_agent.runtime.workers.probe import ProbeWorker, read_declarations
from nixfleet_agent.state_machine.events import (
    Event,
    LocalProbeFailureFirst,
    LocalProbeObservedFirst,
    LocalProbeResult,
    LocalProbeTopologyDeclared,
)
from nixfleet_agent.state_machine.states import Mode, ProbeStatus
from nixfleet_agent.threads.cancel import CancelToken
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.threads.mailbox import Mailbox
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.probes.support import MACHINE, children, descriptors
from tests.support.clock import FakeClock

ROLLOUT = "stable@abc"
NEXT = "stable@def"


class Told:
    """Everything the worker emitted, with the times; a test can wait for a condition on it."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Event]] = []
        self.times: list[float] = []
        self.room = threading.Event()
        self.room.set()
        self._changed = threading.Condition()

    def emit(self, item: HostEvent) -> bool:
        self.room.wait(10)
        with self._changed:
            self.events.append((item.rollout_id, item.event))
            self.times.append(time.monotonic())
            self._changed.notify_all()
        return True

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = 5.0) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise AssertionError(f"never came: {what}; told so far: {self.kinds()}")

    def kinds(self, probe: str | None = None) -> list[str]:
        return [e.kind for _, e in self.events if probe is None or getattr(e, "probe_name", None) == probe]

    def results(self, probe: str) -> list[LocalProbeResult]:
        return [e for _, e in self.events if isinstance(e, LocalProbeResult) and e.probe_name == probe]

    def topologies(self) -> list[LocalProbeTopologyDeclared]:
        return [e for _, e in self.events if isinstance(e, LocalProbeTopologyDeclared)]


class WorkerCase(unittest.TestCase):
    min_interval = 0.05

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.file = self.folder / "health-checks.json"
        self.told = Told()
        self.clock = SystemClock()
        self.shutdown = ShutdownToken(self.clock)
        self.mailbox: Mailbox[ProbeOrder] = Mailbox(self.clock, self.shutdown)
        self.config = Config(
            control_plane_url="https://cp.example",
            machine_id=MACHINE,
            health_checks_file=self.file,
            ssh_host_key_file=self.folder / "key",
            tuning=TuningConfig(probe_min_interval=self.min_interval),
        )

    def declare(self, **declarations: Any) -> None:
        replacement = self.folder / "new"
        replacement.write_text(json.dumps(declarations), encoding="utf-8")
        replacement.rename(self.file)

    def worker(self, runner: Any = runners.run) -> ProbeWorker:
        return ProbeWorker(
            self.shutdown, self.clock, config=self.config, mailbox=self.mailbox, emit=self.told.emit, runner=runner
        )

    @contextlib.contextmanager
    def working(self, runner: Any = runners.run) -> Iterator[ProbeWorker]:
        worker = self.worker(runner)
        thread = threading.Thread(target=worker.run, name="probe")
        thread.start()
        try:
            yield worker
        finally:
            self.told.room.set()
            self.shutdown.set()
            thread.join(30)
        self.assertFalse(thread.is_alive(), "the worker did not stop")

    def reset(self, rollout_id: str = ROLLOUT) -> None:
        self.mailbox.put(ResetProbes(rollout_id))


def port(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {"kind": "tcp", "port": number, **fields}


def always(outcome: RunnerOutcome) -> Any:
    return lambda decl, ctx: outcome


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


class Stopping(WorkerCase):
    def test_after_a_reset_nothing_of_the_old_rollout_is_told(self) -> None:
        """The old probe has its result in hand, and only then is the reset taken."""
        self.declare(p=port())
        entered, leave = threading.Event(), threading.Event()

        def runner(decl: ProbeDecl, ctx: RunnerContext) -> RunnerOutcome:
            if not entered.is_set():
                entered.set()
                leave.wait(30)
            return failed("late")

        with self.working(runner):
            self.reset()
            entered.wait(30)
            self.reset(NEXT)
            threading.Timer(0.1, leave.set).start()
            self.told.wait(lambda: bool(self.told.results("p")), "a result")
        topologies = [i for i, (_, e) in enumerate(self.told.events) if isinstance(e, LocalProbeTopologyDeclared)]
        self.assertEqual([self.told.events[i][0] for i in topologies], [ROLLOUT, NEXT])
        self.assertEqual({r for r, _ in self.told.events[topologies[1] :]}, {NEXT})
        self.assertEqual([r for r, e in self.told.events if isinstance(e, LocalProbeResult)][:1], [NEXT])

    def test_results_that_wait_for_room_are_not_told_after_the_reset(self) -> None:
        self.declare(**{f"p{n}": port() for n in range(10)})
        with self.working(always(passed())):
            self.told.wait(lambda: not self.mailbox.peek(), "an empty mailbox")
            self.reset()
            self.told.wait(lambda: bool(self.told.events), "the topology")
            self.told.room.clear()
            self.reset(NEXT)
            threading.Timer(0.1, self.told.room.set).start()
            self.told.wait(lambda: len(self.told.topologies()) == 2, "the next topology")
            self.told.wait(lambda: all(self.told.results(f"p{n}") for n in range(10)), "all results")
        rollouts = [rollout for rollout, _ in self.told.events]
        self.assertEqual(rollouts, sorted(rollouts), "events of the old rollout came after the reset")

    def test_the_reset_waits_for_who_is_telling_however_long_it_takes(self) -> None:
        """Longer than stopped probes are waited for: the queue is full while the disk is."""
        self.declare(p=port())
        entered, topology, old = threading.Event(), threading.Event(), self.told.emit

        def emit(item: HostEvent) -> bool:
            if item.rollout_id == NEXT:
                topology.set()
            elif not isinstance(item.event, LocalProbeTopologyDeclared):
                entered.set()
                topology.wait(0.3)
            return old(item)

        self.enterContext(mock.patch("nixfleet_agent.probes.set.JOIN_SECS", 0.01))
        self.enterContext(mock.patch.object(self.told, "emit", emit))
        with self.working(always(passed())):
            self.reset()
            entered.wait(30)
            self.reset(NEXT)
            self.told.wait(lambda: NEXT in [rollout for rollout, _ in self.told.events], "the next topology")
        rollouts = [rollout for rollout, _ in self.told.events]
        self.assertEqual(rollouts, sorted(rollouts), "events of the old rollout came after the reset")

    def test_a_killed_child_is_reaped_when_it_ends_at_last(self) -> None:
        child = subprocess.Popen(["/bin/sleep", "0.2"])
        self.addCleanup(child.wait)
        with mock.patch("nixfleet_agent.runtime.workers.probe.IDLE_SECS", 0.05), self.working() as worker:
            worker._context.unreaped.adopt(child)
            deadline = time.monotonic() + 30
            while child.pid in children() and time.monotonic() < deadline:
                threading.Event().wait(0.005)
            self.assertNotIn(child.pid, children())

    def test_stop_ends_all_probes(self) -> None:
        self.declare(p=port(intervalSeconds=0.05))
        with self.working(always(passed())) as worker:
            self.reset()
            self.told.wait(lambda: bool(self.told.results("p")), "a result")
            self.mailbox.put(StopProbes())
            deadline = time.monotonic() + 5
            while any(t.name.startswith("probe p") for t in threading.enumerate()) and time.monotonic() < deadline:
                threading.Event().wait(0.005)
            count = len(self.told.events)
            threading.Event().wait(0.2)
            self.assertEqual(len(self.told.events), count)
            self.assertLess(worker.silent_for(), 5)

    def test_shutdown_kills_running_children_and_ends_in_time(self) -> None:
        mark = self.folder / "started"
        script = f"trap '' TERM; touch {mark}; sleep 60 & sleep 60"
        self.declare(
            **{f"p{n}": {"kind": "exec", "command": ["/bin/sh", "-c", script], "timeoutSecs": 60} for n in range(5)}
        )
        with self.working():
            self.reset()
            deadline = time.monotonic() + 5
            while not mark.exists() and time.monotonic() < deadline:
                threading.Event().wait(0.005)
            began = time.monotonic()
        self.assertLess(time.monotonic() - began, 1.5)
        self.assertEqual(children(), set())
        self.assertEqual(self.told.results("p0"), [])

    def test_a_probe_that_hangs_for_good_is_left_behind_mute(self) -> None:
        self.declare(p=port())
        release, hanging = threading.Event(), threading.Event()

        def runner(decl: ProbeDecl, ctx: RunnerContext) -> RunnerOutcome:
            hanging.set()
            release.wait(10)
            return passed()

        self.enterContext(mock.patch("nixfleet_agent.probes.set.JOIN_SECS", 0.1))
        with self.working(runner), self.assertLogs("nixfleet_agent.probe", "WARNING") as logs:
            self.reset()
            hanging.wait(30)
            self.mailbox.put(StopProbes())
            deadline = time.monotonic() + 5
            while not logs.records and time.monotonic() < deadline:
                threading.Event().wait(0.005)
        release.set()
        self.assertIn("hang", logs.output[0])
        self.assertEqual(self.told.results("p"), [])

    def test_after_a_crash_of_its_loop_the_rollout_is_probed_again(self) -> None:
        self.declare(p=port())
        worker = self.worker(always(passed()))
        self.reset()
        self.enterContext(mock.patch("nixfleet_agent.runtime.workers.probe.TEND_SECS", 0.05))
        with mock.patch.object(worker, "_tend", side_effect=KeyError("a defect")):
            self.assertRaises(KeyError, worker.run)
        self.assertEqual([t.name for t in threading.enumerate() if t.name.startswith("probe p")], [])
        thread = threading.Thread(target=worker.run)
        thread.start()
        self.told.wait(lambda: len(self.told.topologies()) == 2, "the topology again")
        self.shutdown.set()
        thread.join(30)
        self.assertEqual({rollout for rollout, _ in self.told.events}, {ROLLOUT})


class Schedule(WorkerCase):
    def test_a_slow_probe_delays_no_other(self) -> None:
        self.declare(slow=port(intervalSeconds=0.05), quick=port(intervalSeconds=0.05))
        release = threading.Event()

        def runner(decl: ProbeDecl, ctx: RunnerContext) -> RunnerOutcome:
            if decl.name == "slow":
                ctx.cancel.event.wait(10)
            return passed()

        with self.working(runner):
            self.reset()
            self.told.wait(lambda: len(self.told.results("quick")) >= 5, "five quick results")
            self.assertEqual(self.told.results("slow"), [])
        release.set()

    def starts(self, *lengths: float) -> list[int]:
        """Seconds from the first start to each, at an interval of 10 s, where the runs take as long as given."""
        clock = FakeClock()
        ctx = RunnerContext(clock, CancelToken(), EvidenceReader(MACHINE, self.folder / "key"))
        began: list[float] = []

        def runner(decl: ProbeDecl, ctx: RunnerContext) -> RunnerOutcome:
            began.append(clock.monotonic())
            clock.advance(lengths[len(began) - 1] if len(began) <= len(lengths) else 0.0)
            return passed()

        declared = DeclaredProbes((TcpDecl(name="p", port=1, interval=10.0),))
        log = logging.getLogger("nixfleet_agent.probe")
        probes = ProbeSet(
            ROLLOUT, declared, ctx, lambda _, event: self.told.emit(HostEvent(ROLLOUT, event)), log, runner
        )
        probes.start()
        self.addCleanup(probes.stop)
        for _ in lengths:
            clock.until_waiting(on=ctx.cancel.event)
            clock.advance((clock.next_deadline() or 0.0) - clock.monotonic() + 1e-6)
        clock.until_waiting(on=ctx.cancel.event)
        return [round(start - began[0]) for start in began]

    def test_the_length_of_a_run_does_not_add_up(self) -> None:
        self.assertEqual(self.starts(4, 4, 4, 4, 4, 4), [0, 10, 20, 30, 40, 50])

    def test_turns_missed_by_a_slow_run_are_left_out_not_made_up(self) -> None:
        self.assertEqual(self.starts(55, 0, 0), [0, 60, 70])


if __name__ == "__main__":
    unittest.main()
