"""This host as boot recovery would see it now, read beside an agent that may run, and changed by nothing."""

from __future__ import annotations

from itertools import groupby

from nixfleet_agent.activation.host import read_boot_id, read_current
from nixfleet_agent.activation.records import fired_rollouts
from nixfleet_agent.commands import journal_view
from nixfleet_agent.config.model import Config
from nixfleet_agent.operator.hold import HoldStore
from nixfleet_agent.operator.maintenance import MaintenanceGate
from nixfleet_agent.operator.quarantine import QuarantineStore
from nixfleet_agent.operator.run_now import RunNowStore
from nixfleet_agent.proto.ids import channel_of
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.runtime.rollout import recovery
from nixfleet_agent.runtime.rollout.rollouts import Host
from nixfleet_agent.runtime.rollout.succession import why_not_now
from nixfleet_agent.threads.clock import Clock


def recovered(config: Config, clock: Clock) -> Host:
    """Every rollout in the journal as its log proves it (raises OSError where the journal may not be read)."""
    found = [item for item in journal_view.scan(config.state_dir, config.machine_id) if item.name is not None]
    rollouts = []
    for _, items in groupby(found, key=lambda item: item.name.rollout_id if item.name else ""):
        entries, _ = journal_view.readable(list(items))
        log = [entries[seq][1] for seq in sorted(entries)]
        rollouts.append(recovery.fold(log, config.machine_id, max(entries, default=0), clock.monotonic()))
    fired = fired_rollouts(config.state_dir, read_boot_id())
    known = [rollout for rollout in rollouts if rollout is not None]
    return recovery.host_of(known, read_current(config.activation), clock.monotonic(), fired)


def gates(config: Config, host: Host, rollout_id: str, closure: str, clock: Clock) -> list[tuple[str, str]]:
    """What of this host's own a Dispatch would meet now, as (what, why); nothing where it would be accepted."""
    found = []
    if rollout_id in host.rollouts:
        found.append(("ran-here", "it was accepted on this host before, and a rollout runs once"))
    if (reason := why_not_now(host)) is not None:
        found.append(("rollback", reason))
    if (hold := HoldStore(config.state_dir, clock).current()) is not None:
        found.append(("hold", f"held back by an operator: {hold.reason}"))
    window = MaintenanceGate(config.maintenance, RunNowStore(config.state_dir, clock), clock).reason()
    if window is not None:
        found.append(("window", window))
    hours, running = config.quarantine_hours, read_current(config.activation)
    refused = QuarantineStore(config.state_dir).refusal(
        channel_of(rollout_id), closure, now=clock.now(), hours=hours, running=running
    )
    if refused is not None:
        until = format_time(refused.until(hours))
        found.append(
            ("quarantine", f"the closure is in quarantine: {refused.reason} in {refused.rollout_id}, until {until}")
        )
    return found
