"""What makes two states of the model the same: equal where nothing can tell them apart from here on."""

from __future__ import annotations

from collections.abc import Hashable

from nixfleet_agent.runtime.rollout.deeds import Stepped
from nixfleet_agent.state_machine import State
from tests.adversary.node import THRESHOLD, Node, Stuck, rollout_of


def key(node: Node) -> Hashable:
    """Equal for states that nothing can tell apart from here on: times as what is left of them, no event numbers."""
    order, switch, ended = node.order, node.switch, node.ended
    has = None if order is None else (type(order).__name__, order.rollout_id, getattr(order, "already_started", None))
    return (
        node.world.name,
        node.wrong,
        node.current,
        node.entry,
        node.half,
        None
        if switch is None
        else (switch.rollout_id, switch.flipped, switch.over_hand, switch.over_boot, switch.over_half, switch.first),
        None if ended is None else (ended.rollout_id, ended.code, ended.boot == node.boot),
        node.guarded,
        has,
        node.entry_way_back == node.boot,
        node.probing,
        node.by_hand,
        node.entry_by_hand,
        node.by_boot,
        None if node.bad_since is None else min(node.seconds - node.bad_since, THRESHOLD),
        node.proven,
        node.marks.manifest,
        node.newest,
        node.fired,
        node.up,
        node.disk,
        None if node.stuck is None else _stuck(node.stuck),
        node.silent,
        node.given_up,
        node.published,
        _agents(node) if "agent" in node.world.parties else None,
        node.host.active_id,
        node.host.attempted if rollout_of(node, node.host.attempted) else None,
        tuple(_rollout(node, rollout_id) for rollout_id, _, _ in node.log),
    )


def _agents(node: Node) -> Hashable:
    left = frozenset(each.rollout_id for each in node.host.rollouts.values() if each.hands_over)
    waiting = frozenset(each.rollout_id for each in node.host.rollouts.values() if each.awaits_ready)
    return node.agent, node.ready, node.awaited, node.taken_back, left, waiting


def _stuck(stuck: Stuck) -> Hashable:
    return tuple(
        (each.rollout.rollout_id, each.event.kind) if isinstance(each, Stepped) else type(each).__name__
        for each in stuck.deeds
    )


def _rollout(node: Node, rollout_id: str) -> Hashable:
    rollout = node.host.rollouts[rollout_id]
    record, timers = rollout.record, rollout.timers
    soak = None if timers.soak_ends is None else max(0.0, timers.soak_ends - node.seconds)
    return (
        rollout_id,
        record.state,
        rollout.begun,
        record.rollback_owed,
        record.switch_fired,
        record.deferred_boot_id in (None, node.boot_id),
        rollout.boot_id in (None, node.boot_id),
        rollout.accepted.inherited,
        rollout.accepted.prior_closure,
        rollout.probes_started,
        record.activation_started_at is None,
        record.observed_at_failure,
        soak if record.state is State.SOAKING else None,
        tuple(
            (
                name,
                timer.status,
                timer.seen,
                min(timer.failures_in_row, 2),
                None if timer.failing_since is None else min(node.seconds - timer.failing_since, THRESHOLD),
            )
            for name, timer in timers.probes.items()
        )
        if record.state is State.SOAKING
        else (),
    )
