"""State after a restart: the log of every rollout folded through the mirror half of the state machine."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.journal.entries import Entry
from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.runtime.rollout.dedup import Journaled, retain_declared
from nixfleet_agent.runtime.rollout.rollouts import Host, Rollout
from nixfleet_agent.runtime.rollout.succession import handed_back, taken_over
from nixfleet_agent.state_machine import State, TransitionError, advance, timing
from nixfleet_agent.state_machine.events import ActivationCompleted, ProbeResult

log = logging.getLogger("nixfleet_agent.recovery")


@dataclass(frozen=True, slots=True)
class Guards:
    """What their records say: who was ``taken_back``, with the guard's words, and whose own agent is ``awaited``."""

    taken_back: Mapping[str, str] = field(default_factory=dict)
    awaited: str | None = None

    def told(self, rollout: Rollout) -> Rollout:
        """The rollout with what is known of its guard."""
        words = self.taken_back.get(rollout.rollout_id)
        return replace(rollout, taken_back=words, awaits_ready=rollout.rollout_id == self.awaited)


def recover(
    journal: Journal,
    current: str | None,
    monotonic: float,
    fired: Collection[str] = (),
    guards: Guards | None = None,
) -> Host:
    """Every rollout in the journal as its log proves it, and the active one among them.

    ``current`` is the closure that runs now, ``monotonic`` the start of this process's own measuring, ``fired`` are the
    rollouts of which the switch records say that a forward switch has started, ``guards`` what they say of those.
    """
    folded = (
        fold(journal.read(rollout_id), journal.hostname, journal.last_seq(rollout_id), monotonic)
        for rollout_id in journal.rollouts()
    )
    guards = guards or Guards()
    rollouts = [guards.told(rollout) for rollout in folded if rollout is not None]
    return host_of(rollouts, current, monotonic, fired)


def host_of(rollouts: Iterable[Rollout], current: str | None, monotonic: float, fired: Collection[str] = ()) -> Host:
    """The host with the rollouts as their logs prove them, each for itself; for the rest see ``recover``."""
    begun = (replace(rollout, begun=_begun(rollout, rollout.rollout_id in fired)) for rollout in rollouts)
    host = Host(MappingProxyType({rollout.rollout_id: rollout for rollout in begun}))
    if (unheard := _brought_unheard(host, current)) is not None:
        host = host.with_rollout(replace(unheard, begun=True))
    for rollout in host.rollouts.values():
        host = host.with_rollout(_continued(host, rollout, monotonic, rollout.rollout_id in fired))
    newest = max(host.rollouts.values(), key=_acceptance, default=None)
    if newest is None:
        return host
    host = replace(host, active_id=newest.rollout_id, newest_number=newest.accepted.number)
    # A chain of rollouts that never fired hands back one after the other.
    while (back := handed_back(host, current)) != host:
        host = back
    return host


def _begun(rollout: Rollout, fired: bool) -> bool:
    record = rollout.record
    if record.state is State.DEFERRED or record.switch_fired is False:
        return False
    over = record.switch_fired is True or record.activation_completed_at is not None
    return over or fired or (rollout.accepted.adopted and record.state is not State.PENDING)


def _brought_unheard(host: Host, current: str | None) -> Rollout | None:
    """The rollout that had started and whose target runs, although nothing says that its switch ever began.

    The disk did not take its deferral, and a boot has brought it. A newer one that still fetches answers for nothing.
    """
    brought = [rollout for rollout in host.rollouts.values() if rollout.record.target_closure == current]
    over = (State.FAILED, State.REVERTED)
    if any(rollout.begun and (rollout.record.state not in over or rollout.record.rollback_owed) for rollout in brought):
        return None
    started = [r for r in brought if r.record.state is State.ACTIVATING and r.record.activation_started_at is not None]
    return max((each for each in started if each.accepted.ran != current), key=_acceptance, default=None)


def _continued(host: Host, rollout: Rollout, monotonic: float, fired: bool) -> Rollout:
    """With the failures of the soak that it took over, where it had nothing to switch."""
    if fired or rollout.record.state is not State.SOAKING:
        return rollout
    earlier = taken_over(host, rollout)
    if earlier is None:
        return rollout
    passed = [name for name, probe in rollout.record.probes.items() if probe.last_pass_at is not None]
    return replace(rollout, timers=timing.taken_over(rollout.timers, earlier.timers, monotonic, passed))


def fold(entries: Sequence[Entry], hostname: str, last_seq: int, monotonic: float) -> Rollout | None:
    """One rollout from its log; None when seq 0 is gone, for then nothing says what it was allowed to do.

    An event that the state machine refuses is logged and skipped; its seq stays taken all the same.
    """
    accepted = _accepted(entries)
    if accepted is None:
        return None
    record = accepted.record(hostname)
    results: dict[str, Journaled] = {}
    last_stamp, soak_left, boot_id = accepted.accepted_at, None, None
    for entry in entries:
        if entry.seq <= accepted.adopted_seq:
            continue  # seq 0 itself, and what was told before the rollout was adopted: its state covers that
        try:
            event = entry.remote_event()
            record = advance(record, event, accepted.policy)
            proven = _proven(event.at, entry)
            # Stamps from before the soak prove nothing about it: the clock may have been set back since.
            last_stamp = proven if isinstance(event, ActivationCompleted) else max(last_stamp, proven)
            # What was measured counts before any stamp: a clock that was set ahead would end the soak at a restart.
            soak_left = soak_left if (measured := entry.soak_left) is None else measured
            boot_id = entry.boot_id if record.state is State.SOAKING else boot_id
            if isinstance(event, ProbeResult):
                results[event.probe_name] = Journaled(event, monotonic)
        except (ProtoError, TransitionError) as error:
            log.error(
                "skipped an event of the log: %s", error, extra={"rollout_id": entry.rollout_id, "seq": entry.seq}
            )
    record = replace(record, last_event_seq=max(record.last_event_seq, last_seq))
    timers = timing.resumed(record, last_stamp, monotonic, soak_left)
    return Rollout(record, accepted, timers, retain_declared(record, results), boot_id=boot_id)


def _proven(at: datetime, entry: Entry) -> datetime:
    return max(at, entry.created_at)


def _accepted(entries: Sequence[Entry]) -> Acceptance | None:
    first = entries[0] if entries else None
    if first is None or first.seq != 0:
        rollout_id = first.rollout_id if first else "?"
        log.error("the log of %s has no accepted Dispatch: its events are still sent, it is not resumed", rollout_id)
        return None
    try:
        accepted = Acceptance.parse(first.rollout_id, first.event)
    except ProtoError as error:
        log.error("the accepted Dispatch can't be read: %s", error, extra={"rollout_id": first.rollout_id})
        return None
    if not accepted.proven:
        log.info(
            "accepted by an older agent: its way back is what ran then (%s), which need not be proven",
            accepted.prior_closure or "not known",
            extra={"rollout_id": first.rollout_id},
        )
    return accepted


def _acceptance(rollout: Rollout) -> tuple[int, datetime]:
    return rollout.accepted.number, rollout.accepted.accepted_at
