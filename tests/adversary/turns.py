"""One turn of the reducer in the model: the agent's own ``Turn`` decides, and what it asks for is done in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from nixfleet_agent.activation.model import Rollback
from nixfleet_agent.runtime.rollout.decisions import Rules, Turn
from nixfleet_agent.runtime.rollout.deeds import Deed, Ordered, Stepped
from nixfleet_agent.runtime.rollout.evaluate import AGENT_START, BOOT_FALLBACK
from nixfleet_agent.runtime.rollout.event_writer import is_urgent
from nixfleet_agent.runtime.rollout.orders import ActivationOrder, ResetProbes, StandDown, StopProbes
from nixfleet_agent.runtime.rollout.rollouts import Host
from nixfleet_agent.runtime.rollout.succession import watched
from nixfleet_agent.state_machine import EmitEvent, Mode, State, events
from nixfleet_agent.state_machine.record import DeclaredProbe
from tests.adversary.node import NAMES, THRESHOLD, Node, Stuck, broken, but

_WEB = DeclaredProbe(probe_name="web", kind="http", mode=Mode.ENFORCE)
_ITS_AGENT = DeclaredProbe(probe_name=AGENT_START, kind="exec", mode=Mode.ENFORCE)


def take(node: Node, act: Callable[[Turn], object]) -> tuple[Node, object]:
    """The host after one input, its events in the log, its orders with the workers.

    A disk that refuses an event keeps it and all that follows it, and the reducer takes nothing else meanwhile.
    """
    turns = node.turns + 1
    turn = Turn(node.host, node.moment, _rules(node.boot_id))
    answer = act(turn)
    if not turn.deeds:
        return but(node, turns=turns, host=turn.host), answer
    return done(but(node, turns=turns), turn.deeds, turn.host), answer


@cache
def _rules(boot_id: str) -> Rules:
    return Rules(THRESHOLD, 60.0, boot_id)


def done(node: Node, deeds: Sequence[Deed], host: Host) -> Node:
    """The node once ``deeds`` are carried out, or as many as the disk allows."""
    declare: str | None = None
    for index, deed in enumerate(deeds):
        match deed:
            case Stepped():
                if node.disk and _refused(node, deed):
                    return but(node, stuck=Stuck(tuple(deeds[index:]), host))
                node = _written(node, deed)
            case Ordered(order):
                node = _ordered(node, order)
            case ResetProbes(rollout_id):
                node, declare = but(node, probing=rollout_id), rollout_id
            case StopProbes():
                node, declare = but(node, probing=None, bad_since=None), None
    node = but(node, host=host)
    return node if declare is None else declares(node, declare)


def declares(node: Node, rollout_id: str) -> Node:
    """The probe worker has read what the running release declares."""
    probes = (_WEB, _ITS_AGENT) if node.changes_agent else (_WEB,)
    topology = events.LocalProbeTopologyDeclared(probes=probes, declared_at=node.moment.now)
    return take(node, lambda turn: turn.tell(rollout_id, topology))[0]


def flushed(node: Node) -> Node:
    """What waited for the disk is carried out: it has room, or the reserve was given up for a failure that waits."""
    stuck, disk = node.stuck, node.disk
    if stuck is None:
        return node
    return but(done(but(node, stuck=None, disk=""), stuck.deeds, stuck.host), disk=disk)


def _refused(node: Node, deed: Stepped) -> bool:
    writes = [each.event for each in deed.effects if isinstance(each, EmitEvent)]
    return bool(writes) and (node.disk == "refuses" or not any(is_urgent(event) for event in writes))


def _written(node: Node, deed: Stepped) -> Node:
    record = deed.rollout.record
    boot = node.boot_id if record.state is State.SOAKING else ""
    told = tuple((e.event, deed.soak_left, boot) for e in deed.effects if isinstance(e, EmitEvent))
    log = tuple(
        (r, accepted, old + told) if r == record.rollout_id else (r, accepted, old) for r, accepted, old in node.log
    )
    node = but(node, log=log)
    if isinstance(deed.event, events.Converged):
        if node.half or node.current != record.target_closure:
            node = broken(node, "I3: converged on half a system, or on another one")
        if node.changes_agent or not node.ready:
            node = broken(node, "I3: converged, and its own agent was not seen to be ready")
        return but(node, proven=node.proven | {record.target_closure})
    if isinstance(deed.event, events.Failed) and deed.event.failing_probes == (BOOT_FALLBACK,):
        waiting = [each.record for each in watched(node.host) if each.record.state is State.DEFERRED]
        if any(each.target_closure == node.current for each in waiting):
            node = broken(node, f"I3: the boot that was waited for is told as a fallback of {record.rollout_id}")
    tried = isinstance(deed.event, events.Failed) or (
        isinstance(deed.event, events.ActivationFailed) and deed.event.switch_fired
    )
    return but(node, proven=node.proven - {record.target_closure}) if tried else node


def _ordered(node: Node, order: ActivationOrder) -> Node:
    if isinstance(order, StandDown):
        return but(node, order=None)
    known = node.proven.union(*(proven for _, proven in node.then))
    if isinstance(order, Rollback) and undoes(order) and order.target not in known:
        node = broken(node, f"I1: the way back of {order.rollout_id} is {NAMES[order.target]}, which is not proven")
    return but(node, order=order)


def undoes(order: Rollback) -> bool:
    """Whether a switch is to be undone, and not only what was written for the next boot."""
    return order.forward_fired is not False or order.inherited
