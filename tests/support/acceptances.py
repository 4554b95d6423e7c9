"""An accepted rollout for tests that look at a few of its fields only."""

from __future__ import annotations

from typing import Any

from nixfleet_agent.journal.header import Acceptance
from tests.state_machine.machine import PRIOR, ROLLBACK, T0, TARGET


def acceptance(rollout_id: str, **changes: Any) -> Acceptance:
    """The first of a host that runs ``PRIOR``, accepted and due at ``T0``, with some fields changed."""
    values: dict[str, Any] = {
        "number": 1,
        "target_closure": TARGET,
        "prior_closure": PRIOR,
        "soak_due_at": T0,
        "soak_floor": 5,
        "policy": ROLLBACK,
        "accepted_at": T0,
        "manifest_hash": "m",
        "manifest_signed_at": T0,
        "fleet_hash": "f",
        "fleet_signed_at": T0,
        "marks": {},
    }
    return Acceptance(rollout_id=rollout_id, **{**values, **changes})
