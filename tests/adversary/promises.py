"""What must hold in every state: I1 to I5."""

from __future__ import annotations

from collections.abc import Sequence

from nixfleet_agent.runtime.rollout.orders import Forward, HandOver, Rollback
from nixfleet_agent.runtime.rollout.rollouts import Rollout
from nixfleet_agent.runtime.rollout.succession import in_charge, watched
from nixfleet_agent.state_machine import State
from tests.adversary.machine import tick
from tests.adversary.node import NAMES, Node


def violation(node: Node) -> str:
    """The promise that the state breaks, empty when it keeps all."""
    return node.wrong or _settled(node)


def _settled(node: Node) -> str:
    """A second later: what only the next tick would put right is no violation.

    While the agent is down, or its disk refuses an event, nobody can decide anything: the state after it counts.
    """
    if not node.decides:
        return ""
    after = tick(node)
    if after.stuck is not None:
        return after.wrong
    looked_at = watched(after.host)
    return (
        after.wrong
        or _watched_or_proven(after, looked_at)
        or _has_its_order(after)
        or _boot_is_told(after, looked_at)
        or _timed(after, looked_at)
    )


def _watched_or_proven(node: Node, looked_at: Sequence[Rollout]) -> str:
    """I1. What an operator chose by hand is the operator's; what failed under ``halt`` stays by the signed word."""
    if node.switch is not None or node.by_hand or (node.current in node.proven and not node.half):
        return ""
    if any(_answers(node, rollout) for rollout in looked_at) or _stays(node):
        return ""
    return f"I1: {NAMES[node.current]} runs{', half switched' if node.half else ''}, not proven and not watched"


def _answers(node: Node, rollout: Rollout) -> bool:
    record = rollout.record
    brought = record.target_closure == node.current
    if record.state is State.SOAKING:
        return brought and node.probing == record.rollout_id and not node.half and _has_way_back(node, rollout)
    if record.rollback_owed:
        return True  # it has its order, or its successor has: see below
    if brought and not node.half and isinstance(node.order, Forward) and node.order.rollout_id == record.rollout_id:
        return True  # the worker finds it there, and its soak begins
    # An heir has taken over what the one before it owed, after a try that failed: it goes first, and then goes back.
    return record.state is State.ACTIVATING and (rollout.begun or rollout.accepted.inherited)


def _stays(node: Node) -> bool:
    """The last switch failed, and by the signed policy, or for want of any other proven closure, nothing follows.

    Or it was taken back to a closure that was proven when it was accepted, and has failed since: none is better.
    """
    last = max((r for r in node.host.rollouts.values() if r.begun), key=lambda r: r.accepted.number, default=None)
    if last is None or last.record.rollback_owed:
        return False
    if last.record.state is State.REVERTED:
        return last.record.reverted_to == node.current and not node.half
    return last.record.state is State.FAILED and (
        last.record.policy_applied == "halt" or last.record.prior_closure is None
    )


def _has_way_back(node: Node, rollout: Rollout) -> bool:
    way_back = rollout.accepted.prior_closure
    then = next((proven for each, proven in node.then if each == rollout.rollout_id), frozenset())
    return way_back in node.proven | then or not then - {rollout.record.target_closure}


def _has_its_order(node: Node) -> str:
    """I5. Whoever is in charge and waits for the worker has its order with the worker; no other takes the host back."""
    first = in_charge(node.host)
    if isinstance(node.order, Rollback) and (first is None or first.rollout_id != node.order.rollout_id):
        return f"I1: the worker goes back for {node.order.rollout_id}, which answers for nothing"
    if first is None or first.record.terminal or first.accepted.adopted:
        return ""
    record, order = first.record, node.order
    if record.rollback_owed:
        has = isinstance(order, Rollback) and order.rollout_id == record.rollout_id
        return "" if has else f"I5: {record.rollout_id} owes a rollback, and the worker does not have it"
    if "agent" in node.world.parties and (waits := _left_for(node, first)):
        has = isinstance(order, HandOver) and order.rollout_id == waits
        return "" if has else f"I5: the agent of {waits} is to go on, and the worker has no order to leave for it"
    if record.state is State.ACTIVATING:
        held = isinstance(order, Forward) and order.rollout_id == record.rollout_id
        return "" if held else f"I5: nobody brings {record.rollout_id}"
    return ""


def _left_for(node: Node, first: Rollout) -> str | None:
    """The rollout that only its own agent can end, where nobody does anything besides but wait for a reboot."""
    if first.record.state not in (State.SOAKING, State.DEFERRED):
        return None
    left = (each for each in watched(node.host) if each.hands_over and each.record.state is State.SOAKING)
    return next((each.rollout_id for each in left), None)


def _boot_is_told(node: Node, looked_at: Sequence[Rollout]) -> str:
    """I3. A boot that brought another system than the one that soaks, or waits for it, ends that rollout."""
    for rollout in looked_at if node.by_boot else ():
        record = rollout.record
        late = record.state is State.DEFERRED and record.deferred_boot_id != node.boot_id
        ended = record.state is State.SOAKING and record.target_closure != node.current
        if ended or (late and rollout.rollout_id == node.host.active_id):
            return f"I3: {record.rollout_id} is {record.state} for ever: a boot brought {NAMES[node.current]}"
    return ""


def _timed(node: Node, looked_at: Sequence[Rollout]) -> str:
    """I1. The failure of what runs is timed from its beginning, whoever answers for it."""
    for rollout in looked_at if node.bad_since is not None else ():
        timer = rollout.timers.probes.get("web")
        if rollout.record.state is not State.SOAKING or timer is None or not timer.seen:
            continue
        if timer.failing_since is not None and timer.failing_since > (node.bad_since or 0):
            return (
                f"I1: {rollout.rollout_id} has failed since {node.bad_since}, and is timed from {timer.failing_since}"
            )
    return ""
