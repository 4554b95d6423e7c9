"""The stories: what is released, what goes wrong, and where every host should end. One function each.

A story says what it expects as it goes; the verdict is made from the disk afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from nixfleet_agent.demo.errors import DemoError
from nixfleet_agent.demo.fleet import FRESHNESS_MINUTES, INSTALLER, DemoFleet, rollout_id_of
from nixfleet_agent.demo.timeline import Timeline
from nixfleet_agent.state_machine import State

#: How long a step may take, in seconds, and what each agent adds to it on a small machine.
STEP_SECS = 60.0
STEP_SECS_PER_AGENT = 2.0
#: Each answer of a slow control plane is held back this long.
SLOW_SECS = 0.3


@dataclass(slots=True)
class Expected:
    """Where the story ends: the version that each host runs, and its state in each release that it took part in."""

    running: dict[str, str] = field(default_factory=dict)
    states: dict[tuple[str, str], State] = field(default_factory=dict)


class Story:
    """The verbs that stories are told with; each waits until it is true, and raises DemoError after too long."""

    def __init__(self, fleet: DemoFleet, timeline: Timeline) -> None:
        self.fleet = fleet
        self.timeline = timeline
        self.expected = Expected()
        self._patience = STEP_SECS + STEP_SECS_PER_AGENT * len(fleet.names)

    @property
    def at_once(self) -> tuple[tuple[str, ...], ...]:
        """All hosts in one wave."""
        return (self.fleet.names,)

    @property
    def canary_first(self) -> tuple[tuple[str, ...], ...]:
        """One host, then the others."""
        first, *rest = self.fleet.names
        return ((first,), tuple(rest)) if rest else ((first,),)

    def release(self, version: str, waves: tuple[tuple[str, ...], ...], age: timedelta = timedelta(0)) -> None:
        self.timeline.label(rollout_id_of(version), version)
        signed = f", signed {age} ago" if age else ""
        told = " then ".join(_some(wave) for wave in waves)
        self.timeline.note(f"CI signs {version}{signed}; the control plane gives turns: {told}")
        self.fleet.publish(version, waves, age)

    def converge(self, version: str) -> None:
        """Every host takes the release and keeps it."""
        self.reach(version, State.CONVERGED)
        self.expected.running |= dict.fromkeys(self.fleet.names, version)
        self.timeline.note(f"every host has converged on {version}")

    def roll_back(self, version: str, to: str) -> None:
        """Every host tries the release, fails, and goes back by itself."""
        self.reach(version, State.REVERTED)
        self.expected.running |= dict.fromkeys(self.fleet.names, to)
        self.timeline.note(f"every host is back on {to}; nobody told it to")

    def reach(self, version: str, state: State) -> None:
        for name in self.fleet.names:
            self.expected.states[version, name] = state
        self.until(
            f"{version} to be {state} everywhere",
            lambda: all(self.timeline.states.get((version, name)) is state for name in self.fleet.names),
        )

    def events(self, version: str, kind: str, hosts: Iterable[str]) -> None:
        """The control plane has this event of these hosts."""
        wanted = tuple(hosts)
        self.until(f"{kind} of {version}", lambda: all(self.timeline.seen(name, version, kind) for name in wanted))

    def refused(self, reason: str) -> None:
        """Every agent has logged a refusal for this reason."""
        self.until(
            f"every agent to refuse with {reason}",
            lambda: all(
                any(line.get("reason") == reason for line in host.log_lines()) for host in self.fleet.hosts.values()
            ),
        )
        self.timeline.note(f"every agent refused it: {reason}")

    def runs(self, version: str) -> None:
        """Every host runs the release, by its own disk and not by what the control plane believes."""
        closure = self.fleet.releases[version].closure
        self.until(
            f"every host to run {version}",
            lambda: all(host.running_closure() == closure for host in self.fleet.hosts.values()),
        )

    def stay(self, version: str) -> None:
        """Every host still runs the release: a refusal changed nothing."""
        self.runs(version)
        self.expected.running |= dict.fromkeys(self.fleet.names, version)
        self.timeline.note(f"every host stays on {version}")

    def until(self, what: str, done: Callable[[], bool]) -> None:
        if not self.timeline.wait(done, self._patience, self.fleet.look_after):
            raise DemoError(f"waited {self._patience:.0f} s for {what}")


def plain(story: Story) -> None:
    """v1 and v2 converge; v3 fails its health check, and every agent rolls it back by itself."""
    story.release("v1", story.at_once)
    story.converge("v1")
    story.release("v2", story.canary_first)
    story.converge("v2")
    story.release("v3", story.at_once)
    story.roll_back("v3", "v2")


def kill(story: Story) -> None:
    """Agents are killed in the middle of a switch and in the middle of a rollback, and started again."""
    first, last = story.fleet.names[0], story.fleet.names[-1]
    story.release("v1", story.at_once)
    story.converge("v1")
    story.release("v2", story.canary_first)
    story.events("v2", "ActivationStarted", [first])
    _kill(story, first)
    story.converge("v2")
    story.release("v3", story.at_once)
    story.events("v3", "Failed", [last])
    _kill(story, last)
    story.roll_back("v3", "v2")


def partition(story: Story) -> None:
    """The control plane can't be reached while v3 fails: the agents decide and go back without it."""
    story.release("v1", story.at_once)
    story.converge("v1")
    story.release("v2", story.canary_first)
    story.converge("v2")
    story.release("v3", story.at_once)
    story.events("v3", "ActivationCompleted", story.fleet.names)
    story.fleet.control_plane.partition(True)
    story.timeline.note("the control plane is cut off from its fleet")
    story.runs("v2")
    story.timeline.note("every host is back on v2, and the control plane knows nothing of it")
    story.fleet.control_plane.partition(False)
    story.timeline.note("the control plane can be reached again")
    story.roll_back("v3", "v2")


