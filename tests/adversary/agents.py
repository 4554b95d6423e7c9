"""The agent of a release, where each brings another: tried, left for, ready or not, and taken back by the guard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from nixfleet_agent.runtime.rollout.evaluate import AGENT_START
from nixfleet_agent.runtime.rollout.orders import HandOver
from nixfleet_agent.state_machine import Mode, ProbeStatus, events
from tests.adversary.machine import starts
from tests.adversary.node import Node, but, rollout_of
from tests.adversary.turns import take

_FAILURES = 2


def moves(node: Node) -> Iterator[tuple[str, Callable[[Node], Node]]]:
    """What can become of the agent of what runs."""
    if not node.up:
        if node.awaited is not None:
            yield "its agent starts", starts
            yield "its agent does not start", never_ready
        return
    if not node.decides:
        return
    if node.awaited is not None and not node.ready:
        yield "its agent is ready", is_ready
    if isinstance(node.order, HandOver):
        yield "leaves for its agent", leaves
    if node.probing is not None and node.changes_agent:
        yield "its agent passes its check", partial(tried, passes=True)
        yield "its agent fails its check", partial(tried, passes=False)


def tried(node: Node, *, passes: bool) -> Node:
    """The agent that runs has tried the other one: told before the result is, as often as it takes."""
    rollout_id = node.probing
    assert rollout_id is not None
    if passes:
        node, _ = take(node, lambda turn: turn.hand_over(rollout_id))
    event = events.LocalProbeResult(
        probe_name=AGENT_START,
        mode=Mode.ENFORCE,
        status=ProbeStatus.PASS if passes else ProbeStatus.FAIL,
        observed_at=node.moment.now,
        failure_reason=None,
    )
    for _ in range(1 if passes else _FAILURES):
        node, _ = take(node, lambda turn: turn.tell(rollout_id, event))
    return node


def leaves(node: Node) -> Node:
    """The old agent ends. From here on its release's own agent has its time, where a failure is to be taken back."""
    order = node.order
    assert isinstance(order, HandOver)
    left = but(node, up=False, order=None, probing=None, bad_since=None)
    if not order.intent.takes_back or order.intent.way_back is None:
        return starts(left)  # nothing would bring back one that does not start
    return but(left, awaited=order.rollout_id)


def is_ready(node: Node) -> Node:
    """systemd counts the new agent as up, so the guard is disarmed."""
    awaited = node.awaited
    assert awaited is not None
    return but(node, host=node.host.ready(awaited), ready=True, awaited=None)


def never_ready(node: Node) -> Node:
    """The guard takes the host back, and starts the agent of what is back."""
    awaited = node.awaited
    rollout = rollout_of(node, awaited)
    assert awaited is not None and rollout is not None
    prior = rollout.record.prior_closure
    assert prior is not None
    back = but(
        node, current=prior, entry=prior, entry_by_hand=False, by_hand=False, half=False, by_boot=False, awaited=None
    )
    return starts(but(back, taken_back=node.taken_back | {awaited}))
