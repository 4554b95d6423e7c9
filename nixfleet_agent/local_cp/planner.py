"""Which host gets its turn next, and which rollout stops: a pure function from a picture of the fleet to orders.

The planner hands out turns and nothing else. What a host runs was decided by CI, when it goes back is decided
by the signed policy on the host itself; a mistake here can only delay a host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from nixfleet_agent.state_machine import State

#: A turn that was fetched but never acknowledged is offered again: the host may have died with the answer in hand.
REDELIVER_AFTER = timedelta(seconds=90)


@dataclass(frozen=True, slots=True)
class Placement:
    """One host in one rollout, as the mirror has it; ``queued`` while its turn waits to be fetched."""

    state: State
    terminal: bool = False
    queued: bool = False
    delivered_at: datetime | None = None

    @property
    def in_flight(self) -> bool:
        return not self.terminal


@dataclass(frozen=True, slots=True)
class Wave:
    """Hosts that go together; ``soak`` is how long each must run the target before it may converge."""

    hosts: tuple[str, ...]
    soak: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutView:
    """One rollout that is open: the newest of its channel."""

    rollout_id: str
    channel: str
    targets: Mapping[str, str]
    waves: tuple[Wave, ...]
    placements: Mapping[str, Placement] = field(default_factory=dict)
    halted: str | None = None

    def converged(self, hostname: str) -> bool:
        placement = self.placements.get(hostname)
        return placement is not None and placement.state is State.CONVERGED

    @property
    def complete(self) -> bool:
        return all(self.converged(hostname) for wave in self.waves for hostname in wave.hosts)


@dataclass(frozen=True, slots=True)
class Budget:
    """At most ``max_in_flight`` of ``hosts`` are between dispatch and end at any moment."""

    hosts: frozenset[str]
    max_in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """Everything the planner looks at. ``ready`` hosts have been heard of, and nothing of theirs is missing here."""

    rollouts: tuple[RolloutView, ...]
    ready: frozenset[str]
    missing: Mapping[str, str] = field(default_factory=dict)
    edges: tuple[tuple[str, str], ...] = ()
    channel_edges: tuple[tuple[str, str], ...] = ()
    budgets: tuple[Budget, ...] = ()
    quarantine: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Order:
    """Queue a turn; ``again`` when one was fetched before and led to nothing."""

    hostname: str
    rollout_id: str
    target_closure: str
    soak_due_at: datetime
    again: bool = False


@dataclass(frozen=True, slots=True)
class Halt:
    """Give no more turns in this rollout."""

    rollout_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """``waiting`` says of each host that has no turn yet what it waits for, by (rollout id, host name)."""

    orders: tuple[Order, ...]
    halts: tuple[Halt, ...]
    waiting: Mapping[tuple[str, str], str]
    look_again_at: datetime | None


def plan(view: FleetView, now: datetime, redeliver_after: timedelta = REDELIVER_AFTER) -> Plan:
    """Orders for this moment; the same picture always gives the same orders."""
    round_ = _Round(view, now, redeliver_after)
    for rollout in view.rollouts:
        round_.rollout(rollout)
    return Plan(tuple(round_.orders), tuple(round_.halts), round_.waiting, round_.look_again_at)


class _Round:
    """One planning round: collects orders, and counts each against the budgets as it is given."""

    def __init__(self, view: FleetView, now: datetime, redeliver_after: timedelta) -> None:
        self._view = view
        self._now = now
        self._redeliver_after = redeliver_after
        self._in_flight = {
            hostname
            for rollout in view.rollouts
            for hostname, placement in rollout.placements.items()
            if placement.in_flight
        }
        self._by_channel = {rollout.channel: rollout for rollout in view.rollouts}
        self.orders: list[Order] = []
        self.halts: list[Halt] = []
        self.waiting: dict[tuple[str, str], str] = {}
        self.look_again_at: datetime | None = None

    def rollout(self, rollout: RolloutView) -> None:
        blocked = rollout.halted or self._failure(rollout) or self._channel_gate(rollout)
        for number, wave in enumerate(rollout.waves, start=1):
            for hostname in wave.hosts:
                self._host(rollout, wave, hostname, blocked)
            if blocked is None and not all(rollout.converged(hostname) for hostname in wave.hosts):
                blocked = f"wave {number} has not converged"

    def _host(self, rollout: RolloutView, wave: Wave, hostname: str, blocked: str | None) -> None:
        placement = rollout.placements.get(hostname)
        if placement is not None:
            if blocked is None and placement.state is State.PENDING and not placement.queued:
                self._redeliver(rollout, wave, hostname, placement)
            return
        reason = blocked or next(self._reasons_to_wait(rollout, hostname), None)
        if reason is not None:
            self.waiting[rollout.rollout_id, hostname] = reason
            return
        self._in_flight.add(hostname)
        self._order(rollout, wave, hostname, again=False)

    def _order(self, rollout: RolloutView, wave: Wave, hostname: str, *, again: bool) -> None:
        target = rollout.targets[hostname]
        self.orders.append(Order(hostname, rollout.rollout_id, target, self._now + wave.soak, again))

    def _redeliver(self, rollout: RolloutView, wave: Wave, hostname: str, placement: Placement) -> None:
        due = self._now if placement.delivered_at is None else placement.delivered_at + self._redeliver_after
        if due <= self._now:
            self._order(rollout, wave, hostname, again=True)
        elif self.look_again_at is None or due < self.look_again_at:
            self.look_again_at = due

    def _failure(self, rollout: RolloutView) -> str | None:
        failed = sorted(
            hostname
            for hostname, placement in rollout.placements.items()
            if placement.state in (State.FAILED, State.REVERTED)
        )
        if not failed:
            return None
        reason = f"halted: failed on {', '.join(failed)}"
        self.halts.append(Halt(rollout.rollout_id, reason))
        return reason

    def _channel_gate(self, rollout: RolloutView) -> str | None:
        for gated, gates in self._view.channel_edges:
            first = self._by_channel.get(gates)
            if gated == rollout.channel and first is not None and not first.complete:
                return f"channel {gates} goes first"
        return None

    def _reasons_to_wait(self, rollout: RolloutView, hostname: str) -> Iterator[str]:
        if hostname not in rollout.targets:
            yield "the manifest does not name it"
            return
        if (rollout.channel, rollout.targets[hostname]) in self._view.quarantine:
            yield "its closure is in quarantine on this channel"
        if hostname not in self._view.ready:
            yield self._view.missing.get(hostname, "not heard of yet")
        for gated, gates in self._view.edges:
            if gated == hostname and not self._passed(gates):
                yield f"{gates} goes first"
        for budget in self._view.budgets:
            if hostname in budget.hosts and len(budget.hosts & self._in_flight) >= budget.max_in_flight:
                yield f"{budget.max_in_flight} of its group are under way"

    def _passed(self, hostname: str) -> bool:
        """A host holds back others only while an open rollout of its own names it and has not converged there."""
        return all(rollout.converged(hostname) for rollout in self._view.rollouts if hostname in rollout.targets)