def slow(story: Story) -> None:
    """Every answer of the control plane comes late."""
    story.fleet.control_plane.faults.delay = SLOW_SECS
    story.timeline.note(f"the control plane takes {SLOW_SECS} s for every answer")
    plain(story)


def wipe_cp(story: Story) -> None:
    """The control plane loses its database in the middle of v2, and learns from the agents what had happened."""
    story.release("v1", story.at_once)
    story.converge("v1")
    story.release("v2", story.at_once)
    story.events("v2", "ActivationCompleted", story.fleet.names)
    story.fleet.control_plane.control.wipe()
    story.timeline.note("the control plane's database is gone; it asks for replays")
    story.converge("v2")
    story.expected.states = {key: state for key, state in story.expected.states.items() if key[0] != "v1"}
    story.release("v3", story.at_once)
    story.roll_back("v3", "v2")


def bad_signature(story: Story) -> None:
    """The control plane serves v2 with a signature that is not CI's."""
    story.release("v1", story.at_once)
    story.converge("v1")
    story.fleet.control_plane.faults.tampered = frozenset({rollout_id_of("v2")})
    story.timeline.note("the control plane tampers with the signature of v2")
    story.release("v2", story.at_once)
    story.refused("bad_signature")
    story.stay("v1")


def stale(story: Story) -> None:
    """The control plane serves a v1 that was signed too long ago; once CI has signed it anew it goes through.

    It is the first release, so that no newer signature has been accepted yet and its age alone speaks against it.
    """
    story.release("v1", story.at_once, timedelta(minutes=2 * FRESHNESS_MINUTES))
    story.refused("stale")
    story.stay(INSTALLER)
    story.release("v1", story.at_once)
    story.converge("v1")


def wrong_closure(story: Story) -> None:
    """The control plane tells hosts to run a closure that CI did not sign for them."""
    story.release("v1", story.at_once)
    story.converge("v1")
    story.fleet.control_plane.faults.wrong_closures = {rollout_id_of("v2"): story.fleet.releases["v3"].closure}
    story.timeline.note("the control plane names the closure of v3 in the turns of v2")
    story.release("v2", story.at_once)
    story.refused("closure_mismatch")
    story.stay("v1")


#: By the argument of ``--fault``.
FAULTS: Mapping[str, Callable[[Story], None]] = {
    "kill": kill,
    "partition": partition,
    "slow": slow,
    "wipe-cp": wipe_cp,
    "bad-signature": bad_signature,
    "stale": stale,
    "wrong-closure": wrong_closure,
}


def _kill(story: Story, name: str) -> None:
    host = story.fleet.hosts[name]
    host.kill()
    host.start()
    story.timeline.note(f"the agent of {name} was killed, and started again")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} to {names[-1]}"
