"""The probe worker: on each reset it ends the probes of the last rollout and starts those of the release that runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nixfleet_agent.config.model import Config
from nixfleet_agent.probes import health_checks, runners
from nixfleet_agent.probes.declarations import BadDecl, DeclaredProbes, ProbeDecl
from nixfleet_agent.probes.runners import RunnerContext, RunnerOutcome
from nixfleet_agent.probes.set import ProbeSet, Runner
from nixfleet_agent.reading import read_regular
from nixfleet_agent.runtime.rollout.inputs import HostEvent
from nixfleet_agent.runtime.rollout.orders import ProbeOrder, ResetProbes, StopProbes
from nixfleet_agent.runtime.start_gate import AgentStartDecl, StartGate
from nixfleet_agent.state_machine.events import Event
from nixfleet_agent.text import printable
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.mailbox import Mailbox
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.threads.threads import SYSTEM_THREADS, Threads
from nixfleet_agent.threads.worker import Worker

#: While probes run they are looked after this often, in seconds; the probes keep their own time.
TEND_SECS = 5.0
#: Without probes there is nothing to do but to show life.
IDLE_SECS = 60.0


def read_declarations(path: Path, min_interval: float) -> DeclaredProbes:
    """What the file at ``path`` declares: an absent file nothing, one that can't be read a probe that fails."""
    try:
        raw = read_regular(path, health_checks.FILE_LIMIT)
    except FileNotFoundError:
        return health_checks.parse(None, min_interval)
    except OSError as error:
        return health_checks.broken(f"can't read {path}: {error.strerror or error}", min_interval)
    return health_checks.parse(raw, min_interval)


class ProbeWorker(Worker):
    """Takes ``ResetProbes`` and ``StopProbes`` from its mailbox; everything it tells goes through ``emit``."""

    name = "probe"

    def __init__(
        self,
        shutdown: ShutdownToken,
        clock: Clock,
        *,
        config: Config,
        mailbox: Mailbox[ProbeOrder],
        emit: Callable[[HostEvent], object],
        runner: Runner = runners.run,
        threads: Threads = SYSTEM_THREADS,
    ) -> None:
        super().__init__(shutdown, clock)
        self._file = config.health_checks_file
        self._min_interval = config.tuning.probe_min_interval
        self._mailbox = mailbox
        self._emit = emit
        self._runner = runner
        self._gate: StartGate | None = None
        self._context = runners.make_context(config, clock, threads)
        self._rollout_id: str | None = None
        self._set: ProbeSet | None = None
        self._declared = DeclaredProbes()
        self._read_again: float | None = None

    def gated_by(self, gate: StartGate) -> None:
        """Put the gate of a release that changes the agent beside the declared probes; before ``run``."""
        self._gate = gate

    def run(self) -> None:
        """Until shutdown; after a crash of this loop the rollout that was being probed is probed again."""
        try:
            if self._rollout_id is not None:
                self._start(self._rollout_id)
            while not self.shutdown.is_set:
                self.alive()
                order = self._mailbox.take(self._patience())
                if isinstance(order, ResetProbes):
                    self._stop()
                    self._start(order.rollout_id)
                elif isinstance(order, StopProbes):
                    self._stop()
                    self._rollout_id = None
                elif not self.shutdown.is_set:
                    self._tend()
        finally:
            self._stop()

    def _patience(self) -> float:
        if self._set is None:
            return IDLE_SECS
        if self._read_again is None:
            return TEND_SECS
        return min(TEND_SECS, max(0.0, self._read_again - self.clock.monotonic()))

    def _start(self, rollout_id: str, declared: DeclaredProbes | None = None) -> None:
        self._rollout_id = rollout_id
        if declared is None:
            declared = read_declarations(self._file, self._min_interval)
        self._declared = declared
        self._plan_reading(declared)
        declared = self._with_gate(declared)
        bad = [printable(decl.name, 80) for decl in declared.probes if isinstance(decl, BadDecl)]
        fields = {"rollout_id": rollout_id, "probes": len(declared.probes), "bad": bad}
        self.log.info("probing: %d declared, %d of them bad", len(declared.probes), len(bad), extra=fields)
        context = self._context.for_new_set()
        self._set = ProbeSet(rollout_id, declared, context, self._emit_event, self.log, self._runner_of(rollout_id))
        self._set.start()

    def _with_gate(self, declared: DeclaredProbes) -> DeclaredProbes:
        """With the gate of a release that changes the agent, which takes its name before any declared probe."""
        own = None if self._gate is None else self._gate.declaration(self._min_interval)
        if own is None:
            return declared
        others = tuple(decl for decl in declared.probes if decl.name != own.name)
        return replace(declared, probes=(*others, own))

    def _runner_of(self, rollout_id: str) -> Runner:
        def run(decl: ProbeDecl, ctx: RunnerContext) -> RunnerOutcome:
            if self._gate is not None and isinstance(decl, AgentStartDecl):
                return self._gate.run(rollout_id, ctx)
            return self._runner(decl, ctx)

        return run

    def _emit_event(self, rollout_id: str, event: Event) -> None:
        self._emit(HostEvent(rollout_id, event))

    def _stop(self) -> None:
        if self._set is not None:
            stopped, self._set = self._set, None
            hanging = stopped.stop()
            if hanging:
                names = [thread.name for thread in hanging]
                self.log.warning("stopped probes hang in a system call: they can tell nothing", extra={"probes": names})
        self._read_again = None

    def _tend(self) -> None:
        self._context.unreaped.sweep()  # killed children that were stuck in the kernel, once they have ended
        if self._set is None:
            return
        self._set.tend()
        if self._read_again is not None and self.clock.monotonic() >= self._read_again:
            declared = read_declarations(self._file, self._min_interval)
            if declared == self._declared:
                self._plan_reading(declared)
                return
            rollout_id = self._set.rollout_id
            self._stop()
            self._start(rollout_id, declared)

    def _plan_reading(self, declared: DeclaredProbes) -> None:
        """A file that could not be read may be whole in a moment (half a deployment, a late mount)."""
        self._read_again = self.clock.monotonic() + declared.probes[0].interval if declared.broken else None
