"""What a control plane can do to a modelled host: any signed manifest at any time, its own planner, and any claim."""

from __future__ import annotations

from datetime import timedelta

from nixfleet_agent.local_cp import planner
from nixfleet_agent.proto.heartbeat import Snapshot
from nixfleet_agent.runtime.rollout import acceptances
from nixfleet_agent.runtime.rollout.decisions import Rules, Turn
from nixfleet_agent.runtime.rollout.succession import watched
from nixfleet_agent.state_machine import State
from nixfleet_agent.trust import resolve
from nixfleet_agent.trust.errors import VerificationError
from nixfleet_agent.trust.marks import ManifestMark
from tests.adversary.node import THRESHOLD, Node, broken, but
from tests.adversary.turns import take
from tests.adversary.worlds import CLOSURES, HOSTNAME, SOAK_MINUTES
from tests.state_machine.machine import T0


def dispatch(node: Node, index: int) -> Node:
    """It hands out a signed manifest: any, at any time, in any order; the same node where the host does not take it."""
    release, manifest = node.world.releases[index], node.world.manifests[index]
    if any(rollout_id == release.rollout_id for rollout_id, _, _ in node.log):
        return node
    try:
        resolve.check_order(manifest, node.marks)
    except VerificationError:
        return node
    marks = node.marks.raised(manifest=ManifestMark(manifest.signed_at, manifest.hash))
    raised = but(node, marks=marks)
    wanted = release.acceptance(node.current, node.moment.now)
    accepted = acceptances.accept(node.host, wanted, node.current)
    if isinstance(accepted, str) or node.disk:
        return raised if marks != node.marks else node
    node = raised
    if node.newest is not None and (
        manifest.signed_at < node.newest.at
        or (manifest.signed_at == node.newest.at and manifest.hash != node.newest.hash)
    ):
        node = broken(node, f"I2: {release.rollout_id} was accepted, and it is not newer")
    if not _open(node):
        node = but(node, proven=node.proven | {node.current})  # it ran before any open rollout of ours
    newest = ManifestMark(manifest.signed_at, manifest.hash)
    then = (*node.then, (release.rollout_id, node.proven))
    node = but(node, newest=newest, then=then, log=(*node.log, (release.rollout_id, accepted, ())))
    return take(node, lambda turn: turn.accepted(accepted, HOSTNAME))[0]


def _open(node: Node) -> bool:
    """Whether what runs is a rollout's doing, or one is under way that may still change it."""
    brought = any(r.record.target_closure == node.current and r.begun for r in node.host.rollouts.values())
    return brought or any(not rollout.record.terminal for rollout in watched(node.host))


def hint(node: Node) -> Node:
    """It claims that the active rollout has converged; no word of it may change more than a number."""
    active = node.host.active
    if active is None:
        return node
    snapshot = Snapshot(
        rollout_id=active.rollout_id,
        hostname=HOSTNAME,
        channel="stable",
        state=State.CONVERGED,
        target_closure=active.record.target_closure,
        last_event_seq=10**6,
        dispatched_at=T0,
    )
    turn = Turn(node.host, node.moment, Rules(THRESHOLD, 60.0, node.boot_id))
    turn.raise_seq(snapshot, 1)
    told = turn.host.rollouts[active.rollout_id]
    if turn.deeds or (told.record.state, told.timers) != (active.record.state, active.timers):
        return broken(node, "I4: an unsigned hint changed a rollout")
    return node


# -- the planner of the local control plane --------------------------------------------------------


def publishes(node: Node) -> Node:
    """CI signs the next release, which is the open one of its channel from here on."""
    return but(node, published=node.published + 1)


def plans(node: Node) -> Node:
    """The planner looks at what the host has told, and its order reaches the host."""
    for index in planned(node):
        node = dispatch(node, index)
    return node


def planned(node: Node) -> list[int]:
    """The releases whose turn it is, by the planner's own rules, as numbers."""
    open_ones = {release.channel: index for index, release in enumerate(node.world.releases[: node.published])}
    known = node.host.rollouts
    rollouts, failed = [], set()
    for channel, index in open_ones.items():
        release, rollout = node.world.releases[index], known.get(node.world.releases[index].rollout_id)
        placements = {}
        if rollout is not None:
            placements[HOSTNAME] = planner.Placement(rollout.record.state, rollout.record.terminal)
        rollouts.append(
            planner.RolloutView(
                rollout_id=release.rollout_id,
                channel=channel,
                targets={HOSTNAME: CLOSURES[release.target]},
                waves=(planner.Wave((HOSTNAME,), timedelta(minutes=SOAK_MINUTES)),),
                placements=placements,
            )
        )
    for rollout in known.values():
        if rollout.record.state is State.REVERTED:
            failed.add((rollout.record.channel, rollout.record.target_closure))
    view = planner.FleetView(rollouts=tuple(rollouts), ready=frozenset({HOSTNAME}), quarantine=frozenset(failed))
    orders = {order.rollout_id for order in planner.plan(view, node.moment.now).orders}
    return [index for index, release in enumerate(node.world.releases) if release.rollout_id in orders]
