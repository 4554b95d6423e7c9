"""The dead-man guard: takes the host back by itself when a release leaves no agent that could.

A record of direction ``guard`` whose wrapper starts after ``guard_secs``. Disarming is withdrawing that record,
so the guard either acts or is disarmed, never both; its ``started`` file is the mark that it has acted. A release that
changes the agent itself is guarded once more, until its agent is ready.

Like a rollback, it leaves PID 1, D-Bus and the kernel to a boot: then it writes the boot entry alone.
"""

from __future__ import annotations

import shlex

from nixfleet_agent import durable
from nixfleet_agent.activation import inhibitors
from nixfleet_agent.activation.backends.base import SHELL, Backend
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import CommandError, PhaseFailed
from nixfleet_agent.activation.host import on_disk, read_current, store_path
from nixfleet_agent.activation.model import Forward
from nixfleet_agent.activation.records import GUARD, HAND_OVER, Record, Records
from nixfleet_agent.activation.scripts import GUARD as GUARD_SCRIPT
from nixfleet_agent.activation.switches import Job, Status, Switches
from nixfleet_agent.activation.verify_poll import TAIL_BYTES, follow_script
from nixfleet_agent.errors import StorageError

PHASE, ARM_PHASE = "guard", "guard-arm"
#: How long the release's own agent may take to be ready, in seconds, from the end of the one before it.
SUCCESSOR_SECS = 300.0


class Guard:
    """Arms, disarms and recognises the guard of this host."""

    def __init__(self, context: Context, records: Records, backend: Backend, switches: Switches) -> None:
        self._context = context
        self._records = records
        self._backend = backend
        self._switches = switches

    def arm(self, intent: Forward, forward: Record) -> None:
        """Make ready to go back from the switch of ``forward``, unless nothing is to be taken back or it is off.

        What stood for the release before it ends here.

        Raises:
            PhaseFailed: phase ``guard-arm``; a switch must not be fired without it.
            PhaseInterrupted: shutdown while a guard that acts is awaited.
        """
        try:
            self.disarm()
        except StorageError as error:
            raise PhaseFailed(ARM_PHASE, str(error)) from error
        unit = f"{forward.intent.unit}.service" if self._backend.method == "systemd-run" else "-"
        self._arm(intent, self._verb(intent), (str(forward.path), unit, "-"), self._context.config.guard_secs)

    def arm_for_successor(self, intent: Forward, agent: str) -> None:
        """Make ready to go back unless the agent that unit ``agent`` starts is ready in time; the time begins anew.

        Raises:
            PhaseFailed: phase ``guard-arm``: the agent must not leave; ``guard``: one has acted for it, or does.
            StorageError: the guard before it can't be withdrawn.
        """
        for record in self._all():
            if self._withdraw(record):
                continue
            # Not awaited: the caller can't be interrupted, and finds out at its next try what came of it.
            if record.intent.rollout_id == intent.rollout_id or self._switches.status(record) is Status.RUNNING:
                raise PhaseFailed(PHASE, f"the guard takes the host back to {record.intent.target}")
        seconds = min(SUCCESSOR_SECS, self._context.config.guard_secs)
        self._arm(intent, HAND_OVER, ("-", "-", agent), seconds)

    def _arm(self, intent: Forward, action: str, ends: tuple[str, str, str], seconds: float) -> None:
        """``ends`` are the record and the unit of the switch that is to be ended, and the agent's unit."""
        if not intent.takes_back or intent.way_back is None or seconds == 0:
            return
        prior = on_disk(self._context.config.store_root, intent.way_back)
        script = str(self._records.folder / GUARD_SCRIPT)
        goal = [str(self._context.config.profile), store_path(intent.way_back)]
        command = [SHELL, script, *ends, *goal, *self._backend.command(prior, self._verb(intent))]
        try:
            record = self._switches.prepare(Job(intent.rollout_id, GUARD, intent.way_back, action))
            if action == HAND_OVER:  # scripts/rearm.sh arms it anew after a boot
                durable.write(record.path / HAND_OVER, f"{seconds:g} {shlex.join(command)}\n".encode())
            self._switches.start(record, command, delay=seconds)
        except (StorageError, PhaseFailed) as error:
            raise PhaseFailed(ARM_PHASE, str(error)) from error

    def _verb(self, intent: Forward) -> str:
        """How the way back is gone: it may be older than what ran before this release, and differ in more."""
        if intent.way_back is None:
            return "switch"
        ends = (read_current(self._context.config), intent.target)
        inhibited = any(inhibitors.under(self._context, running, intent.way_back) for running in ends)
        return "boot" if inhibited else "switch"

    def disarm(self, *, keep_hand_over: bool = False) -> None:
        """No guard acts after this returns; one that has begun is awaited, and its mark stays.

        ``keep_hand_over``: but one that waits for a release's own agent, which runs until another switch begins.

        Raises:
            StorageError: it can't be withdrawn.
            PhaseInterrupted: shutdown while one is awaited.
        """
        for record in self._all():
            if keep_hand_over and record.intent.action == HAND_OVER and record.started is None:
                continue
            if not self._withdraw(record) and self._switches.status(record) is Status.RUNNING:
                self._await(record)

    def mark(self, rollout_id: str) -> Record | None:
        """The record of a guard that has acted for this rollout."""
        marked = [r for r in self._all() if r.intent.rollout_id == rollout_id and r.started is not None]
        return marked[-1] if marked else None

    def raise_if_acted(self, rollout_id: str) -> None:
        """Raises PhaseFailed, phase ``guard``, once the guard has acted (and ended)."""
        record = self.mark(rollout_id)
        if record is None:
            return
        self.disarm()
        said = f"the guard has taken the host back to {record.intent.target}\n{record.output(TAIL_BYTES)}"
        raise PhaseFailed(PHASE, said.strip())

    def armed_for(self) -> str | None:
        """The rollout whose guard waits to act, or None."""
        waiting = self._records.armed_guards()
        return waiting[-1].intent.rollout_id if waiting else None

    def _withdraw(self, record: Record) -> bool:
        """Make sure that it never acts, and forget it; False when it has begun (raises StorageError)."""
        if not record.withdraw():
            return False
        if self._records.same_boot(record):  # a reboot has ended an older one's wait
            self._cancel(record)
        self._records.remove(record)
        return True

    def _cancel(self, record: Record) -> None:
        try:
            self._backend.cancel(record)
        except CommandError as error:
            self._context.log.warning("%s; the guard is withdrawn and can't act any more", error)

    def _await(self, record: Record) -> None:
        self._context.log.warning("the guard is taking the host back to %s: waiting for it", record.intent.target)
        try:
            follow_script(self._context, self._switches, record, PHASE)
        except PhaseFailed as failure:
            self._context.log.error("%s", failure)
            if self._switches.status(record) is Status.RUNNING:
                self._switches.stop(record)

    def _all(self) -> list[Record]:
        return [record for record in self._records.all() if record.intent.direction == GUARD]
