"""When a soaking rollout fails or converges: measured on a clock that nobody can set, decided by a pure function.

The stamps in a record come from the wall clock, which can be stepped; a soak must not end, and a rollback not fire,
because somebody corrected the time. So each process measures for itself: what the log proves had passed
before it started, plus its own monotonic seconds since.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType

from nixfleet_agent.state_machine.events import ActivationCompleted, Event, ProbeTopologyDeclared
from nixfleet_agent.state_machine.record import RolloutRecord
from nixfleet_agent.state_machine.states import ProbeStatus, State

#: One failure may be a hiccup; a probe that runs once has no second run to wait for.
FAILURES_IN_ROW = 2


@dataclass(frozen=True, slots=True)
class ProbeTimer:
    """What this process saw of one probe. ``failing_since`` is monotonic seconds, None while it passes."""

    status: ProbeStatus
    failing_since: float | None = None
    failures_in_row: int = 0
    seen: bool = True


@dataclass(frozen=True, slots=True)
class Timers:
    """One rollout's measured time. ``soak_ends`` is monotonic seconds, None before the activation completed."""

    soak_ends: float | None = None
    probes: Mapping[str, ProbeTimer] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class SustainedFailure:
    """These enforce probes, sorted, have failed long enough; ``seconds`` of the longest."""

    probes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Convergence:
    """The soak is over and every gate passed."""


def soak_left(record: RolloutRecord, timers: Timers, monotonic: float) -> float | None:
    """Seconds that a soak still has to go, 0.0 when it is over; None for a rollout that does not soak."""
    if record.state is not State.SOAKING or timers.soak_ends is None:
        return None
    return max(0.0, timers.soak_ends - monotonic)


def resumed(
    record: RolloutRecord, last_stamp: datetime, monotonic: float, measured_left: float | None = None
) -> Timers:
    """Timers of a rollout folded from its log.

    ``measured_left`` is what the log says that the soak still had to go at its last event (seconds); ``last_stamp``,
    the latest time that the log proves, is for logs of agents that did not say so.
    """
    if record.state is not State.SOAKING or record.soak_due_at is None:
        return Timers()
    left = max(0.0, (record.soak_due_at - last_stamp).total_seconds()) if measured_left is None else measured_left
    probes = {
        name: ProbeTimer(
            probe.status,
            None
            if probe.failing_since is None
            else monotonic - max(0.0, (probe.last_observed_at - probe.failing_since).total_seconds()),
            probe.failures_in_row,
            seen=False,
        )
        for name, probe in record.probes.items()
    }
    return Timers(monotonic + left, MappingProxyType(probes))


def applied(timers: Timers, record: RolloutRecord, event: Event, monotonic: float) -> Timers:
    """Timers after ``event`` led to ``record``; results are measured by ``observed``."""
    if isinstance(event, ActivationCompleted) and record.soak_due_at is not None:
        # A clock that was set back since the acceptance (a board without one boots in the past) would lengthen the soak
        # by what it is behind: no activation completes before it was accepted.
        completed_at = max(event.completed_at, record.dispatched_at)
        left = max((record.soak_due_at - completed_at).total_seconds(), 60.0 * record.soak_floor)
        return Timers(monotonic + max(0.0, left))
    if isinstance(event, ProbeTopologyDeclared):
        names = {probe.probe_name for probe in event.probes}
        kept = {name: timer for name, timer in timers.probes.items() if name in names}
        return replace(timers, probes=MappingProxyType(kept))
    return timers


def taken_over(timers: Timers, earlier: Timers, monotonic: float, passed: Container[str] = ()) -> Timers:
    """Timers of a rollout that continues the soak of an earlier one with the same closure: its failures go on.

    Otherwise a failing release would never fail, as long as somebody sends it again. ``passed`` are probes that have
    passed since; each probe still needs a result of its own before anything is decided.
    """
    merged = dict(timers.probes)
    for name, before in earlier.probes.items():
        own = merged.get(name)
        if own is None:
            merged[name] = replace(before, seen=False)
        elif own.failing_since is not None and before.failing_since is not None and name not in passed:
            since = own.failing_since - max(0.0, monotonic - before.failing_since)
            merged[name] = replace(
                own, failing_since=since, failures_in_row=own.failures_in_row + before.failures_in_row
            )
    return replace(timers, probes=MappingProxyType(merged))


def observed(timers: Timers, probe_name: str, status: ProbeStatus, monotonic: float) -> Timers:
    """Timers after one run of a probe, whether or not that run is worth an event of its own."""
    last = timers.probes.get(probe_name)
    if status is ProbeStatus.PASS:
        timer = ProbeTimer(status)
    else:
        since = last.failing_since if last else None
        timer = ProbeTimer(status, monotonic if since is None else since, 1 + (last.failures_in_row if last else 0))
    return replace(timers, probes=MappingProxyType({**timers.probes, probe_name: timer}))


def decide(
    record: RolloutRecord, timers: Timers, monotonic: float, current: str | None, threshold: float
) -> SustainedFailure | Convergence | None:
    """What this moment means for a rollout; ``current`` is what runs, ``threshold`` is in seconds.

    A host that does not run the target has drifted: that is reported elsewhere and decides nothing, because the
    switch was an operator's own. Failure is looked for first, so it wins where both hold.
    """
    if record.state is not State.SOAKING or current != record.target_closure or record.topology is None:
        return None
    gates = [timers.probes.get(name) for name in record.gates]
    if any(gate is None or not gate.seen for gate in gates):
        return None
    failing = _failing(record, timers, monotonic, threshold)
    if failing is not None:
        return failing
    passed = all(gate is not None and gate.status is ProbeStatus.PASS for gate in gates)
    soaked = timers.soak_ends is not None and monotonic >= timers.soak_ends
    return Convergence() if passed and soaked else None


def _failing(record: RolloutRecord, timers: Timers, monotonic: float, threshold: float) -> SustainedFailure | None:
    once = {probe.probe_name for probe in record.topology or () if probe.run_once}
    seconds: dict[str, float] = {}
    for name in record.gates:
        timer = timers.probes[name]
        if timer.failing_since is None or timer.failures_in_row < (1 if name in once else FAILURES_IN_ROW):
            continue
        failed_for = monotonic - timer.failing_since
        if failed_for >= threshold:
            seconds[name] = failed_for
    return SustainedFailure(tuple(sorted(seconds)), max(seconds.values())) if seconds else None
