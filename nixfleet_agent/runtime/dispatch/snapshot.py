"""What signed artifacts say of a rollout that only a control plane's hint names."""

from __future__ import annotations

from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.proto.heartbeat import Snapshot
from nixfleet_agent.runtime.dispatch.decision import acceptance
from nixfleet_agent.runtime.services import Services


def verify_snapshot(services: Services, snapshot: Snapshot) -> Acceptance:
    """The Dispatch that must have been before ``snapshot``; raises as ``ManifestCache.terms``."""
    now = services.clock.now()
    terms = services.cache.terms(snapshot.rollout_id, services.config.machine_id, snapshot.target_closure)
    return acceptance(
        snapshot.rollout_id,
        snapshot.target_closure,
        terms,
        soak_due_at=snapshot.soak_due_at or now,
        received_at=now,
        current_closure=services.read_current(),
    )
