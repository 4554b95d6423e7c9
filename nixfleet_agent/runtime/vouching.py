"""Whether signed artifacts bear out what the control plane remembers of a rollout that this host has no log of."""

from __future__ import annotations

from nixfleet_agent.clock import Clock
from nixfleet_agent.proto.heartbeat import Snapshot
from nixfleet_agent.runtime import dispatch_decision
from nixfleet_agent.runtime.inputs import Acceptance
from nixfleet_agent.runtime.manifest_cache import ManifestCache


class Vouching:
    """Snapshots are unsigned hints: only one whose target CI signed for this host can be adopted."""

    def __init__(self, machine_id: str, cache: ManifestCache, clock: Clock) -> None:
        self._machine_id = machine_id
        self._cache = cache
        self._clock = clock

    def __call__(self, snapshot: Snapshot) -> Acceptance:
        """What the rollout rests on. It has no way back: what ran before it is not known here.

        Raises:
            TransportError, Refusal: fleet and manifest can't be had, or do not name this host with that target.
        """
        terms = self._cache.terms(snapshot.rollout_id, self._machine_id, snapshot.target_closure)
        return dispatch_decision.acceptance(
            snapshot.rollout_id,
            snapshot.target_closure,
            terms,
            soak_due_at=snapshot.soak_due_at or snapshot.dispatched_at,
            enqueued_at=snapshot.dispatched_at,
            received_at=self._clock.now(),
            current_closure=None,
        )
