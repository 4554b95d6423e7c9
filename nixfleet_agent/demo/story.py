"""The verbs of a scenario, one method each: every one waits until it is true, or gives up and says on what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from nixfleet_agent.demo.agents import Host
from nixfleet_agent.demo.errors import DemoError
from nixfleet_agent.demo.fleet import DemoFleet, rollout_id_of
from nixfleet_agent.demo.scenario import Scenario
from nixfleet_agent.demo.timeline import Timeline
from nixfleet_agent.local_cp.happenings import FORGOTTEN
from nixfleet_agent.local_cp.neighbours import waiting_reason
from nixfleet_agent.text import printable

#: How long a step may take, in seconds, and what each agent adds to it on a small machine.
STEP_SECS = 60.0
STEP_SECS_PER_AGENT = 3.0
#: How long a maintenance window is open.
WINDOW = timedelta(hours=1)

_REACHED = {"Converged": "has converged on", "Reverted": "has gone back by itself from"}


class Story:
    """Tells one scenario on one fleet.

    Raises:
        DemoError: from every verb: it did not become true in time, or an agent or the control plane ended.
    """

    def __init__(self, fleet: DemoFleet, timeline: Timeline) -> None:
        self._fleet = fleet
        self._timeline = timeline
        self._changes_told: set[str] = set()
        self._patience = STEP_SECS + STEP_SECS_PER_AGENT * len(fleet.names)

    def tell(self, scenario: Scenario) -> None:
        """All steps, in order."""
        for step in scenario.steps:
            VERBS[step.do](self, **step.arguments)

    def release(self, version: str, waves: Sequence[str] = ("all",), signed_minutes_ago: int = 0) -> None:
        groups = [group for group in (hosts_of(self._fleet.names, wave) for wave in waves) if group]
        age = timedelta(minutes=signed_minutes_ago)
        signed = f"signed {version} {signed_minutes_ago} minutes ago" if age else f"signs {version}"
        told = " then ".join(_some(group) for group in groups)
        self._timeline.open_rollout(rollout_id_of(version), version, groups)
        self._timeline.note(f"CI {signed}; turns for {told}")
        self._fleet.publish(version, groups, age)

    def reach(self, version: str, state: str, hosts: str = "all") -> None:
        names = hosts_of(self._fleet.names, hosts)
        self._until(
            f"{hosts} to be {state} in {version}",
            lambda: all(self._timeline.state(version, name) == state for name in names),
        )
        self._tell_changes(version, names)
        self._timeline.note(f"{_who(hosts, names)} {_REACHED.get(state, f'is {state} in')} {version}")

    def event(self, version: str, kind: str, hosts: str = "all") -> None:
        names = hosts_of(self._fleet.names, hosts)
        self._until(
            f"{kind} of {version} from {hosts}",
            lambda: all(self._timeline.seen(name, version, kind) for name in names),
        )

    def runs(self, version: str, hosts: str = "all") -> None:
        """By the hosts' own disks, not by what the control plane believes."""
        closure = self._fleet.releases[version].closure
        chosen = self._hosts(hosts)
        self._until(f"{hosts} to run {version}", lambda: all(host.running_closure() == closure for host in chosen))
        self._timeline.note(f"{_who(hosts, _names(chosen))} runs {version}, by its own disk")

    def refused(self, reason: str, hosts: str = "all") -> None:
        names = hosts_of(self._fleet.names, hosts)
        self._until(
            f"{hosts} to refuse with {reason}",
            lambda: all(self._timeline.refused(name, reason) for name in names),
        )
        self._timeline.note(f"refused by {_some(names)}: {reason}")

    def renewed(self, times: int, hosts: str = "all") -> None:
        names = hosts_of(self._fleet.names, hosts)

        def done() -> bool:
            with self._fleet.plane.store() as store:
                issued = store.certificates()  # the first is the one that the host enrolled for
            return all(issued.get(name, 0) > times for name in names)

        self._until(f"{hosts} to renew {times} times", done)
        self._timeline.note(f"certificates renewed {'once' if times == 1 else f'{times} times'} by {_some(names)}")

    def kill_agent(self, hosts: str = "all") -> None:
        for host in self._hosts(hosts):
            host.kill()
            host.start()
            self._timeline.note(f"the agent of {host.name} is killed with -9, and started again")

    def kill_cp(self) -> None:
        self._fleet.plane.kill()
        self._timeline.note("the control plane is killed with -9")

    def start_cp(self, wiped: bool = False) -> None:
        if wiped:
            self._fleet.plane.forget()
            self._timeline.forget()
        self._fleet.plane.start()
        how = "with an empty database: it asks the agents for replays" if wiped else "on its database"
        self._timeline.note(f"the control plane is started again {how}")

    def partition(self, on: bool) -> None:
        self._fleet.plane.fault("partition", on)
        self._timeline.note(f"the control plane {'is cut off from its fleet' if on else 'can be reached again'}")

    def slow(self, seconds: float) -> None:
        self._fleet.plane.fault("delay", seconds)
        self._timeline.note(f"the control plane takes {seconds} s for every answer")

    def tamper(self, version: str) -> None:
        self._fleet.plane.fault("tampered", [rollout_id_of(version)])
        self._timeline.note(f"the control plane tampers with the signature of {version}")

    def misname(self, version: str, closure_of: str) -> None:
        closure = self._fleet.releases[closure_of].closure
        self._fleet.plane.fault("wrong_closures", {rollout_id_of(version): closure})
        self._timeline.note(f"the control plane names the closure of {closure_of} in the turns of {version}")

    def forget(self, kinds: Sequence[str]) -> None:
        self._fleet.plane.fault("forgotten", list(kinds))
        told = (
            f"answers each host's {', '.join(kinds)} with 204 and forgets it, once" if kinds else "forgets nothing more"
        )
        self._timeline.note(f"the control plane {told}")

    def forgotten(self, version: str, kind: str, hosts: str = "all") -> None:
        self.event(version, FORGOTTEN.format(kind), hosts)

    def window(self, opens_in: int, hosts: str = "all") -> None:
        """Every agent has read it when this ends."""
        chosen = self._hosts(hosts)
        opens = self._fleet.clock.now() + timedelta(seconds=opens_in)
        text = f"{opens:%H:%M:%S}-{opens + WINDOW:%H:%M:%S}"

        def read() -> bool:
            told = [host.status().get("maintenance") or {} for host in chosen]
            return all(section.get("windows") == [text] for section in told)

        # An agent that is just starting would be ended by the signal.
        self._until(f"the agents of {hosts} to answer", lambda: all(host.status() for host in chosen))
        for host in chosen:
            host.set_windows([text])
        self._until(f"{hosts} to read their windows", read)
        self._timeline.note(f"{_who(hosts, _names(chosen))} is only changed from {opens:%H:%M:%S} UTC on, for an hour")

    def run_now(self, reason: str, hosts: str = "all") -> None:
        for host in self._hosts(hosts):
            host.run_now(reason)
            self._timeline.note(f"an operator lets the next release through on {host.name}: {reason}")

    def waits(self, reason: str, hosts: str = "all") -> None:
        chosen, said = self._hosts(hosts), ""

        def all_say_it() -> bool:
            nonlocal said
            told = [waiting_reason(host.status()) or "" for host in chosen]
            said = told[0] if told else ""
            return all(reason in each for each in told)

        self._until(f"{hosts} to wait because {reason}", all_say_it)
        self._timeline.note(f"{_who(hosts, _names(chosen))} waits: {printable(said, 200)}")

    def reboot(self, hosts: str = "all") -> None:
        for host in self._hosts(hosts):
            host.reboot()
            self._timeline.note(f"{host.name} is rebooted into what its boot entry names")

    def hooks(self, hosts: str = "all") -> None:
        for host in self._hosts(hosts):
            self._fleet.balancer.add(host.name, host.hooks)
        self._timeline.note(f"{_who(hosts, hosts_of(self._fleet.names, hosts))} has hooks that drain and undrain it")

    def clients(self, connected: bool, hosts: str = "all") -> None:
        names = hosts_of(self._fleet.names, hosts)
        for name in names:
            self._fleet.balancer.connect(name, connected)
        self._timeline.note(f"{_who(hosts, names)} has {'clients' if connected else 'no client any more'}")

    def watch(self, seconds: float) -> None:
        self._timeline.wait(lambda: False, seconds, self._fleet.look_after)

    def note(self, text: str) -> None:
        self._timeline.note(text)

    def _tell_changes(self, version: str, names: Sequence[str]) -> None:
        """Once a release, by the first host that has kept what its switch changed."""
        if version in self._changes_told:
            return
        told = (self._fleet.hosts[name].changes(rollout_id_of(version)) for name in names)
        if changed := next(filter(None, told), None):
            self._changes_told.add(version)
            self._timeline.note(f"{version} changes {changed}")

    def _hosts(self, hosts: str) -> list[Host]:
        return [self._fleet.hosts[name] for name in hosts_of(self._fleet.names, hosts)]

    def _until(self, what: str, done: Callable[[], bool]) -> None:
        if not self._timeline.wait(done, self._patience, self._fleet.look_after):
            raise DemoError(f"waited {self._patience:.0f} s for {what}")


