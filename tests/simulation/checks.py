"""What must hold at every step of a run (I1 to I5), and at its end: everybody arrived, everything told exactly once."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from nixfleet_agent.journal.entries import parse_name
from nixfleet_agent.runtime.rollout.evaluate import BOOT_FALLBACK
from nixfleet_agent.runtime.rollout.rollouts import Host as Rollouts
from nixfleet_agent.runtime.rollout.succession import watched
from nixfleet_agent.state_machine import State
from tests.simulation.actors import Actors
from tests.simulation.agent import journaled
from tests.simulation.world import Host, World, closure_name

#: So long may what runs be neither proven nor watched, or bad with nothing that hinders its rollback, in seconds.
UNWATCHED_SECS, BAD_SECS = 90.0, 4000.0
#: More threads than these in one agent are a leak.
MOST_THREADS = 20
#: So recently a closure must have run for an event to say that it does, in seconds.
LATELY_SECS = 60.0


class Violation(Exception):
    """A promise was broken; the message says which, where and when."""


@dataclass(slots=True)
class _Seen:
    """What is remembered of one host between two looks."""

    proven: set[str]
    unwatched_since: float | None = None
    bad_since: float | None = None
    elsewhere_since: float | None = None
    accepted: dict[str, datetime] = field(default_factory=dict)
    looked: object = None


class Checks:
    """``look`` is called every few seconds, ``settled`` at the end; both raise Violation."""

    def __init__(self, world: World, actors: Actors) -> None:
        self._world = world
        self._actors = actors
        self._hindered = actors.last_fault
        self._by_hand = actors.by_hand
        self._seen = {host.name: _Seen({closure_name("v0")}) for host in world.hosts}
        self.violation: Violation | None = None
        for host in world.hosts:
            host.machine.on_switch = lambda record, host=host: self._on_switch(host, record)  # type: ignore[misc]
            host.disk.on_step = lambda step, path, host=host: self._on_step(host, step, path)  # type: ignore[misc]

    # -- at every switch and every durable write ----------------------------------------------

    def _on_switch(self, host: Host, record: Path) -> None:
        """Nothing is switched before it is on disk that it begins."""
        intent = json.loads((record / "intent.json").read_bytes())
        if intent["direction"] != "forward":
            return
        rollout_id, state = intent["rollout_id"], host.machine.root / "state"
        places = (state / "outbound-queue", state / "outbound-sent" / rollout_id)
        names = [name for place in places if place.is_dir() for name in os.listdir(place)]
        if not any(name.endswith(f"{rollout_id}-ActivationStarted.json") for name in names):
            self._break(f"I4: {host.name} switches to {rollout_id} before its log says so")

    def _on_step(self, host: Host, step: str, path: Path) -> None:
        if step == "rename" and path.parent.parent.name == "outbound-sent":
            self._on_crossed_off(host, path)
        if step != "rename" or path.parent.name != "outbound-queue" or path.exists():
            return
        name = parse_name(path.name, host.name)
        if name is None or (path.parent.parent / "outbound-sent" / name.rollout_id / path.name).exists():
            return  # a replay
        if name.kind in ("ActivationCompleted", "Converged"):
            target = self._target(name.rollout_id)
            if not self._ran_lately(host, target):
                self._break(f"I3: {host.name} says {name.kind} of {name.rollout_id}, and {self._what(host)} runs")
            if name.kind == "Converged":
                self._seen[host.name].proven.add(target)

    def _on_crossed_off(self, host: Host, path: Path) -> None:
        """I4: the control plane has what is crossed off."""
        name, plane = parse_name(path.name, host.name), self._world.plane
        lies = self._actors.wiped or self._actors.hostile or plane.api is None
        if name is None or name.seq < 1 or lies:
            return
        if name.seq not in [seq for seq, _ in plane.events(host.name, name.rollout_id)]:
            self._break(f"I4: {host.name} crosses off {path.name}, which the control plane has not got")

    def _ran_lately(self, host: Host, closure: str) -> bool:
        machine = host.machine
        since = host.disk.troubled_since() - LATELY_SECS  # what the disk refused until now was decided before
        recent = [ran for at, ran, _ in machine.ran if at >= since]
        return closure in (machine.current, *recent) or self._before(host, since) == closure

    def _before(self, host: Host, since: float) -> str | None:
        older = [ran for at, ran, _ in host.machine.ran if at < since]
        return older[-1] if older else None

    # -- every few seconds --------------------------------------------------------------------

    def look(self) -> None:
        """Raises Violation."""
        if self.violation is not None:
            raise self.violation
        for task, error in self._world.scheduler.errors:
            raise Violation(f"a defect: {task.group}/{task.name} died of {error!r}")
        api = self._world.plane.api
        if api is not None and api.breaches:
            raise Violation(f"the contract of the wire is broken: {api.breaches[0]}")
        for number, host in enumerate(self._world.hosts):
            if host.agent.problems:
                raise Violation(host.agent.problems[0])
            agent = host.agent.agent
            if agent is None:
                self._rest(host)
                continue
            threads = len(self._world.scheduler.alive(host.agent.group))
            if threads > MOST_THREADS:
                raise Violation(f"resources: {host.name} has {threads} threads")
            self._never_older(host, agent.reducer.host)
            self._proven_or_watched(host, agent.reducer.host)
            self._soaks_what_runs(host, agent.reducer.host)
            self._not_bad_for_long(number, host)

    def _rest(self, host: Host) -> None:
        seen = self._seen[host.name]
        seen.unwatched_since = seen.bad_since = seen.elsewhere_since = None

    def _never_older(self, host: Host, rollouts: Rollouts) -> None:
        """I2: each manifest that was accepted is newer than all before it."""
        seen = self._seen[host.name]
        if seen.looked is rollouts:
            return
        seen.looked = rollouts
        for rollout in sorted(rollouts.rollouts.values(), key=lambda r: r.accepted.number):
            accepted = rollout.accepted
            if accepted.adopted or rollout.rollout_id in seen.accepted:
                continue
            newest = max(seen.accepted.values(), default=None)
            if newest is not None and accepted.manifest_signed_at <= newest:
                raise Violation(f"I2: {host.name} accepted {rollout.rollout_id}, which is older than what it had")
            seen.accepted[rollout.rollout_id] = accepted.manifest_signed_at

    def _proven_or_watched(self, host: Host, rollouts: Rollouts) -> None:
        """I1, for longer than a moment."""
        seen, machine, now = self._seen[host.name], host.machine, self._world.scheduler.now
        current = machine.current
        free = (
            (current in seen.proven and not machine.half)
            or machine._held
            or self._chosen_by_hand(host)
            or any(self._answers(r.record.target_closure, r.record.state, current) for r in watched(rollouts))
            or any(r.record.rollback_owed or r.record.state is State.ACTIVATING for r in rollouts.rollouts.values())
            or self._stays(rollouts)
        )
        if free:
            seen.unwatched_since = None
        elif seen.unwatched_since is None:
            seen.unwatched_since = now
        elif now - seen.unwatched_since > UNWATCHED_SECS:
            raise Violation(f"I1: {self._what(host)} runs on {host.name}, neither proven nor watched")

    def _soaks_what_runs(self, host: Host, rollouts: Rollouts) -> None:
        """I3: what a boot, or anything but an operator, has taken away does not soak."""
        seen, machine, now = self._seen[host.name], host.machine, self._world.scheduler.now
        soaking = [r for r in watched(rollouts) if r.record.state is State.SOAKING]
        free = machine._held or host.name in self._by_hand
        if free or all(r.record.target_closure == machine.current for r in soaking):
            seen.elsewhere_since = None
        elif seen.elsewhere_since is None:
            seen.elsewhere_since = now
        elif now - seen.elsewhere_since > UNWATCHED_SECS:
            raise Violation(f"I3: {soaking[0].rollout_id} soaks on {host.name}, and {self._what(host)} runs")

    @staticmethod
    def _answers(target: str, state: State, current: str) -> bool:
        return state is State.SOAKING and target == current

    @staticmethod
    def _stays(rollouts: Rollouts) -> bool:
        """What failed stays by the signed word, or for want of anything better."""
        last = max((r for r in rollouts.rollouts.values() if r.begun), key=lambda r: r.accepted.number, default=None)
        return (
            last is not None
            and last.record.state is State.FAILED
            and (last.record.policy_applied == "halt" or last.record.prior_closure is None)
        )

    def _chosen_by_hand(self, host: Host) -> bool:
        return host.machine.last == "operator"

    def _not_bad_for_long(self, number: int, host: Host) -> None:
        """I5: what fails is taken back when nothing hinders it for long enough."""
        seen, now = self._seen[host.name], self._world.scheduler.now
        hindered = max(self._hindered.get(number, 0.0), self._hindered.get(-1, 0.0))
        if host.machine.healthy() or self._chosen_by_hand(host) or host.name in self._by_hand:
            seen.bad_since = None
            return
        seen.bad_since = now if seen.bad_since is None else max(seen.bad_since, hindered)
        if now - seen.bad_since > BAD_SECS:
            raise Violation(f"I5: {self._what(host)} is bad and runs on {host.name} for {BAD_SECS:.0f} s")

    # -- at the end ---------------------------------------------------------------------------

    def arrived(self, rollout_id: str, *, lost: bool) -> bool:
        """Whether every host is where the last release wants it, and has told all; ``lost`` as for ``settled``."""
        return all(self._has_arrived(host, rollout_id, lost=lost) for host in self._world.hosts)

    def _has_arrived(self, host: Host, rollout_id: str, *, lost: bool) -> bool:
        kinds = [kind for _, kind in self._world.plane.events(host.name, rollout_id)]
        waits = [path.name for path in (host.machine.root / "state/outbound-queue").iterdir()]
        # Of an old rollout, a control plane that begins it anew refuses the end: it is kept for a day.
        waits = [name for name in waits if not lost or rollout_id in name]
        return host.machine.current == self._target(rollout_id) and kinds[-1:] == ["Converged"] and not waits

    def lost_its_boot(self, rollout_id: str, since: float) -> bool:
        """Whether a host gave the release of that time up by the rules, and another boot entry is why.

        A rollback of an earlier one has taken its own, or an operator's has come to life before its switch began.
        Raises Violation where the host says so of a boot that never came, or of a release that waited for none.
        """
        lost = False
        for host in self._world.hosts:
            machine, events = host.machine, self._world.plane.control.store.events(host.name, rollout_id)
            told = str(events)
            fell_back, superseded = BOOT_FALLBACK in told, "superseded-failed" in told
            booted = any(at >= since and who == "boot" for at, _, who in machine.ran)
            deferred = any(event["kind"] == "ActivationDeferred" for event in events)
            if (fell_back and not booted) or (superseded and not deferred):
                raise Violation(f"I3: {host.name} gives {rollout_id} up for a boot that was not: {events[-1]}")
            operators = machine.current == machine.entry and machine.chose_entry == "operator"
            lost = lost or fell_back or superseded or (operators and "third-closure" in told)
        return lost

    def settled(self, rollout_id: str, *, lost: bool) -> None:
        """Raises Violation. ``lost``: the control plane has lost events that it had acknowledged."""
        self.look()
        for host in self._world.hosts:
            if not self._has_arrived(host, rollout_id, lost=lost):
                raise Violation(f"liveness: {self._why_not(host, rollout_id, self._target(rollout_id))}")
            self._exactly_once(host, rollout_id if lost else None)
            rejected = sorted(path.name for path in (host.machine.root / "state/outbound-rejected").iterdir())
            # What began after the loss has no excuse.
            rejected = [name for name in rejected if not lost or rollout_id in name]
            if rejected:
                raise Violation(f"I4: {host.name} gave events up: {rejected[0]}")
        descriptors = len(os.listdir("/proc/self/fd"))
        if descriptors > 100 + 4 * len(self._world.hosts):
            raise Violation(f"resources: {descriptors} descriptors are open")

    def _why_not(self, host: Host, rollout_id: str, target: str) -> str:
        if host.machine.current != target:
            return f"{self._what(host)} runs on {host.name}, not {self._short(target)}"
        waits = sorted(path.name for path in (host.machine.root / "state/outbound-queue").iterdir())
        had = self._world.plane.events(host.name, rollout_id)
        return f"{host.name} has not told all of {rollout_id}: {had[-1:]} is known, {waits[:3]} wait"

    def _exactly_once(self, host: Host, whole: str | None) -> None:
        """``whole``: the only rollout of which a control plane that lost events has all; of none has it any twice."""
        for rollout_id, seqs in journaled(host.machine.root / "state", host.name).items():
            known = [seq for seq, _ in self._world.plane.events(host.name, rollout_id)]
            if len(set(seqs)) != len(seqs):
                raise Violation(f"exactly once: {host.name} has an event of {rollout_id} twice: {seqs}")
            lacks, odd = Counter(seqs) - Counter(known), Counter(known) - Counter(seqs)
            if odd or (lacks and whole in (None, rollout_id)):
                raise Violation(f"exactly once: {host.name} told {seqs} of {rollout_id}, the control plane has {known}")

    # -- words --------------------------------------------------------------------------------

    def _target(self, rollout_id: str) -> str:
        return closure_name(bytes.fromhex(rollout_id.partition("@")[2]).decode())

    def _short(self, closure: str) -> str:
        return self._world.closures[closure].short

    def _what(self, host: Host) -> str:
        return self._short(host.machine.current) + (" (half switched)" if host.machine.half else "")

    def _break(self, what: str) -> None:
        if self.violation is None:
            self.violation = Violation(what)
