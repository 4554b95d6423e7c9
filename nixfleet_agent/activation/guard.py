"""The dead-man guard: takes the host back by itself when a release leaves no agent that could.

A record of direction ``guard`` whose wrapper starts after ``guard_secs``. Disarming is withdrawing that record,
so the guard either acts or is disarmed, never both; its ``started`` file is the mark that it has acted.
"""

from __future__ import annotations

from nixfleet_agent.activation.backends.base import SHELL, Backend
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import CommandError, PhaseFailed
from nixfleet_agent.activation.host import on_disk, store_path
from nixfleet_agent.activation.model import Forward
from nixfleet_agent.activation.records import GUARD, Record, Records
from nixfleet_agent.activation.scripts import GUARD as GUARD_SCRIPT
from nixfleet_agent.activation.switches import Job, Status, Switches
from nixfleet_agent.activation.verify_poll import TAIL_BYTES, follow_script
from nixfleet_agent.errors import StorageError

PHASE = "guard"


class Guard:
    """Arms, disarms and recognises the guard of this host."""

    def __init__(self, context: Context, records: Records, backend: Backend, switches: Switches) -> None:
        self._context = context
        self._records = records
        self._backend = backend
        self._switches = switches

    def arm(self, intent: Forward, forward: Record) -> None:
        """Make ready to go back from the switch of ``forward``, unless nothing is to be taken back or it is off.

        Raises:
            PhaseFailed: phase ``guard-arm``; a switch must not be fired without it.
        """
        seconds = self._context.config.guard_secs
        if not intent.takes_back or intent.way_back is None or seconds == 0:
            return
        prior = on_disk(self._context.config.store_root, intent.way_back)
        unit = f"{forward.intent.unit}.service" if self._backend.method == "systemd-run" else "-"
        script = str(self._records.folder / GUARD_SCRIPT)
        ends = [str(self._context.config.profile), store_path(intent.way_back)]
        command = [SHELL, script, str(forward.path), unit, *ends, *self._backend.command(prior, "switch")]
        try:
            record = self._switches.prepare(Job(intent.rollout_id, GUARD, intent.way_back, "switch"))
            self._switches.start(record, command, delay=seconds)
        except (StorageError, PhaseFailed) as error:
            raise PhaseFailed("guard-arm", str(error)) from error

    def disarm(self) -> None:
        """No guard acts after this returns; one that has begun is awaited, and its mark stays.

        Raises:
            StorageError: it can't be withdrawn.
            PhaseInterrupted: shutdown while one is awaited.
        """
        for record in self._all():
            if record.withdraw():
                if self._records.same_boot(record):  # a reboot has ended an older one's wait
                    self._cancel(record)
                self._records.remove(record)
            elif self._switches.status(record) is Status.RUNNING:
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
        waiting = [r for r in self._all() if r.started is None and self._records.same_boot(r)]
        return waiting[-1].intent.rollout_id if waiting else None

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
