"""Queues events again that a control plane says it has lost; at most once a minute and rollout, whatever it says."""

from __future__ import annotations

import logging

from nixfleet_agent.errors import StorageError
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.runtime.rollout.inputs import ReplayRequested
from nixfleet_agent.threads.clock import Clock

log = logging.getLogger("nixfleet_agent.reducer")

#: At most one replay per rollout in this many seconds: each moves its whole log, and a hint costs nothing to send.
REPLAY_INTERVAL = 60.0


class Replays:
    """Owned by the reducer, which is the one that appends to the journal."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._last: dict[str, float] = {}

    def run(self, request: ReplayRequested) -> None:
        """Move what was asked for back into the queue; a rollout that nobody knows has nothing to move."""
        now = self._clock.monotonic()
        self._last = {rollout_id: at for rollout_id, at in self._last.items() if now - at < REPLAY_INTERVAL}
        for rollout_id in request.rollout_ids:
            if rollout_id in self._last:
                continue
            self._last[rollout_id] = now
            fields = {"rollout_id": rollout_id}
            try:
                moved = self._journal.replay(rollout_id, request.seq)
            except StorageError as error:
                log.error("replay stopped: %s", error, extra=fields)
                continue
            log.info("replay from seq %d: %d events queued again", request.seq, moved, extra=fields)
