"""Did every host end where it should? Read from the hosts' disks and the control plane's log, not from the story."""

from __future__ import annotations

from collections.abc import Iterator

from nixfleet_agent.demo.agents import Host
from nixfleet_agent.demo.fleet import DemoFleet, rollout_id_of
from nixfleet_agent.demo.scenario import Expected
from nixfleet_agent.proto.ids import file_part


def problems(fleet: DemoFleet, expected: Expected) -> list[str]:
    """One line for each thing that is not as it should be; empty when all is well."""
    return list(_problems(fleet, expected))


def _problems(fleet: DemoFleet, expected: Expected) -> Iterator[str]:
    for name, version in expected.running.items():
        host, closure = fleet.hosts[name], fleet.releases[version].closure
        if host.running_closure() != closure:
            yield f"{name} runs {host.running_closure()}, not {closure} ({version})"
        if host.profile_closure() != closure:
            yield f"{name} would boot {host.profile_closure()}, not {closure} ({version})"
        if host.undelivered():
            yield f"{name} has undelivered events: {', '.join(host.undelivered()[:3])}"
    store = fleet.control_plane.control.store
    for (version, name), state in expected.states.items():
        rollout_id = rollout_id_of(version)
        record = store.record(rollout_id, name)
        if record is None or record.state is not state:
            yield f"the control plane has {name} in {version} as {record.state if record else 'unknown'}, not {state}"
        here = [event["seq"] for event in store.events(name, rollout_id)]
        there = sent(fleet.hosts[name], rollout_id)
        if here != list(range(1, len(here) + 1)) or here != there:
            yield f"{name} sent {there} of {version}, the control plane has {here}"


def sent(host: Host, rollout_id: str) -> list[int]:
    """Seqs of the events of a rollout that the host has delivered, ascending."""
    folder = host.state_dir / "outbound-sent" / file_part(rollout_id)
    seqs = [int(path.name.partition("-")[0]) for path in folder.glob("*.json")]
    return sorted(seq for seq in seqs if seq)
