"""The running probes of one rollout: a thread each, one order to stop them all, one gate for what they tell."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from nixfleet_agent.probes.declarations import DeclaredProbes, ProbeDecl
from nixfleet_agent.probes.runners import RunnerContext, RunnerOutcome, failed, run
from nixfleet_agent.state_machine.events import (
    Event,
    LocalProbeFailureFirst,
    LocalProbeObservedFirst,
    LocalProbeResult,
    LocalProbeTopologyDeclared,
)
from nixfleet_agent.state_machine.record import DeclaredProbe
from nixfleet_agent.state_machine.states import Mode, ProbeStatus
from nixfleet_agent.text import printable
from nixfleet_agent.threads.threads import Thread

#: How long stopped probes may take to end; a thread that needs longer hangs in a system call and is left behind mute.
JOIN_SECS = 2.0

#: All probes start within this many seconds. At the very same moment 100 of them fight for the interpreter's lock:
#: the last of 100 http probes then started 97 to 164 ms late; spread like this, 76 to 81 ms after the common moment.
SPREAD_SECS = 0.02

#: The first run waits this long for each probe, at most 20 ms in all: 100 threads are made in 5 ms while none of them
#: works, and in 100 ms while the first ones do.
LEAD_SECS = 0.0002

Runner = Callable[[ProbeDecl, RunnerContext], RunnerOutcome]


@dataclass(slots=True)
class _Probe:
    """One probe's place in its schedule; touched by its own thread, and by the owner only when that has ended."""

    decl: ProbeDecl
    due: float
    done: bool = False
    status: ProbeStatus | None = None
    thread: Thread | None = None


class ProbeSet:
    """All probes of one reset. Made, started, tended and stopped by the probe worker; its threads only run probes."""

    def __init__(
        self,
        rollout_id: str,
        declared: DeclaredProbes,
        ctx: RunnerContext,
        emit: Callable[[str, Event], object],
        log: logging.Logger,
        runner: Runner = run,
    ) -> None:
        self.rollout_id = rollout_id
        self.declared = declared
        self._ctx = ctx
        self._emit = emit
        self._log = log
        self._runner = runner
        self._gate = threading.Lock()
        self._probes: list[_Probe] = []

    def start(self) -> None:
        """Declare the topology, then run every probe that is not disabled at once."""
        lines = tuple(
            DeclaredProbe(probe_name=decl.name, kind=decl.kind, mode=decl.mode, run_once=decl.run_once)
            for decl in self.declared.probes
        )
        self._tell(LocalProbeTopologyDeclared(probes=lines, declared_at=self._ctx.clock.now()))
        decls = [decl for decl in self.declared.probes if decl.mode is not Mode.DISABLED]
        start = self._ctx.clock.monotonic() + LEAD_SECS * min(len(decls), 100)
        gap = SPREAD_SECS / max(len(decls), 100)
        self._probes = [_Probe(decl, start + number * gap) for number, decl in enumerate(decls)]
        for probe in self._probes:
            self._launch(probe)

    def tend(self) -> None:
        """Start the thread of a probe again whose runner ended in an exception: its fail was told, its stack logged."""
        for probe in self._probes:
            broke_down = probe.thread is not None and not probe.thread.is_alive() and not probe.done
            if broke_down and not probe.decl.run_once and not self._stopped:
                self._next_due(probe)
                self._launch(probe)

    def stop(self) -> list[Thread]:
        """End every run; when this returns nothing of this set is ever told again. The threads that did not end."""
        self._ctx.cancel.set()
        with self._gate:
            pass  # whoever was telling has told; whoever comes now sees that it is stopped
        deadline = self._ctx.clock.monotonic() + JOIN_SECS
        threads = [probe.thread for probe in self._probes if probe.thread is not None]
        for thread in threads:
            thread.join(max(0.0, deadline - self._ctx.clock.monotonic()))
        return [thread for thread in threads if thread.is_alive()]

    @property
    def _stopped(self) -> bool:
        return self._ctx.cancel.is_set

    def _launch(self, probe: _Probe) -> None:
        probe.thread = self._ctx.threads.start(f"probe {printable(probe.decl.name, 60)}", lambda: self._loop(probe))

    def _loop(self, probe: _Probe) -> None:
        clock, cancel = self._ctx.clock, self._ctx.cancel
        while not cancel.is_set:
            if clock.wait(cancel.event, max(0.0, probe.due - clock.monotonic())):
                return
            if clock.monotonic() < probe.due:
                continue  # woken early
            self._run_once(probe)
            if probe.decl.run_once:
                probe.done = True
                return
            self._next_due(probe)

    def _next_due(self, probe: _Probe) -> None:
        """On the grid that the reset began: no run's length adds up, and turns that a slow run missed are left out."""
        late = self._ctx.clock.monotonic() - probe.due
        probe.due += probe.decl.interval * max(1, 1 + int(late // probe.decl.interval))

    def _run_once(self, probe: _Probe) -> None:
        outcome = failed("the runner broke down; its stack is in the agent's log")
        try:
            outcome = self._runner(probe.decl, self._ctx)
        finally:
            # Also on the way of an exception: a probe whose runner is broken has not passed.
            self._report(probe, outcome)

    def _report(self, probe: _Probe, outcome: RunnerOutcome) -> None:
        before, probe.status = probe.status, outcome.status
        self._tell(*_events(probe.decl, before, outcome, self._ctx.clock.now()))
        if before is not outcome.status and not self._stopped and (before is not None or not outcome.passed):
            level, what = (logging.INFO, "passes") if outcome.passed else (logging.WARNING, "fails")
            name = printable(probe.decl.name)
            fields = {"rollout_id": self.rollout_id, "probe": name, "reason": outcome.failure_reason}
            self._log.log(level, "probe %s %s", name, what, extra=fields)

    def _tell(self, *events: Event) -> None:
        """All of them in order, or none: after ``stop`` the rollout that they belong to may be over."""
        with self._gate:
            if not self._stopped:
                for event in events:
                    self._emit(self.rollout_id, event)


def _events(decl: ProbeDecl, before: ProbeStatus | None, outcome: RunnerOutcome, at: datetime) -> list[Event]:
    events: list[Event] = []
    if before is None:
        events.append(LocalProbeObservedFirst(probe_name=decl.name, mode=decl.mode, observed_at=at))
    if not outcome.passed and before is not ProbeStatus.FAIL:
        events.append(LocalProbeFailureFirst(probe_name=decl.name, mode=decl.mode, first_failed_at=at))
    result = LocalProbeResult(
        probe_name=decl.name,
        mode=decl.mode,
        status=outcome.status,
        observed_at=at,
        failure_reason=outcome.failure_reason,
        sub_results=outcome.sub_results,
    )
    return [*events, result]
