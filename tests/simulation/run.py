"""One run of one plan: what befalls the fleet, then calm, a last good release, and the question whether all arrived."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from nixfleet_agent.config.model import TuningConfig
from nixfleet_agent.state_machine import State
from tests.simulation.actors import Actors
from tests.simulation.checks import Checks, Violation
from tests.simulation.disk import Trouble
from tests.simulation.plan import FINAL, Plan, closures
from tests.simulation.world import Host, World

#: How often it is looked whether all promises hold, in seconds.
LOOK_SECS = 7.0
#: An operator does not reboot a host again and again.
REBOOT_SECS = 900.0
#: How long after the end of all trouble the last release may take to arrive, in seconds.
BOUND_SECS = 2 * 3600.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: ``violation`` is empty when every promise was kept."""

    plan: Plan
    violation: str
    trace: str
    lines: list[str]
    rollouts: int
    simulated: float
    switches: int
    seconds: float


def run(plan: Plan, on_line: Callable[[str], None] | None = None) -> Outcome:
    """Play the plan to its end, or to the first broken promise."""
    began = time.process_time()
    world = World(plan, closures(plan), _tuning(plan))
    if on_line is not None:
        world.on_line = on_line
    violation = ""
    with world:
        try:
            _play(world, plan)
        except Violation as broken:
            violation = str(broken)
            world.note("checks", f"VIOLATION {violation}")
        simulated, trace, switches = world.scheduler.now, world.scheduler.trace, world.scheduler.switches
    rollouts = (plan.releases + 1) * plan.hosts
    return Outcome(plan, violation, trace, world.lines, rollouts, simulated, switches, time.process_time() - began)


def _tuning(plan: Plan) -> TuningConfig:
    """The agents' intervals; where little happens they look around less often."""
    usual, pace = TuningConfig(), plan.kind.pace
    return TuningConfig(
        advance_interval=plan.advance * pace,
        heartbeat_interval=usual.heartbeat_interval * pace,
        manifest_poll_interval=usual.manifest_poll_interval * pace,
        drain_interval=usual.drain_interval * pace,
        cert_check_interval=usual.cert_check_interval * pace,
        backoff_max=usual.backoff_max * pace,
    )


def _play(world: World, plan: Plan) -> None:
    actors = Actors(world, plan)
    checks = Checks(world, actors)
    for host in world.hosts:
        host.disk.trouble = Trouble(latency=plan.disk_latency)
        host.agent.start()
    for step in plan.steps:
        _pass(world, checks, step.at)
        actors.begin(step)
    _pass(world, checks, plan.end + 1.0)
    actors.calm()
    released, again = world.scheduler.now, [f"{FINAL}-2", f"{FINAL}-3"]
    rollout_id = actors.release(FINAL, 0)
    bound = world.scheduler.now + BOUND_SECS * max(1.0, plan.kind.pace / 4)
    arrived, patience = False, dict[str, float]()
    while not arrived and world.scheduler.now < bound:
        _pass(world, checks, world.scheduler.now + LOOK_SECS * plan.kind.pace)
        for host in world.hosts:
            if world.scheduler.now >= patience.get(host.name, 0.0) and _reboot_where_needed(host):
                patience[host.name] = world.scheduler.now + REBOOT_SECS
        if checks.lost_its_boot(rollout_id, released) and again:
            released = world.scheduler.now
            rollout_id = actors.release(again.pop(0), 0)
        arrived = checks.arrived(rollout_id, lost=actors.wiped or actors.hostile)
    checks.settled(rollout_id, lost=actors.wiped or actors.hostile)


def _pass(world: World, checks: Checks, until: float) -> None:
    look = LOOK_SECS * world.plan.kind.pace
    while (left := until - world.scheduler.now) > 0:
        world.scheduler.sleep(min(left, look))
        checks.look()


def _reboot_where_needed(host: Host) -> bool:
    """An operator gives a host the reboot that its release, or its rollback, waits for; whether it was one."""
    agent = host.agent.agent
    if agent is None or host.machine.entry == host.machine.current:
        return False
    rollouts = agent.reducer.host.rollouts.values()
    deferred = any(rollout.record.state is State.DEFERRED for rollout in rollouts)
    owed = any(rollout.record.rollback_owed for rollout in rollouts)
    needed = (deferred or owed) and not host.machine._held
    if needed:
        host.agent.wanted = False
        host.agent.signal(signal.SIGTERM)
        host.machine.scheduler.sleep(30.0)
        host.disk.sync()
        host.lose_power()
        host.power_up()
    return needed
