"""Makes an event durable however long the disk refuses it, while inputs are still taken so that a failure is seen."""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable

from nixfleet_agent.errors import StorageError
from nixfleet_agent.journal.entries import Entry
from nixfleet_agent.runtime.rollout.inputs import AdvanceTick, HostEvent, ManifestSetUpdated, ReducerInput
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.state_machine import Event, ProbeStatus
from nixfleet_agent.state_machine.events import (
    ActivationCompleted,
    ActivationFailed,
    Failed,
    ProbeFailureFirst,
    ProbeResult,
    RollbackComplete,
)
from nixfleet_agent.telemetry.status import JOURNAL_ERROR

log = logging.getLogger("nixfleet_agent.reducer")

#: Longest without a sign of life, whatever the waits between two tries are set to, in seconds.
NAP = 30.0
#: Inputs taken off the queue while the disk refuses an event; more than this stay in the queue and slow workers down.
STASH = 256


class RetryingEventWriter:
    """The reducer's way to the journal and its source of inputs: what was stashed meanwhile comes first."""

    def __init__(self, services: Services, alive: Callable[[], None]) -> None:
        self._journal = services.journal
        self._reserve = services.reserve
        self._inputs = services.inputs
        self._board = services.board
        self._shutdown = services.shutdown
        self._clock = services.clock
        self._backoff = services.backoff
        self._alive = alive
        self._stash: deque[ReducerInput] = deque()

    def next_input(self, timeout: float) -> ReducerInput | None:
        """The next input in the order of arrival; None when ``timeout`` seconds are over or at shutdown."""
        return self._stash.popleft() if self._stash else self._inputs.get(timeout)

    def write(self, entry: Entry, event: Event) -> bool:
        """Write until the disk takes it: True. False when shutdown came first, and then nothing may act on it.

        A failure's event may use the reserve, and so may what stands before one in the queue: otherwise a release
        that fills the disk could not be taken back.
        """
        backoff = self._backoff()
        refused = False
        while True:
            try:
                self._journal.append(entry)
            except StorageError as error:
                if not refused:
                    log.error("an event is not durable, nothing acts on it: %s", error, extra={"seq": entry.seq})
                refused = True
                self._board.publish(JOURNAL_ERROR, str(error))
                out_of_room = error.errno in (errno.ENOSPC, errno.EDQUOT)
            else:
                self._written(entry, refused)
                return True
            if out_of_room and (is_urgent(event) or self._failure_waits()) and self._reserve.release():
                continue
            if not self._collect_inputs(backoff.next()):
                return False

    def _written(self, entry: Entry, refused: bool) -> None:
        """The disk took it; where the reserve was given up, it is made again as soon as there is room."""
        self._board.count("events_queued", kind=entry.kind)
        if refused:
            log.info("the journal can be written again", extra={"seq": entry.seq})
            self._board.publish(JOURNAL_ERROR, None)
        self._reserve.ensure()

    def _collect_inputs(self, seconds: float) -> bool:
        """Wait, stashing what comes in; back early when it is a failure. False at shutdown."""
        until = self._clock.monotonic() + seconds
        while not self._shutdown.is_set:
            self._alive()
            left = until - self._clock.monotonic()
            if left <= 0:
                return True
            if len(self._stash) >= STASH:
                self._shutdown.wait(min(left, NAP))
                continue
            item = self._inputs.get(min(left, NAP))
            if item is None or isinstance(item, (AdvanceTick, ManifestSetUpdated)):
                continue
            self._stash.append(item)
            if isinstance(item, HostEvent) and is_urgent(item.event):
                return True
        return False

    def _failure_waits(self) -> bool:
        return any(isinstance(item, HostEvent) and is_urgent(item.event) for item in self._stash)


def is_urgent(event: Event) -> bool:
    """Events of a failure and of its rollback, and the one that they wait for.

    A release that fills the disk with its switch is found out by probes, which begin with ActivationCompleted.
    """
    if isinstance(event, ProbeResult):
        return event.status is ProbeStatus.FAIL
    return isinstance(event, (ActivationCompleted, ActivationFailed, ProbeFailureFirst, Failed, RollbackComplete))
