"""Did every host end where it should? Read from the disks and the database, not from the story."""

from __future__ import annotations

from collections.abc import Iterator

from nixfleet_agent.demo.agents import Host
from nixfleet_agent.demo.fleet import DemoFleet, rollout_id_of
from nixfleet_agent.demo.proofs import PROOFS
from nixfleet_agent.demo.scenario import NEVER, End, Scenario
from nixfleet_agent.demo.story import hosts_of
from nixfleet_agent.journal.chain_check import GOOD
from nixfleet_agent.local_cp.store import Store
from nixfleet_agent.proto.ids import file_part


def problems(fleet: DemoFleet, scenario: Scenario) -> list[str]:
    """One line for each thing that is not as it should be; empty when all is well."""
    with fleet.plane.store() as store:
        return [
            problem
            for end in scenario.end
            for host in (fleet.hosts[name] for name in hosts_of(fleet.names, end.hosts))
            for problem in (*_on_disk(fleet, host, end), *_in_log(store, host, end), *_proven(fleet, host, end))
        ]


def _on_disk(fleet: DemoFleet, host: Host, end: End) -> Iterator[str]:
    closure = fleet.releases[end.runs].closure
    if host.running_closure() != closure:
        yield f"{host.name} runs {host.running_closure()}, not {closure} ({end.runs})"
    if host.profile_closure() != closure:
        yield f"{host.name} has {host.profile_closure()} in its profile, not {closure} ({end.runs})"
    if host.booting_closure() != closure:
        yield f"{host.name} would boot {host.booting_closure()}, not {closure} ({end.runs})"
    if host.undelivered():
        yield f"{host.name} has undelivered events: {', '.join(host.undelivered()[:3])}"


def _in_log(store: Store, host: Host, end: End) -> Iterator[str]:
    """The control plane has every event that the host sent exactly once and in order, and draws the same conclusion."""
    for version, state in end.rollouts.items():
        rollout_id = rollout_id_of(version)
        record = store.record(rollout_id, host.name)
        found = NEVER if record is None else record.state.value
        if found != state:
            yield f"the control plane has {host.name} in {version} as {found}, not {state}"
        here, there = store.arrivals(host.name, rollout_id), sent(host, rollout_id)
        if here != list(range(1, len(here) + 1)) or here != there:
            yield f"{host.name} sent {there} of {version}, the control plane took {here}"
        links = store.links(host.name, rollout_id)
        if broken := {seq: links.get(seq) for seq in here if links.get(seq) != GOOD}:
            yield f"{host.name}'s events of {version} do not follow one another: {broken}"
        if state == NEVER and there:
            yield f"{host.name} has taken part in {version}, which it should never have been given"


def _proven(fleet: DemoFleet, host: Host, end: End) -> Iterator[str]:
    for proof, versions in end.proven.items():
        for version in versions:
            yield from PROOFS[proof](fleet, host, version)


def sent(host: Host, rollout_id: str) -> list[int]:
    """Seqs of the events of a rollout that the host has delivered, ascending."""
    folder = host.state_dir / "outbound-sent" / file_part(rollout_id)
    seqs = [int(path.name.partition("-")[0]) for path in folder.glob("*.json")]
    return sorted(seq for seq in seqs if seq)
