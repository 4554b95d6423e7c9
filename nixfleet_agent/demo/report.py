"""What is said when the story has been told: by host for people, everything with its numbers for programs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nixfleet_agent.demo.agents import Host
from nixfleet_agent.demo.fleet import DemoFleet
from nixfleet_agent.demo.scenario import Scenario
from nixfleet_agent.demo.timeline import Timeline
from nixfleet_agent.text import printable

#: More hosts than this are not listed one by one.
LISTED = 10
MORE = "More stories: nixfleet-agent demo --list-scenarios. To look around in the fleet: --keep."


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the story ended; ``problems`` is empty when every host is where it should be. Times in seconds."""

    problems: list[str]
    set_up_secs: float
    seconds: float


def lines(scenario: Scenario, fleet: DemoFleet, timeline: Timeline, outcome: Outcome, folder: Path) -> Iterator[str]:
    """The report for people."""
    versions = {release.closure: version for version, release in fleet.releases.items()}
    yield ""
    for name, host in list(fleet.hosts.items())[:LISTED]:
        running = host.running_closure() or "nothing"
        yield f"{name}: runs {versions.get(running, running)}; {_states(timeline, name)}"
    if len(fleet.names) > LISTED:
        yield f"and {len(fleet.names) - LISTED} more"
    yield from _refusals(timeline, fleet)
    for problem in outcome.problems:
        yield f"PROBLEM: {printable(problem)}"
    how = "every host ended where it should" if not outcome.problems else "it did not end as it should"
    yield f"\nAfter {outcome.seconds:.0f} s {how}: {scenario.title}."
    yield f"Files: {folder} (hosts/*/agent.log, cp/cp.sqlite, cp/published, ci/cache)"


def remove_hint(folder: Path) -> str:
    """How the files are removed; those of a Nix store are read-only."""
    place = shlex.quote(str(folder))
    return f"Remove them with: chmod -R u+w {place} && rm -r {place}"


def document(
    scenario: Scenario, fleet: DemoFleet, timeline: Timeline, outcome: Outcome, folder: Path
) -> dict[str, Any]:
    """The report for programs; ``seconds_per_agent`` is without making keys, closures and stores."""
    hosts = fleet.hosts
    told = outcome.seconds - outcome.set_up_secs
    return {
        "ok": not outcome.problems,
        "scenario": scenario.name,
        "agents": len(hosts),
        "seconds": round(outcome.seconds, 2),
        "set_up_seconds": round(outcome.set_up_secs, 2),
        "seconds_per_agent": round(told / max(1, len(hosts)), 3),
        "problems": outcome.problems,
        "folder": str(folder),
        "rollouts": [
            {
                "version": rollout.version,
                "seconds": round(timeline.took(rollout.version), 2),
                "waves": [list(wave) for wave in rollout.waves],
                "halted": timeline.halted.get(rollout.version),
            }
            for rollout in timeline.rollouts
        ],
        "control_plane": fleet.plane.url,
        "page": fleet.plane.page_url,
        "commands": [command for command, _ in commands(fleet)],
        "hosts": [_host(host, timeline) for host in hosts.values()],
        "refusals": sorted({(r.hostname, r.reason) for r in timeline.refusals}),
        "timeline": [
            {"seconds": round(e.seconds, 2), "host": e.hostname, "version": e.version, "text": e.text}
            for e in timeline.entries
        ],
    }


def _host(host: Host, timeline: Timeline) -> dict[str, Any]:
    states = {version: state.value for (version, of), state in timeline.states.items() if of == host.name}
    return {"name": host.name, "pid": host.pid, "runs": host.running_closure(), "states": states}


def commands(fleet: DemoFleet) -> list[tuple[str, str]]:
    """(command, what it shows): lines that can be pasted into another terminal as they are."""
    host = next(iter(fleet.hosts.values()))
    on_host = shlex.quote(str(host.command))
    plane = fleet.plane
    identity = f"--cert {shlex.quote(str(host.client_certificate))} --key {shlex.quote(str(host.pem_key_file))}"
    curl = f"curl -fsS --cacert {shlex.quote(str(plane.ca_file))}"
    return [
        (f"{on_host} status", f"what the agent of {host.name} knows"),
        (f"{on_host} why", "what it waits for"),
        (f"{on_host} history", "the events of its last rollout"),
        (f"{on_host} probe", "its health checks, as the agent runs them"),
        (f"{on_host} quarantine list", "what it refuses to run again"),
        (f"{curl} {plane.url}/status.json", "the whole fleet"),
        (f"{curl} {identity} {plane.url}/v1/fleet.resolved", "what CI signed, fetched as this host"),
        (f"tail -n 20 {shlex.quote(str(host.log_file))}", "its log"),
    ]


def _refusals(timeline: Timeline, fleet: DemoFleet) -> Iterator[str]:
    """A line for each reason, in the order of the story."""
    by_reason: dict[str, set[str]] = {}
    for refusal in timeline.refusals:
        by_reason.setdefault(refusal.reason, set()).add(refusal.hostname)
    for reason, names in by_reason.items():
        who = "every host" if len(names) == len(fleet.names) else f"{len(names)} of {len(fleet.names)} hosts"
        yield f"{who} refused: {reason}"


def _states(timeline: Timeline, name: str) -> str:
    told = [(rollout.version, timeline.state(rollout.version, name)) for rollout in timeline.rollouts]
    return ", ".join(f"{version} {state}" for version, state in told if state) or "no rollout"
