"""Fires switches, one at a time on a host, and tells how each stands: running, ended, lost, or never started."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from dataclasses import dataclass

from nixfleet_agent.activation import host, locks, scripts
from nixfleet_agent.activation.backends.base import Backend
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import CommandError, PhaseFailed, PhaseInterrupted
from nixfleet_agent.activation.records import FORWARD, UNITS, Intent, Record, Records
from nixfleet_agent.errors import StorageError
from nixfleet_agent.proto.times import format_time

LOCK_PHASE = "switch-lock"
FIRE_PHASE = "fire"
#: The shell that writes `started` needs milliseconds; a host that thrashes needs more.
START_SECS = 30.0
_START_STEP_SECS = 0.005
#: Goes before a command whose pre-switch checks are overridden.
UNCHECKED = ("env", "NIXOS_NO_CHECK=1")


class Status(enum.Enum):
    """How a record's switch stands."""

    NEVER = "never started"
    RUNNING = "running"
    ENDED = "ended"
    LOST = "ended without a word"  # killed from outside, or the machine went down


@dataclass(frozen=True, slots=True)
class Job:
    """A switch to fire: the script of ``target`` with ``action`` (``switch``, ``boot`` or ``test``).

    ``unchecked``: its pre-switch checks are overridden, for nothing of the prior system may stop a way back.
    """

    rollout_id: str
    direction: str
    target: str
    action: str
    unchecked: bool = False


class Switches:
    """The only place where a switch is started or ended."""

    def __init__(self, context: Context, records: Records, backend: Backend) -> None:
        self._context = context
        self._records = records
        self._backend = backend

    @property
    def boot(self) -> str:
        """This boot's id."""
        return self._records.boot

    def status(self, record: Record) -> Status:
        """How the switch stands at this moment."""
        if record.started is None:
            return Status.NEVER
        if record.exit_code is None and self._backend.alive(record):
            return Status.RUNNING
        # Asked once more: one that ended between the two questions has left its exit code.
        return Status.LOST if record.exit_code is None else Status.ENDED

    def running(self) -> Record | None:
        """The switch of ours that has not ended, whatever it is for."""
        found = [record for record in self._records.all() if self.status(record) is Status.RUNNING]
        return found[-1] if found else None

    def attempts(self, rollout_id: str) -> list[Record]:
        """The forward switches of a rollout that may have changed what runs."""
        return [record for record in self._records.of(rollout_id, FORWARD) if record.live_changed]

    def prepare(self, job: Job) -> Record:
        """A record for the job, with the scripts beside it.

        Raises:
            PhaseFailed: the scripts could not run.
            StorageError: nothing must be fired.
        """
        if missing := scripts.missing(self._context.environment.get("PATH")):
            raise PhaseFailed(FIRE_PHASE, f"no {', '.join(missing)} on the agent's PATH: a switch can't be recorded")
        scripts.install(self._records.folder)
        self._records.prune(self.running())
        clock = self._context.clock
        return self._records.prepare(
            Intent(
                rollout_id=job.rollout_id,
                direction=job.direction,
                target=job.target,
                action=job.action,
                method=self._backend.method,
                unit=UNITS[job.direction],
                running=host.read_current(self._context.config),
                boot=self._records.boot,
                fired_at=clock.monotonic(),
                created_at=format_time(clock.now()),
            )
        )

    def fire(self, job: Job, arm: Callable[[Record], None] | None = None) -> Record:
        """Start the job's switch, or adopt one of ours that does the same already; another one is ended first.

        ``arm`` is called with the record just before the switch starts, or when it is adopted.

        Raises:
            PhaseFailed: nothing was started.
            StorageError: as ``prepare``.
            PhaseInterrupted: nothing was started; or a shutdown came just after, and the record tells.
        """
        running = self.running()
        if running is not None and (running.intent.target, running.intent.action) == (job.target, job.action):
            self._context.log.info("a switch of ours to %s still runs: adopting it", job.target)
            running.adopt(job.rollout_id, job.direction)
            if arm is not None:
                arm(running)
            return running
        if running is not None:
            self.stop(running)
        self.wait_for_lock()
        self._context.check()
        record = self.prepare(job)
        if arm is not None:
            try:
                arm(record)
            except (PhaseFailed, PhaseInterrupted):
                self._records.remove(record)
                raise
        command = self._backend.command(host.on_disk(self._context.config.store_root, job.target), job.action)
        self.start(record, [*UNCHECKED, *command] if job.unchecked else command)
        return record

    def start(self, record: Record, command: list[str], delay: float = 0) -> None:
        """Launch a prepared record; with no ``delay``, return once it has started.

        Raises:
            PhaseFailed: it has not started and never will.
        """
        try:
            self._backend.launch(record, command, delay)
            if not delay:
                self._await_start(record)
        except CommandError as error:
            if record.withdraw():
                self._records.remove(record)
                raise PhaseFailed(FIRE_PHASE, str(error)) from error
            self._context.log.warning("%s; but the switch has started", error)

    def wait_for_lock(self) -> None:
        """Wait while somebody else switches this host.

        Raises:
            PhaseFailed: the lock was held for the whole budget.
        """
        context, lock = self._context, self._context.config.switch_lock
        budget = context.config.poll_budget_secs
        deadline = context.clock.monotonic() + budget
        told = False
        former: os.stat_result | None = None
        if context.machine.lock_holders(lock) and self.running() is None:
            self._end_strays()
        while self.running() is None:
            pids = context.machine.lock_holders(lock) + (locks.holders_of(former) if former else [])
            if not pids:
                if former is not None or (former := self._claim_lock()) is None:
                    return
                continue
            if context.clock.monotonic() >= deadline:
                raise PhaseFailed(LOCK_PHASE, f"{lock} is held by process {pids[0]} for over {budget:g} s")
            if not told:
                context.log.info("another switch holds the lock (process %d): waiting for it", pids[0])
                told = True
            context.pause(context.config.poll_interval_secs)

    def _end_strays(self) -> None:
        """The holder may be a switch of ours that hangs, and whose record was lost with the state directory."""
        try:
            self._backend.end_strays()
        except CommandError as error:
            self._context.log.warning("%s", error)

    def _claim_lock(self) -> os.stat_result | None:
        """Nobody who is not root may turn a switch, a rollback or the guard away by taking the lock."""
        try:
            return locks.claim(self._context.config.switch_lock)
        except StorageError as error:
            self._context.log.warning("%s: any user can hold off a switch", error)
            return None

    def _await_start(self, record: Record) -> None:
        deadline = self._context.clock.monotonic() + START_SECS
        while record.started is None:
            if self._context.clock.monotonic() >= deadline:
                raise CommandError(f"the switch did not start within {START_SECS:g} s")
            self._context.pause(_START_STEP_SECS, fired=True)

    def stop(self, record: Record) -> None:
        """End a running switch and see its end.

        Raises:
            PhaseFailed: it does not end.
        """
        intent = record.intent
        self._context.log.warning("a switch of ours to %s (%s) still runs: ending it", intent.target, intent.rollout_id)
        try:
            self._backend.stop(record)
        except CommandError as error:
            raise PhaseFailed(FIRE_PHASE, f"can't end the running switch to {intent.target}: {error}") from error
