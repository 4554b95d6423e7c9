"""All rollouts of this host as one immutable value; the rules between them are in ``succession``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import MappingProxyType

from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.runtime.rollout.dedup import Journaled
from nixfleet_agent.state_machine import RolloutRecord
from nixfleet_agent.state_machine.timing import Timers

#: Sent logs are kept for this many of the newest rollouts, and for this long.
KEPT_ROLLOUTS = 20
KEPT_FOR = timedelta(days=7)
#: The most that an unsigned snapshot may raise a seq by: enough for a lost log, too little to exhaust the numbers.
SEQ_RAISE_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout with what this process measured of it.

    ``probes_started``: its probes run in this process. ``begun``: its switch was allowed to start, so that the host may
    be changed by it. ``boot_id``: the last boot in which its target was seen to run, None in logs that don't tell.
    ``hands_over``: the release changes the agent, and its own is to go on with the soak; this process does not end it.
    ``awaits_ready``: this process is that agent, and not known to be ready.
    ``taken_back``: what the guard said that has taken the host back meanwhile, None where none has.
    """

    record: RolloutRecord
    accepted: Acceptance
    timers: Timers = field(default_factory=Timers)
    last_results: Mapping[str, Journaled] = field(default_factory=lambda: MappingProxyType({}))
    probes_started: bool = False
    begun: bool = False
    boot_id: str | None = None
    hands_over: bool = False
    awaits_ready: bool = False
    taken_back: str | None = None

    @property
    def rollout_id(self) -> str:
        return self.record.rollout_id

    def unprobed(self) -> Rollout:
        """As it is after a time in which no probe looked at it: what they said before proves nothing about now."""
        timers = replace(self.timers, probes=MappingProxyType({}))
        return replace(self, timers=timers, last_results=MappingProxyType({}), probes_started=False)


@dataclass(frozen=True, slots=True)
class Host:
    """Rollouts by id, and which one is active; the newest number ever given out.

    ``attempted`` is the rollout whose rollback was tried and failed: what came after it need not wait any longer.
    """

    rollouts: Mapping[str, Rollout] = field(default_factory=lambda: MappingProxyType({}))
    active_id: str | None = None
    newest_number: int = 0
    attempted: str | None = None

    @property
    def active(self) -> Rollout | None:
        """The newest rollout, or the one before it that goes on because the newest ended without a switch."""
        return self.rollouts.get(self.active_id) if self.active_id else None

    def with_rollout(self, rollout: Rollout) -> Host:
        """This host with one rollout replaced or added."""
        rollouts = MappingProxyType({**self.rollouts, rollout.rollout_id: rollout})
        return Host(rollouts, self.active_id, self.newest_number, self.attempted)

    def ready(self, rollout_id: str) -> Host:
        """This host once this process, the agent that this release has brought, may end its soak."""
        rollout = self.rollouts.get(rollout_id)
        return self if rollout is None else self.with_rollout(replace(rollout, awaits_ready=False))

    def without(self, rollout_id: str) -> Host:
        """This host once a rollout's log was pruned."""
        left = {key: rollout for key, rollout in self.rollouts.items() if key != rollout_id}
        return replace(self, rollouts=MappingProxyType(left))

    def accepting(self, accepted: Acceptance, hostname: str) -> Host:
        """This host with a new rollout that supersedes whatever was active."""
        host = self.with_rollout(Rollout(accepted.record(hostname), accepted))
        return replace(host, active_id=accepted.rollout_id, newest_number=max(accepted.number, self.newest_number))

    def activating(self, rollout_id: str) -> Host:
        """This host with another of its rollouts active."""
        return replace(self, active_id=rollout_id)

    def reported(self) -> tuple[str, ...]:
        """Rollouts whose last seq a heartbeat names: the newest and every one that is not over."""
        newest = max(self.rollouts.values(), key=age, default=None)
        open_ones = (r for r in self.rollouts.values() if not r.record.terminal or r is newest)
        return tuple(rollout.rollout_id for rollout in open_ones)


def age(rollout: Rollout) -> tuple[int, datetime]:
    """Sorts rollouts by their acceptance."""
    return rollout.accepted.number, rollout.accepted.accepted_at


def prunable(host: Host, now: datetime, undelivered: frozenset[str]) -> tuple[str, ...]:
    """Rollouts whose sent log may go: not among the newest, older than the limit, all delivered, not active."""
    oldest_first = sorted(host.rollouts.values(), key=age)
    return tuple(
        rollout.rollout_id
        for rollout in oldest_first[:-KEPT_ROLLOUTS]
        if rollout.rollout_id not in undelivered
        and rollout.rollout_id != host.active_id
        and now - rollout.accepted.accepted_at > KEPT_FOR
    )
