"""Queues events again that a control plane has lost; at most once a minute and rollout, whatever it says.

It asks by a `Replay-From`, by a snapshot that ends before our log does, or by a Dispatch of a rollout that ran here
already. None of the three is signed, and none can do more than have the same bytes sent again.
"""

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

    def behind(self, rollout_id: str, seq: int, last_seq: int) -> None:
        """The control plane's log of a rollout ends at ``seq``, ours at ``last_seq``."""
        if seq < last_seq:
            self.run(ReplayRequested((rollout_id,), seq + 1))

    def run(self, request: ReplayRequested) -> None:
        """Move what was asked for back into the queue; a rollout that nobody knows has nothing to move."""
        now = self._clock.monotonic()
        self._last = {rollout_id: at for rollout_id, at in self._last.items() if now - at < REPLAY_INTERVAL}
        for rollout_id in request.rollout_ids:
            if rollout_id in self._last:
                continue
            fields = {"rollout_id": rollout_id}
            try:
                moved = self._journal.replay(rollout_id, request.seq)
            except StorageError as error:
                self._last[rollout_id] = now
                log.error("replay stopped: %s", error, extra=fields)
                continue
            if moved:
                # One that found nothing to move costs a look into a folder, and must not hold up the next for a minute:
                # what a snapshot lacks is often still on its way.
                self._last[rollout_id] = now
                log.info("replay from seq %d: %d events queued again", request.seq, moved, extra=fields)
