"""Turns the planner's orders into turns that wait in the queue: one thread, kicked by what changes.

No request ever plans. However many events come in, the thread rests several times as long as it works.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from nixfleet_agent.local_cp.catalogue import Catalogue
from nixfleet_agent.local_cp.planner import REDELIVER_AFTER, FleetView, Order, Plan, plan
from nixfleet_agent.local_cp.store import Store
from nixfleet_agent.local_cp.waiters import Waiters
from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.proto.ids import channel_of
from nixfleet_agent.state_machine import RolloutRecord, State
from nixfleet_agent.threads.clock import Clock

LOG = logging.getLogger("nixfleet_agent.local_cp")

#: The planner rests this many times as long as its last round took: at most a fifth of a core.
REST = 4.0
#: How long it waits before it plans again where the database could not be used, in seconds.
RETRY_SECS = 1.0
#: A look into the future is never nearer than this, in seconds.
NEAREST_LOOK = 0.05


@dataclass(frozen=True, slots=True)
class Options:
    """How this control plane deviates from plain: an extra soak hint, patience before a turn is offered again, whether
    a heartbeat that reports the target completes the record, as on the deployed control plane, and whether each
    request is held against the contract of the wire, which takes 2 ms. ``hosts`` holds the folders of agents on this
    machine, whose own words the status page then shows.
    """

    extra_soak: timedelta = timedelta(0)
    redeliver_after: timedelta = REDELIVER_AFTER
    complete_from_heartbeat: bool = False
    strict: bool = False
    hosts: Path | None = None


class Dispatcher:
    """Thread-safe. ``run`` is the body of a thread that the owner starts and joins.

    Args:
        tell: called with host name, rollout id, what happened, state and detail, outside every transaction.
    """

    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        waiters: Waiters,
        clock: Clock,
        options: Options,
        tell: Callable[..., None],
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._waiters = waiters
        self._clock = clock
        self._options = options
        self._tell = tell
        self._kick = threading.Event()
        self._stopping = threading.Event()
        self._plan = Plan((), (), {}, None)

    @property
    def last_plan(self) -> Plan:
        """What the last round decided, for those who show it."""
        return self._plan

    def kick(self) -> None:
        """Something changed: plan soon."""
        self._kick.set()

    def stop(self) -> None:
        self._stopping.set()
        self._kick.set()

    def run(self) -> None:
        """Plan when something changed, until ``stop``."""
        while not self._stopping.is_set():
            self._kick.clear()
            began = self._clock.monotonic()
            try:
                self.plan_once()
            except sqlite3.Error as error:
                LOG.warning("no turns are given while the database can't be used: %s", error)
                self._clock.wait(self._stopping, RETRY_SECS)
                continue
            rest = REST * (self._clock.monotonic() - began)
            self._clock.wait(self._stopping, rest)
            self._clock.wait(self._kick, self._until_next_look())

    def plan_once(self) -> Plan:
        """One round: open what is new, ask the planner, carry its orders out."""
        now = self._clock.now()
        with self._store.transaction():
            view = self._picture(now)
            decided = plan(view, now, self._options.redeliver_after)
            for order in decided.orders:
                self._carry_out(order, now)
            for halt in decided.halts:
                self._store.halt(halt.rollout_id, halt.reason)
            self._plan = decided  # in here, so that of two rounds the later one is the last
        for hostname in {order.hostname for order in decided.orders}:
            self._waiters.wake(hostname)
        for order in decided.orders:
            self._tell(order.hostname, order.rollout_id, "Queued", State.PENDING)
        for halt in decided.halts:
            self._tell("", halt.rollout_id, "Halted", detail={"reason": halt.reason})
        return decided

    def _picture(self, now: datetime) -> FleetView:
        views = self._catalogue.open_rollouts
        current = {view.rollout_id for view in views}
        for view in views:
            self._store.open_rollout(view.rollout_id, view.channel, now)
        halted = {}
        queued = {rollout_id for waiting in self._store.queued().values() for rollout_id in waiting}
        for row in self._store.rollouts():
            halted[row.rollout_id] = row.halted
            if row.rollout_id in queued - current:
                self._store.withdraw(row.rollout_id)
        hosts = self._store.hosts()
        placed = {view.rollout_id: self._store.placements(view.rollout_id) for view in views}
        missing = {
            hostname: "its events are still to be replayed"
            for hostname, host in hosts.items()
            for rollout_id in host.reported
            if rollout_id in current and hostname not in placed[rollout_id]
        }
        return FleetView(
            rollouts=tuple(
                replace(view, placements=placed[view.rollout_id], halted=halted[view.rollout_id]) for view in views
            ),
            ready=frozenset(hosts) - frozenset(missing),
            missing=missing,
            edges=self._catalogue.edges,
            channel_edges=self._catalogue.channel_edges,
            budgets=self._catalogue.budgets,
            quarantine=self._store.quarantined(),
        )

    def _carry_out(self, order: Order, now: datetime) -> None:
        soak_due_at = order.soak_due_at + self._options.extra_soak
        if not order.again:
            fresh = fresh_record(
                self._catalogue, order.rollout_id, order.hostname, order.target_closure, now, soak_due_at
            )
            self._store.save_record(fresh)
        self._store.enqueue(
            Dispatch(
                hostname=order.hostname,
                rollout_id=order.rollout_id,
                target_closure=order.target_closure,
                soak_due_at=soak_due_at,
                enqueued_at=now,
            )
        )

    def _until_next_look(self) -> float | None:
        at = self._plan.look_again_at
        return None if at is None else max(NEAREST_LOOK, (at - self._clock.now()).total_seconds())


def fresh_record(
    catalogue: Catalogue, rollout_id: str, hostname: str, target: str, at: datetime, soak_due_at: datetime | None
) -> RolloutRecord:
    """A record before its first event."""
    return RolloutRecord(
        rollout_id=rollout_id,
        hostname=hostname,
        channel=channel_of(rollout_id),
        target_closure=target,
        dispatched_at=at,
        soak_due_at=soak_due_at,
        soak_floor=catalogue.soak_floor(rollout_id, hostname),
    )
