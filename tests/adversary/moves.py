"""Every move that anybody can make in a state of the model; which parties take part is the world's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.state_machine import ProbeStatus
from tests.adversary import agents, control_plane, machine, people
from tests.adversary.machine import needs_reboot
from tests.adversary.node import LATER, NAMES, SOON, Node
from tests.adversary.turns import undoes
from tests.adversary.worlds import CLOSURES

Move = tuple[str, Callable[[Node], Node]]

_P, _A = CLOSURES["P"], CLOSURES["A"]
_SOON, _LATER = ("soon", partial(machine.passes, seconds=SOON)), ("later", partial(machine.passes, seconds=LATER))
_FAILS = ("fails", partial(machine.probe, status=ProbeStatus.FAIL, times=2))
_PASSES = ("passes", partial(machine.probe, status=ProbeStatus.PASS, times=1))
_BY_HAND = {to: (f"by hand to {NAMES[to]}", partial(people.by_hand, to=to)) for to in (_P, _A)}
_REBOOTS = {to: (f"reboot into {name}", partial(machine.reboot, to=to)) for to, name in NAMES.items()}
_DISPATCHES = [partial(control_plane.dispatch, index=index) for index in range(4)]


def _of_script(codes: tuple[str, ...]) -> list[Move]:
    return [(f"ends with {code}", partial(machine.script, how=code)) for code in codes]


_FLIPS = ("flips", partial(machine.script, how="flips"))
_BEFORE_FLIP = [*_of_script(("1", "killed"))]
_AFTER_FLIP = _of_script(("0", "4", "2", "100", "killed"))
_DEFERS = ("takes a reboot after all", partial(machine.stands_back, how="defers"))
_REFUSED = ("is refused by its check", partial(machine.stands_back, how="is refused"))
_FORWARD = {
    how: (how, partial(machine.forward, how=how))
    for how in ("fails early", "finds it there", "finds its end", "finds the guard's work", "defers", "begins")
}
_BACK = {
    "goes back": ("goes back", partial(machine.back, how="works")),
    "boots": ("goes back with the next boot", partial(machine.back, how="boots")),
    "fails": ("can't go back", partial(machine.back, how="fails")),
}


def moves(node: Node) -> Iterator[Move]:
    """Everything that can happen next."""
    parties = node.world.parties
    if node.decides:
        yield from _control_plane(node)
        yield from _worker(node)
        if node.probing is not None:
            yield _PASSES
            yield _FAILS
    elif node.up and node.disk == "full" and node.probing is not None:
        yield _FAILS
    yield _SOON
    yield _LATER
    yield from _script(node)
    if node.up:
        yield "restart", machine.starts
    for to in sorted({node.entry, _P}):
        yield _REBOOTS[to]
    if node.switch is None:
        for to, move in _BY_HAND.items():
            if to != node.current:
                yield move
        if node.decides:
            yield "the disk forgets", people.forgets
    if "agent" in parties:
        yield from agents.moves(node)
    if "absent" in parties:
        yield ("dies", machine.dies) if node.up else ("starts", machine.starts)
    if "disk" in parties:
        yield from _disk(node)
    if "people" in parties and node.decides:
        yield from _people(node)


def _control_plane(node: Node) -> Iterator[Move]:
    releases = node.world.releases
    if "planner" in node.world.parties:
        if node.published < len(releases):
            yield "CI signs the next", control_plane.publishes
        yield "the planner's turn", control_plane.plans
    elif not node.silent:
        known = {rollout_id for rollout_id, _, _ in node.log}
        for release, move in zip(releases, _DISPATCHES, strict=False):
            if release.rollout_id not in known:
                yield f"dispatch {release.rollout_id}", move
    if node.silent != "refused" and node.host.active_id is not None:
        yield "hint", control_plane.hint


def _script(node: Node) -> Iterator[Move]:
    switch, ended = node.switch, node.ended
    if switch is not None:
        if not switch.flipped:
            yield _FLIPS
            yield from _BEFORE_FLIP
            if node.decides:
                yield _REFUSED
            if node.decides and switch.target != node.current:  # nothing of a system inhibits a switch to itself
                yield _DEFERS
        else:
            yield from _AFTER_FLIP
    unheard = switch is not None or (ended is not None and not node.decides and ended.rollout_id != node.guarded)
    if unheard and _takes_back(node, (switch or ended).rollout_id):  # type: ignore[union-attr]
        yield "guard", machine.guard


def _takes_back(node: Node, rollout_id: str) -> bool:
    """Whether the guard of a switch was armed, and its rollout still open on disk."""
    rollout = node.host.rollouts.get(rollout_id)
    if rollout is None or rollout.record.terminal or rollout.record.activation_completed_at is not None:
        return False
    return rollout.accepted.policy == "rollback-and-halt" and rollout.record.prior_closure is not None


def _worker(node: Node) -> Iterator[Move]:
    order = node.order
    if node.switch is not None or order is None:
        return
    if isinstance(order, Forward):
        if node.guarded == order.rollout_id:
            yield _FORWARD["finds the guard's work"]
            return
        yield _FORWARD["fails early"]
        if node.ended is not None and node.ended.rollout_id == order.rollout_id:
            yield _FORWARD["finds its end"]
        elif order.target == node.current and not node.half:
            yield _FORWARD["finds it there"]
        elif needs_reboot(order.target, node.current):
            yield _FORWARD["defers"]
        else:
            yield _FORWARD["begins"]
    elif isinstance(order, Rollback) and node.given_up != order.rollout_id:
        yield _BACK["fails"]
        if undoes(order) and needs_reboot(order.target, node.current):
            if node.entry_way_back != node.boot:
                yield _BACK["boots"]
        elif not _drifted(node, order):
            yield _BACK["goes back"]


def _drifted(node: Node, order: Rollback) -> bool:
    """An operator's own switch is not undone."""
    return undoes(order) and node.current not in {order.target, order.failed, order.observed_at_failure}


def _disk(node: Node) -> Iterator[Move]:
    if node.disk:
        yield "the disk has room", people.has_room
    else:
        yield "the disk is full", partial(people.fills, how="full")
        yield "the disk refuses", partial(people.fills, how="refuses")


def _people(node: Node) -> Iterator[Move]:
    if isinstance(node.order, Rollback) and node.given_up is None:
        yield "gives the rollback up", people.gives_up
    if node.given_up is not None:
        yield "wants the rollback", people.wants_it
    if node.silent:
        yield "is heard again", partial(people.falls_silent, why="")
    else:
        yield "holds the host", partial(people.falls_silent, why="held")
        yield "its certificate is refused", partial(people.falls_silent, why="refused")
