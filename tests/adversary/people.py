"""What people do at a modelled host: switch it by hand, give a rollback up, hold it; and lose or fill its disk."""

from __future__ import annotations

from nixfleet_agent.activation.model import Rollback
from tests.adversary.machine import passes, tick
from tests.adversary.node import Node, but
from tests.adversary.turns import flushed, take


def by_hand(node: Node, to: str) -> Node:
    """An operator switches this host."""
    switched = but(
        node, current=to, entry=to, half=False, by_hand=True, by_boot=False, bad_since=None, entry_by_hand=True
    )
    return passes(switched, 0)


def gives_up(node: Node) -> Node:
    """An operator gives up the rollback that the worker has."""
    order = node.order
    assert isinstance(order, Rollback)
    return take(but(node, given_up=order.rollout_id), lambda turn: turn.attempt_failed(order.rollout_id))[0]


def wants_it(node: Node) -> Node:
    """An operator wants it after all."""
    return but(node, given_up=None)


def falls_silent(node: Node, why: str) -> Node:
    """No Dispatch is taken any more: an operator holds the host, or its certificate is refused; or they are again."""
    return but(node, silent=why)


def fills(node: Node, how: str) -> Node:
    """The disk has no room any more, or refuses every write."""
    return but(node, disk=how)


def has_room(node: Node) -> Node:
    """The disk can be written again."""
    return flushed(but(node, disk=""))


def forgets(node: Node) -> Node:
    """The state directory is lost: logs, marks, switch records.

    What runs then, and what boots next, was there before anything that is known: it might be an operator's own.
    """
    lost = Node(
        node.world,
        seconds=node.seconds,
        turns=node.turns,
        boot=node.boot,
        current=node.current,
        entry=node.entry,
        proven=frozenset({node.current, node.entry}),
        published=node.published,
        agent=node.agent,
        wrong=node.wrong,
    )
    return tick(lost)
