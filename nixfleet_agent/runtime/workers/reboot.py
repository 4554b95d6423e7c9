"""Reboot worker: says that a reboot is due, and where the configuration lets it, reboots the host: once."""

from __future__ import annotations

import os
from pathlib import Path

from nixfleet_agent.activation.context import child_environment
from nixfleet_agent.activation.errors import PhaseInterrupted
from nixfleet_agent.activation.records import Records
from nixfleet_agent.config.model import RebootConfig
from nixfleet_agent.errors import StorageError
from nixfleet_agent.reboots import required
from nixfleet_agent.reboots.decision import (
    Due,
    Facts,
    Waiting,
    WaitsFor,
    blocked_by,
    busy_with,
    due_reboot,
    status_of,
    users_have,
    why_not_yet,
)
from nixfleet_agent.reboots.host import RebootHost
from nixfleet_agent.reboots.ledger import RebootLedger
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.telemetry.status import ROLLOUTS, SWITCHING
from nixfleet_agent.threads.worker import Worker
from nixfleet_agent.trouble import Trouble

#: Seconds between two looks while a reboot is due, and while none is: each look is a wake-up.
LOOK_SECS, IDLE_SECS = 5.0, 15.0


class RebootWorker(Worker):
    """``reconfigure`` is called by the main thread; what is read is replaced whole."""

    name = "reboot"

    def __init__(self, services: Services) -> None:
        super().__init__(services.shutdown, services.clock)
        self._config = services.config.reboot
        self._board = services.board
        self._hold = services.hold
        self._maintenance = services.maintenance
        self._boot_id = services.platform.machine.boot_id()
        self._records = Records(services.config.state_dir, self._boot_id)
        self._ledger = RebootLedger(services.config.state_dir)
        environment = child_environment(os.environ, services.config.activation.store_root)
        self._host = RebootHost(services.clock, environment, self._check, services.platform.machine.run)
        self._due: Due | None = None
        self._warned_at: float | None = None
        self._refused: str | None = None
        self._file_trouble = Trouble(self.log, "can't say in a file that a reboot is due")

    def reconfigure(self, config: RebootConfig) -> None:
        """Take other rules from now on."""
        self._config = config

    def run(self) -> None:
        while not self.shutdown.is_set:
            self.alive()
            try:
                self.look()
            except PhaseInterrupted:
                return
            self.shutdown.wait(IDLE_SECS if self._due is None else LOOK_SECS)

    def look(self) -> None:
        """One look: what is due is said, and done where nothing stands in the way (raises PhaseInterrupted)."""
        config, board = self._config, self._board
        if board.read(ROLLOUTS) is None:
            return
        due = due_reboot(board.rollouts, board.get("rollback"), self._boot_id)
        if due != self._due:
            self._due, self._warned_at, self._refused = due, None, None
        self._tell_file(config, due)
        if due is None:
            board.publish("reboot", None)
            return
        waiting = self._waits_for(config, due) or self._ask_host(config, due) or self._reboot(due)
        board.publish("reboot", status_of(due, config.after_deferred, waiting))

    def _waits_for(self, config: RebootConfig, due: Due) -> Waiting | None:
        view, board = self._board.rollouts, self._board
        try:
            facts = Facts(
                now=self.clock.now(),
                after_deferred=config.after_deferred,
                boot_id=self._boot_id,
                asked=self._ledger.last(due.rollout_id, due.direction),
                refused=self._refused,
                busy=busy_with(due, view, board.read(SWITCHING)),
                guard=next((each.intent.rollout_id for each in self._records.armed_guards()), None),
                hold=self._hold.current(),
                maintenance=self._maintenance.status(),
            )
        except StorageError as error:
            return Waiting(WaitsFor.DISK, str(error))
        waiting = why_not_yet(due, facts)
        if waiting is not None:
            self._call_off(waiting)
        return waiting

    def _ask_host(self, config: RebootConfig, due: Due) -> Waiting | None:
        """Programs that must not be interrupted are waited for, people get their time."""
        if waiting := blocked_by(self._host.blockers()):
            self._call_off(waiting)
            return waiting
        users = self._host.users()
        if not users or not config.warn_secs:
            return None
        now = self.clock.monotonic()
        if self._warned_at is None:
            self._warned_at = now
            self._warn(f"This host reboots in {config.warn_secs:.0f} s: {due.rollout_id} needs it for {due.component}.")
        left = self._warned_at + config.warn_secs - now
        return users_have(left, users, self.clock.now()) if left > 0 else None

    def _reboot(self, due: Due) -> Waiting:
        """Written down before it is asked for, so that no crash makes two of it."""
        fields = {"rollout_id": due.rollout_id, "closure": due.closure}
        try:
            self._ledger.note(due.rollout_id, due.direction, self._boot_id, self.clock.now())
        except StorageError as error:
            return Waiting(WaitsFor.DISK, str(error))
        self._maintenance.accepted(due.rollout_id)
        self.log.warning("rebooting this host: %s needs it for %s", due.rollout_id, due.component, extra=fields)
        self._refused = self._host.reboot()
        if self._refused is not None:
            self.log.error("the reboot was refused: %s", self._refused, extra=fields)
        answer = f"was refused: {self._refused}" if self._refused else "was asked for"
        return Waiting(WaitsFor.SHUTDOWN, f"the reboot {answer}")

    def _call_off(self, waiting: Waiting) -> None:
        if self._warned_at is not None:
            self._warned_at = None
            if waiting.waits_for is not WaitsFor.SHUTDOWN:
                self._warn(f"The reboot of this host is put off: {waiting.reason}.")

    def _warn(self, text: str) -> None:
        self.log.info("told who is logged in: %s", text)
        if problem := self._host.warn(text):
            self.log.warning("can't warn who is logged in: %s", problem)

    def _tell_file(self, config: RebootConfig, due: Due | None) -> None:
        if not config.required_file:
            return
        path = Path(config.required_file)
        try:
            if due is None:
                required.withdraw(path)
            else:
                required.require(path, due.component.split(", "))
        except StorageError as error:
            self._file_trouble.failed(error)
        else:
            self._file_trouble.over()

    def _check(self) -> None:
        self.alive()
        if self.shutdown.is_set:
            raise PhaseInterrupted("shutdown")
