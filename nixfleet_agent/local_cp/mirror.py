"""The mirror of one rollout on one host: events go through the agent's own ``step``, or are turned away. Pure.

Both sides run the same function, so a record here can only differ from the host's by events that have not
arrived. Those are the two cases that this module decides: a repeat, which is dropped without a word, and a gap,
which is held back until a replay has been asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus

from nixfleet_agent.state_machine import (
    Event,
    IllegalForState,
    InsertQuarantine,
    InvariantViolation,
    Policy,
    RolloutRecord,
    SeqRegression,
    step,
)


@dataclass(frozen=True, slots=True)
class Taken:
    """The event changed the record; ``quarantined`` is (channel, closure) where it was a rollback's end."""

    record: RolloutRecord
    quarantined: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Repeat:
    """An event that is here already: answered like a new one, changes nothing."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Events from ``missing_from`` on are not here; the one at hand is kept by the host until they are."""

    missing_from: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The record can't take the event; ``status`` is what the host is told."""

    status: HTTPStatus
    reason: str


def take(
    record: RolloutRecord, event: Event, *, now: datetime, policy: Policy, past_gaps: bool
) -> Taken | Repeat | Gap | Refused:
    """What one Remote event does to ``record``.

    Args:
        policy: ``onHealthFailure`` of the signed fleet for the record's channel.
        past_gaps: the missing events were asked for and can't come any more: go on without them.
    """
    if event.seq > record.last_event_seq + 1 and not past_gaps:
        return Gap(record.last_event_seq + 1)
    try:
        after, effects = step(record, event, now, policy)
    except SeqRegression:
        return Repeat()
    except InvariantViolation as error:
        return Refused(HTTPStatus.CONFLICT, str(error))
    except IllegalForState as error:
        return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
    quarantine = next((effect for effect in effects if isinstance(effect, InsertQuarantine)), None)
    return Taken(after, None if quarantine is None else (quarantine.channel, quarantine.closure))


def replay_from(
    named: str | None, reported: Mapping[str, int], before: Mapping[str, int] | None, here: Mapping[str, int]
) -> int | None:
    """The seq that a heartbeat's answer asks to be replayed from; None when nothing is lost.

    An event that was assigned since the last heartbeat may still be on its way; one that the last heartbeat
    knew of already and that is not here was lost, and so was everything where there is no last heartbeat.

    Args:
        named: the rollout that the heartbeat names; the answer can only mean that one, or all that are reported.
        reported: last assigned seq by rollout id, of this heartbeat.
        before: the same of the heartbeat before it; None when this database has never heard of the host.
        here: last seq that this database has, by rollout id; rollouts that it can't know are left out.
    """
    lost = [
        here[rollout_id] + 1
        for rollout_id, last in reported.items()
        if rollout_id in here
        and (named is None or rollout_id == named)
        and here[rollout_id] < (last if before is None else min(last, before.get(rollout_id, 0)))
    ]
    return min(lost, default=None)
