"""All rollouts of this host as one immutable value, and the rules between them: acceptance, superseding, hand-back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType

from nixfleet_agent.journal.header import Accepted
from nixfleet_agent.runtime.rollout.dedup import Journaled
from nixfleet_agent.state_machine import RolloutRecord, State
from nixfleet_agent.state_machine.timing import Timers

#: Sent logs are kept for this many of the newest rollouts, and for this long.
KEPT_ROLLOUTS = 20
KEPT_FOR = timedelta(days=7)
#: The most that an unsigned snapshot may raise a seq by: enough for a lost log, too little to exhaust the numbers.
SEQ_RAISE_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout with what this process measured of it; ``probes_started``: its probes ran in this process."""

    record: RolloutRecord
    accepted: Accepted
    timers: Timers = field(default_factory=Timers)
    last_results: Mapping[str, Journaled] = field(default_factory=lambda: MappingProxyType({}))
    probes_started: bool = False

    @property
    def rollout_id(self) -> str:
        return self.record.rollout_id

    def unprobed(self) -> Rollout:
        """As it is after a time in which no probe looked at it: what they said before proves nothing about now."""
        timers = replace(self.timers, probes=MappingProxyType({}))
        return replace(self, timers=timers, last_results=MappingProxyType({}), probes_started=False)


@dataclass(frozen=True, slots=True)
class Host:
    """Rollouts by id, and which one is active; the newest number ever given out."""

    rollouts: Mapping[str, Rollout] = field(default_factory=lambda: MappingProxyType({}))
    active_id: str | None = None
    newest_number: int = 0

    @property
    def active(self) -> Rollout | None:
        """The only rollout that ticks, converges, fails or fires anything."""
        return self.rollouts.get(self.active_id) if self.active_id else None

    def with_rollout(self, rollout: Rollout) -> Host:
        """This host with one rollout replaced or added."""
        return replace(self, rollouts=MappingProxyType({**self.rollouts, rollout.rollout_id: rollout}))

    def without(self, rollout_id: str) -> Host:
        """This host once a rollout's log was pruned."""
        left = {key: rollout for key, rollout in self.rollouts.items() if key != rollout_id}
        return replace(self, rollouts=MappingProxyType(left))

    def accepting(self, accepted: Accepted, hostname: str) -> Host:
        """This host with a new rollout that supersedes whatever was active."""
        host = self.with_rollout(Rollout(accepted.record(hostname), accepted))
        return replace(host, active_id=accepted.rollout_id, newest_number=max(accepted.number, self.newest_number))

    def reported(self) -> tuple[str, ...]:
        """Rollouts whose last seq a heartbeat names: the newest and every one that is not over."""
        newest = max(self.rollouts.values(), key=_age, default=None)
        open_ones = (r for r in self.rollouts.values() if not r.record.terminal or r is newest)
        return tuple(rollout.rollout_id for rollout in open_ones)


def _age(rollout: Rollout) -> tuple[int, datetime]:
    return rollout.accepted.number, rollout.accepted.accepted_at


def rollback_target(host: Host, current: str | None) -> tuple[str | None, bool]:
    """The way back of a Dispatch accepted now: what an unfinished rollback owes (True: inherited), else what runs.

    The heir of that rollback may be superseded in its turn before it has switched: as long as what runs is a closure
    that failed here and was never taken back, it is no place to go back to. One that came to run again by a later
    rollout is: that debt is history.
    """
    active = host.active
    if active is not None and active.record.rollback_owed:
        return active.record.prior_closure, True
    brought = [r for r in host.rollouts.values() if r.record.target_closure == current and _ran(r.record)]
    latest = max(brought, key=_age, default=None)
    if latest is not None and latest.record.rollback_owed:
        return latest.record.prior_closure, True
    return current, False


def _ran(record: RolloutRecord) -> bool:
    return record.rollback_owed or record.activation_completed_at is not None


def why_not_now(host: Host, attempted: str | None) -> str | None:
    """The reason why a new Dispatch must wait; ``attempted`` is the rollout whose rollback was tried and failed."""
    active = host.active
    if active is None or not active.record.rollback_owed or active.rollout_id == attempted:
        return None
    return f"the rollback of {active.rollout_id} comes first"


def handed_back(host: Host, current: str | None) -> Host:
    """The host after its active rollout ended without ever having fired a switch: what it superseded goes on.

    The newest comes back that has something to do: one that still owes a rollback, whatever runs, for a restart in
    the middle of it must not forget it; or one whose target is what runs (it soaked, or its switch or reboot has come
    to its end unheard), for otherwise a release would run here that nobody watches.
    """
    active = host.active
    if active is None or not active.record.terminal or active.record.switch_fired is not False:
        return host
    waiting = [
        rollout
        for rollout in host.rollouts.values()
        if rollout.accepted.number < active.accepted.number
        and _has_something_to_do(rollout.record, current)
        and not _overtaken(host, rollout, active)
    ]
    if not waiting:
        return host
    back = max(waiting, key=_age)
    return replace(host.with_rollout(back.unprobed()), active_id=back.rollout_id)


def _has_something_to_do(record: RolloutRecord, current: str | None) -> bool:
    unheard = record.state in (State.ACTIVATING, State.DEFERRED, State.SOAKING)
    return record.rollback_owed or (unheard and record.target_closure == current)


def _overtaken(host: Host, earlier: Rollout, later: Rollout) -> bool:
    """Whether a rollout after the earlier one began to switch, or paid what it owed: then it is history."""
    after = [r for r in host.rollouts.values() if earlier.accepted.number < r.accepted.number <= later.accepted.number]
    return any(
        (rollout.record.activation_started_at is not None and rollout is not later)
        or (rollout.accepted.inherited and rollout.record.state is State.REVERTED)
        for rollout in after
    )


def prunable(host: Host, now: datetime, undelivered: frozenset[str]) -> tuple[str, ...]:
    """Rollouts whose sent log may go: not among the newest, older than the limit, all delivered, not active."""
    oldest_first = sorted(host.rollouts.values(), key=_age)
    return tuple(
        rollout.rollout_id
        for rollout in oldest_first[:-KEPT_ROLLOUTS]
        if rollout.rollout_id not in undelivered
        and rollout.rollout_id != host.active_id
        and now - rollout.accepted.accepted_at > KEPT_FOR
    )