VERBS: Mapping[str, Callable[..., Any]] = {
    "release": Story.release,
    "reach": Story.reach,
    "event": Story.event,
    "runs": Story.runs,
    "refused": Story.refused,
    "renewed": Story.renewed,
    "kill-agent": Story.kill_agent,
    "kill-cp": Story.kill_cp,
    "start-cp": Story.start_cp,
    "partition": Story.partition,
    "slow": Story.slow,
    "tamper": Story.tamper,
    "misname": Story.misname,
    "forget": Story.forget,
    "forgotten": Story.forgotten,
    "window": Story.window,
    "run-now": Story.run_now,
    "waits": Story.waits,
    "reboot": Story.reboot,
    "hooks": Story.hooks,
    "clients": Story.clients,
    "watch": Story.watch,
    "note": Story.note,
}


def hosts_of(names: Sequence[str], which: str) -> tuple[str, ...]:
    """The hosts that a word of a scenario means; ``rest`` of a single host is nobody."""
    match which:
        case "first":
            return tuple(names[:1])
        case "rest":
            return tuple(names[1:])
        case "last":
            return tuple(names[-1:])
    return tuple(names)


def _names(hosts: Iterable[Host]) -> list[str]:
    return [host.name for host in hosts]


def _who(which: str, names: Sequence[str]) -> str:
    """Always singular, whoever is meant."""
    if which == "all":
        return "every host"
    return names[0] if len(names) == 1 else f"each of {_some(names)}"


def _some(names: Iterable[str]) -> str:
    listed = tuple(names)
    return ", ".join(listed) if len(listed) <= 3 else f"{listed[0]} to {listed[-1]}"
