"""Keeps a Dispatch waiting while no maintenance window is open, unless an operator lets this one through."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from nixfleet_agent.config.model import MaintenanceConfig
from nixfleet_agent.config.windows import Windows, overlapping, parse_windows
from nixfleet_agent.errors import StorageError
from nixfleet_agent.operator.run_now import RunNowStore
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.threads.clock import Clock

log = logging.getLogger("nixfleet_agent.maintenance")


@dataclass(frozen=True, slots=True)
class MaintenanceStatus:
    """The status section ``maintenance``; ``run_now`` is the reason by which the next rollout need not wait."""

    open: bool
    changes_at: datetime | None
    windows: tuple[str, ...]
    run_now: str | None


class MaintenanceGate:
    """Asked by the long poll worker, reconfigured by the main thread; what is read is replaced whole."""

    def __init__(self, config: MaintenanceConfig, store: RunNowStore, clock: Clock) -> None:
        """Raises WindowError."""
        self._windows = _windows(config)
        self._store = store
        self._clock = clock

    def reconfigure(self, config: MaintenanceConfig) -> None:
        """Take other windows from now on (raises WindowError: then the old ones stand)."""
        before, self._windows = self._windows, _windows(config)
        if self._windows != before:
            self.say_overlaps()

    def say_overlaps(self) -> None:
        """Log which windows are open together, for the start: harmless, and seldom meant."""
        for one, other in overlapping(self._windows):
            log.warning("the maintenance windows %r and %r overlap: harmless, if it is meant", one, other)

    def reason(self) -> str | None:
        """Why a new activation has to wait now, or None."""
        now, windows = self._clock.now(), self._windows
        if windows.is_open(now) or self._store.in_force() is not None:
            return None
        opens = windows.next_change(now)
        return (
            f"no maintenance window is open; the next one opens at {format_time(opens)}"
            if opens
            else ("no maintenance window is open, and none opens within two weeks")
        )

    def accepted(self, rollout_id: str) -> None:
        """A rollout was accepted, or takes its reboot: outside the windows, an operator's word was used up by it."""
        if self._windows.is_open(self._clock.now()):
            return
        try:
            used = self._store.use(rollout_id)
        except StorageError as error:
            log.warning("run-now is not noted as used: %s", error, extra={"rollout_id": rollout_id})
            return
        if used is not None:
            fields = {"rollout_id": rollout_id, "reason": used.reason}
            log.warning("begins outside the maintenance windows by an operator's word", extra=fields)

    def status(self) -> MaintenanceStatus | None:
        """For status; None where no windows are configured."""
        windows = self._windows
        if not windows:
            return None
        now, asked = self._clock.now(), self._store.in_force()
        texts = tuple(window.text for window in windows.windows)
        return MaintenanceStatus(windows.is_open(now), windows.next_change(now), texts, asked.reason if asked else None)


def _windows(config: MaintenanceConfig) -> Windows:
    return parse_windows(config.windows, config.time_zone)
