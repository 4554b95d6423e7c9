"""Which events were asked for again, and when to stop asking: memory only, because a restart may ask anew."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from nixfleet_agent.proto.heartbeat import Heartbeat
from nixfleet_agent.threads.clock import Clock

#: An agent replays a rollout at most once a minute. Events that did not come after this long and this many
#: requests are gone (their files were lost), and what comes after them is taken without them.
PATIENCE_SECS = 150.0
PATIENCE_ASKS = 3


@dataclass(slots=True)
class _Hole:
    """A gap in the events of one rollout on one host."""

    since: float
    asks: int = 0


class Replays:
    """Thread-safe; one entry for each gap that is open."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._holes: dict[tuple[str, str], _Hole] = {}

    def gap(self, hostname: str, rollout_id: str) -> None:
        """An event came whose predecessors are not here."""
        with self._lock:
            self._holes.setdefault((hostname, rollout_id), _Hole(self._clock.monotonic()))

    def arrived(self, hostname: str, rollout_id: str) -> None:
        """An event was taken: whatever was missing before it has come, or is given up."""
        with self._lock:
            self._holes.pop((hostname, rollout_id), None)

    def asked(self, beat: Heartbeat) -> None:
        """The answer to this heartbeat asks for a replay."""
        with self._lock:
            for rollout_id in beat.last_event_seq_by_rollout:
                hole = self._holes.get((beat.hostname, rollout_id))
                if hole is not None:
                    hole.asks += 1

    def given_up(self, hostname: str, rollout_id: str) -> bool:
        """Whether the missing events were asked for often and long enough."""
        with self._lock:
            hole = self._holes.get((hostname, rollout_id))
            if hole is None:
                return False
            return hole.asks >= PATIENCE_ASKS and self._clock.monotonic() - hole.since >= PATIENCE_SECS

    def expected(self, beat: Heartbeat, before: Mapping[str, int]) -> dict[str, int]:
        """Seqs that must be here by now: those of the heartbeat before, and all of a rollout with a known gap."""
        with self._lock:
            return {
                rollout_id: last if (beat.hostname, rollout_id) in self._holes else before.get(rollout_id, 0)
                for rollout_id, last in beat.last_event_seq_by_rollout.items()
            }
