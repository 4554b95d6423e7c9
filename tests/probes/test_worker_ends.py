"""How probes are stopped, and when they run."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
import unittest
from unittest import mock

from nixfleet_agent.probes.declarations import DeclaredProbes, ProbeDecl, TcpDecl
from nixfleet_agent.probes.runners import RunnerContext, RunnerOutcome, failed, passed
from nixfleet_agent.probes.runners.evidence_file import EvidenceReader
from nixfleet_agent.probes.set import ProbeSet
from nixfleet_agent.runtime.rollout.inputs import HostEvent
from nixfleet_agent.runtime.rollout.orders import StopProbes
from nixfleet_agent.state_machine.events import (
    LocalProbeResult,
    LocalProbeTopologyDeclared,
)
from nixfleet_agent.threads.cancel import CancelToken
from tests.probes.support import MACHINE, children
from tests.probes.worker_case import NEXT, ROLLOUT, WorkerCase, always, port
from tests.support.clock import FakeClock


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
