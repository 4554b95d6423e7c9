"""How the activation pipeline came out, as the event that the reducer is told: pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from nixfleet_agent.activation.model import Completed, Deferred, Failed, RolledBack
from nixfleet_agent.state_machine import Event
from nixfleet_agent.state_machine.events import (
    LocalActivationCompleted,
    LocalActivationDeferred,
    LocalActivationFailed,
    LocalRollbackCompleted,
    Phase,
)


def event_of(outcome: Completed | Failed | Deferred | RolledBack, now: datetime, phases: Sequence[Phase]) -> Event:
    """The event of an outcome that came at ``now``, after the steps ``phases``."""
    steps = tuple(phases)
    match outcome:
        case Completed(observed, exit_code):
            return LocalActivationCompleted(
                observed_current_closure=observed, exit_code=exit_code, completed_at=now, phases=steps
            )
        case Failed():
            return LocalActivationFailed(
                exit_code=outcome.exit_code,
                stderr_tail=outcome.stderr_tail,
                failed_at=now,
                switch_fired=outcome.switch_fired,
                observed_at_failure=outcome.observed,
                phases=steps,
            )
        case Deferred(component, boot_id):
            return LocalActivationDeferred(component=component, deferred_at=now, boot_id=boot_id, phases=steps)
        case RolledBack(observed, exit_code):
            return LocalRollbackCompleted(
                reverted_to_closure=observed, exit_code=exit_code, completed_at=now, phases=steps
            )
