"""What the names of the journal's files say: which events wait, and the highest seq of each rollout. No I/O.

The reducer adds, the outbound worker takes away, commands look: every method may be called from any thread.
"""

from __future__ import annotations

import heapq
import threading

from nixfleet_agent.journal.entries import Name
from nixfleet_agent.proto.heartbeat import MAX_SEQ


class JournalIndex:
    """One per journal; its lock is held for a look at memory and never across I/O."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: dict[str, dict[int, str]] = {}
        self._order: dict[str, list[int]] = {}
        self._last_seq: dict[str, int] = {}
        self._rejected = 0

    def add(self, name: Name) -> None:
        """An event waits for delivery; again is harmless."""
        with self._lock:
            kinds = self._kinds.setdefault(name.rollout_id, {})
            if name.seq not in kinds:
                kinds[name.seq] = name.kind
                heapq.heappush(self._order.setdefault(name.rollout_id, []), name.seq)
            self._last_seq[name.rollout_id] = max(name.seq, self._last_seq.get(name.rollout_id, 0))

    def seen(self, rollout_id: str, seq: int) -> None:
        """The seq is taken, wherever its file lies."""
        with self._lock:
            self._last_seq[rollout_id] = max(seq, self._last_seq.get(rollout_id, 0))

    def take(self, rollout_id: str, seq: int) -> None:
        """The event waits no more; its seq stays taken."""
        with self._lock:
            kinds, order = self._kinds.get(rollout_id, {}), self._order.get(rollout_id, [])
            kinds.pop(seq, None)
            while order and order[0] not in kinds:
                heapq.heappop(order)
            if not kinds:
                self._kinds.pop(rollout_id, None)
                self._order.pop(rollout_id, None)

    def rejected(self, more: int = 0, *, counted: int | None = None) -> int:
        """How many entries the control plane refused, ``more`` of them just now; ``counted`` anew on disk."""
        with self._lock:
            self._rejected = (self._rejected if counted is None else counted) + more
            return self._rejected

    def forget(self, rollout_id: str) -> None:
        """Nothing is left of the rollout."""
        with self._lock:
            self._last_seq.pop(rollout_id, None)

    def first(self, rollout_id: str) -> Name | None:
        """The waiting event with the lowest seq."""
        with self._lock:
            order, kinds = self._order.get(rollout_id), self._kinds.get(rollout_id)
            return Name(order[0], rollout_id, kinds[order[0]]) if order and kinds else None

    def waiting(self) -> dict[str, int]:
        """Rollouts with waiting events, and how many."""
        with self._lock:
            return {rollout: len(kinds) for rollout, kinds in self._kinds.items()}

    def queued(self, rollout_id: str) -> dict[int, str]:
        """The kinds of a rollout's waiting events by seq."""
        with self._lock:
            return dict(self._kinds.get(rollout_id, {}))

    def is_queued(self, rollout_id: str, seq: int) -> bool:
        """Whether that event waits."""
        with self._lock:
            return seq in self._kinds.get(rollout_id, ())

    def is_news(self, name: Name) -> bool:
        """Whether a file of that name in the queue is one that nobody here put there.

        One above the last seq of a rollout that is known is just being made durable, and not to be sent before.
        """
        with self._lock:
            queued = name.seq in self._kinds.get(name.rollout_id, ())
            return not queued and name.seq <= self._last_seq.get(name.rollout_id, MAX_SEQ)

    def last_seqs(self) -> dict[str, int]:
        """The highest seq of every rollout that has entries."""
        with self._lock:
            return dict(self._last_seq)

    def last_seq(self, rollout_id: str) -> int | None:
        """The highest seq over all names of the rollout; None when it has none."""
        with self._lock:
            return self._last_seq.get(rollout_id)
