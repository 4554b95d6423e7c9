"""Seq 0 of a rollout: what a Dispatch that passed every check, or a control plane's snapshot, is accepted as."""

from __future__ import annotations

from dataclasses import replace

from nixfleet_agent.journal import header
from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.proto.heartbeat import Snapshot
from nixfleet_agent.runtime.rollout.rollouts import Host
from nixfleet_agent.runtime.rollout.succession import rollback_target, why_not_now
from nixfleet_agent.state_machine import State

#: A snapshot with a seq above this is not adopted: it would leave no numbers for the host's own events.
ADOPTED_SEQ_LIMIT = 1 << 48


def accept(host: Host, acceptance: Acceptance, current: str | None, unreadable: str = "") -> Acceptance | str:
    """Seq 0 of a Dispatch that passed every check, or the reason why it must wait.

    ``unreadable`` says why there is no ``current``. Such a host waits, for its DispatchAck has to name what ran.
    """
    if current is None:
        return f"it can't be read which closure runs: {unreadable}"
    reason = why_not_now(host)
    if reason is not None:
        return reason
    prior, inherited = rollback_target(host, current)
    dispatched = replace(acceptance, current_closure=current)
    return header.accepted(dispatched, host.newest_number + 1, prior, inherited=inherited)


def adopt(acceptance: Acceptance, snapshot: Snapshot, current: str | None, durable: int) -> Acceptance | None:
    """Seq 0 of a rollout that a control plane says is open here, and that runs here; None when it is not to be.

    ``durable`` is the highest seq on disk: events that another agent left undelivered have used their numbers.
    """
    over = snapshot.state in (State.CONVERGED, State.FAILED, State.REVERTED)
    if over or snapshot.last_event_seq > ADOPTED_SEQ_LIMIT or current != acceptance.target_closure:
        return None
    return header.adopted(acceptance, snapshot.state, max(snapshot.last_event_seq, durable))
