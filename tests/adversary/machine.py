"""What happens on a modelled machine: the worker and its scripts, the guard, probes, time, restarts and reboots."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.activation.verify_poll import Ended
from nixfleet_agent.runtime.rollout.decisions import Turn
from nixfleet_agent.state_machine import Mode, ProbeStatus, SwitchMethod, events
from tests.adversary.logs import recovered
from tests.adversary.node import Node, Switch, broken, but
from tests.adversary.turns import flushed, take, undoes
from tests.adversary.worlds import CLOSURES

_KILLED = -1


def needs_reboot(one: str, other: str) -> bool:
    """``C`` has another kernel than the others: no script gets from one to the other live."""
    return (one == CLOSURES["C"]) != (other == CLOSURES["C"])


# -- the activation worker -------------------------------------------------------------------------


def forward(node: Node, how: str) -> Node:
    """The worker does something about the forward order that it has."""
    order = node.order
    assert isinstance(order, Forward)
    rollout_id, now = order.rollout_id, node.moment.now
    if how == "fails early":
        node = but(node, order=None)
        return _failed(node, rollout_id, _KILLED, fired=rollout_id in node.fired)
    if not order.already_started:
        started = events.LocalActivationStarted(started_at=now, switch_method=SwitchMethod.SETSID)
        node, told = take(node, lambda turn: turn.tell(rollout_id, started))
        if node.stuck is not None:
            return node
        if not told:
            return but(node, order=None)
        node = but(node, order=replace(order, already_started=True))
    if how == "defers":
        node = but(node, order=None, entry=order.target, entry_by_hand=False)
        return _deferred(node, rollout_id)
    if how == "finds it there":
        # It boots next, too: a boot entry that a deferred release has left is replaced.
        return _completed(but(node, order=None, entry=order.target, entry_by_hand=node.by_hand), rollout_id, 0)
    if how == "finds the guard's work":
        return _failed(but(node, order=None), rollout_id, _KILLED, fired=True)
    node, may = take(node, lambda turn: turn.begin_switch(rollout_id))
    if not may:
        return but(node, order=None) if node.order is not None and node.order.rollout_id == rollout_id else node
    if how == "finds its end":
        return _follow(node)
    first = rollout_id not in node.fired
    switch = Switch(rollout_id, order.target, node.boot, node.by_hand, node.by_boot, node.half, first)
    fired = node.fired | {rollout_id}
    return but(node, fired=fired, half=True, switch=switch, ended=None, by_hand=False, by_boot=False, bad_since=None)


def script(node: Node, how: str) -> Node:
    """The script goes on: it flips the link, or ends with a code (``killed``: with none)."""
    switch = node.switch
    assert switch is not None
    if how == "flips":
        flipped = replace(switch, flipped=True)
        return but(node, current=switch.target, entry=switch.target, entry_by_hand=False, switch=flipped)
    code = _KILLED if how == "killed" else int(how)
    node = but(node, switch=None, ended=replace(switch, code=code), half=code not in (0, 4))
    if not node.decides:
        return node
    if not (isinstance(node.order, Forward) and node.order.rollout_id == switch.rollout_id):
        return broken(node, f"I1: nobody follows the switch of {switch.rollout_id} to its end")
    return _follow(node)


def stands_back(node: Node, how: str) -> Node:
    """The script found, before it changed anything, that it must not: it takes a reboot, or its check says no."""
    switch = node.switch
    assert switch is not None
    node = but(node, switch=None, half=switch.over_half, order=None, by_hand=switch.over_hand, by_boot=switch.over_boot)
    if switch.first:
        node = but(node, fired=node.fired - {switch.rollout_id})
    if how == "defers":
        node = but(node, entry=switch.target, entry_by_hand=False)
        return _deferred(node, switch.rollout_id)
    return _failed(node, switch.rollout_id, 1, fired=not switch.first)


def _follow(node: Node) -> Node:
    """The worker reads how its switch has ended; after a reboot into the target every unit was started anew."""
    ended = node.ended
    assert ended is not None and ended.code is not None
    node = but(node, order=None)
    if node.current != ended.target:
        return _failed(node, ended.rollout_id, ended.code, fired=True)
    killed = ended.code == _KILLED
    if ended.boot != node.boot or Ended(ended.target, ended.code, (), killed=killed).complete:
        return _completed(node, ended.rollout_id, ended.code)
    return _failed(node, ended.rollout_id, ended.code, fired=True)


def guard(node: Node) -> Node:
    """It takes the host back in a switch that no agent follows to its end."""
    switch = node.switch or node.ended
    assert switch is not None
    prior = next(accepted.prior_closure for each, accepted, _ in node.log if each == switch.rollout_id)
    assert prior is not None
    node = but(
        node, switch=None, ended=None, half=False, current=prior, entry=prior, entry_by_hand=False, by_hand=False
    )
    if node.decides:
        return _failed(but(node, order=None), switch.rollout_id, _KILLED, fired=True)
    return but(node, guarded=switch.rollout_id)


def _completed(node: Node, rollout_id: str, code: int) -> Node:
    event = events.LocalActivationCompleted(
        observed_current_closure=node.current, exit_code=code, completed_at=node.moment.now
    )
    return take(node, lambda turn: turn.tell(rollout_id, event))[0]


def _deferred(node: Node, rollout_id: str) -> Node:
    event = events.LocalActivationDeferred(component="kernel", deferred_at=node.moment.now, boot_id=node.boot_id)
    return take(node, lambda turn: turn.tell(rollout_id, event))[0]


def _failed(node: Node, rollout_id: str, code: int, *, fired: bool) -> Node:
    event = events.LocalActivationFailed(
        exit_code=code,
        stderr_tail="no",
        failed_at=node.moment.now,
        switch_fired=fired,
        observed_at_failure=node.current,
    )
    return take(node, lambda turn: turn.tell(rollout_id, event))[0]


def back(node: Node, how: str) -> Node:
    """The worker does something about the rollback that it has."""
    order = node.order
    assert isinstance(order, Rollback)
    if how == "fails":
        return take(node, lambda turn: turn.attempt_failed(order.rollout_id))[0]
    if how == "boots":
        node = but(node, entry=order.target, entry_by_hand=False, entry_way_back=node.boot)
        return take(node, lambda turn: turn.attempt_failed(order.rollout_id))[0]
    node = but(node, order=None, entry_way_back=None, guarded=None)
    if undoes(order):
        node = but(
            node,
            current=order.target,
            entry=order.target,
            entry_by_hand=False,
            half=False,
            switch=None,
            ended=None,
            by_hand=False,
        )
    else:
        node = but(node, entry=node.current, entry_by_hand=node.by_hand)  # what runs stays, and boots next
    done = events.LocalRollbackCompleted(reverted_to_closure=node.current, exit_code=0, completed_at=node.moment.now)
    return take(node, lambda turn: turn.tell(order.rollout_id, done))[0]


# -- probes and time -------------------------------------------------------------------------------


def probe(node: Node, status: ProbeStatus, times: int) -> Node:
    """What runs passes its probe, or fails it as often as it takes."""
    if status is ProbeStatus.FAIL:
        node = flushed(node)  # a failure waits: the reserve is for it and for what stands before it
    rollout_id = node.probing
    if rollout_id is None:
        return node
    for _ in range(times):
        event = events.LocalProbeResult(
            probe_name="web", mode=Mode.ENFORCE, status=status, observed_at=node.moment.now, failure_reason=None
        )
        node, _ = take(node, partial(Turn.tell, rollout_id=rollout_id, event=event))
        if node.stuck is not None:
            break
    since = node.seconds if node.bad_since is None else node.bad_since
    return but(node, bad_since=None if status is ProbeStatus.PASS else since)


def tick(node: Node, seconds: int = 0) -> Node:
    """Time passes, and a second's tick."""
    return take(but(node, seconds=node.seconds + seconds), Turn.tick)[0]


def passes(node: Node, seconds: int) -> Node:
    """Time passes, whether or not anybody decides."""
    return tick(node, seconds) if node.decides else but(node, seconds=node.seconds + seconds)


# -- the process and the machine -------------------------------------------------------------------


def dies(node: Node) -> Node:
    """The process is killed; what was not durable is lost, and a script of its own goes on without it."""
    node = but(node, up=False, stuck=None, order=None, probing=None, bad_since=None)
    return but(node, host=recovered(node))


def starts(node: Node) -> Node:
    """The next process reads what is on disk. It is of what runs, and ready at once where no guard waits for that."""
    node = but(node, up=True, order=None, probing=None, bad_since=None, stuck=None)
    if "agent" in node.world.parties:
        node = but(node, agent=node.current, ready=node.awaited is None)
    return take(but(node, host=recovered(node)), Turn.resume)[0]


def reboot(node: Node, to: str) -> Node:
    """The machine comes up with ``to``: what was written for the next boot, or what somebody chose in the menu."""
    chosen = to != node.entry or node.entry_by_hand
    booted = but(node, boot=node.boot + 1, current=to, half=False, switch=None, by_hand=chosen, by_boot=True)
    return starts(booted)
