"""What the passing of a second means for the active rollout: pure, from the record, the timers and what runs now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from nixfleet_agent.activation.host import same_boot
from nixfleet_agent.runtime.rollout.rollouts import Host, Rollout
from nixfleet_agent.runtime.rollout.succession import predecessor
from nixfleet_agent.state_machine import Event, State, timing
from nixfleet_agent.state_machine.events import (
    LocalActivationCompleted,
    LocalActivationFailed,
    LocalConvergedReached,
    LocalProbeResult,
    LocalSustainedFailureCrossed,
)
from nixfleet_agent.state_machine.states import Mode, ProbeStatus
from nixfleet_agent.text import clip

#: UTF-8 bytes of a gate's reason.
REASON_LIMIT = 512
#: What a boot into another system is called where a probe's or a phase's name would stand.
BOOT_FALLBACK = "boot-fallback"
#: The gate of a release that changes the agent itself: whether its own agent can start.
AGENT_START = "agent-start"


@dataclass(frozen=True, slots=True)
class Moment:
    """One look at the host: both clocks, the boot, and the basename that runs (None when it can't be read)."""

    now: datetime
    monotonic: float
    current: str | None
    boot_id: str


def due_event(rollout: Rollout, moment: Moment, threshold: float) -> Event | None:
    """The event that is due, if any; ``threshold`` is ``health_failure_threshold_secs``."""
    record, current = rollout.record, moment.current
    arrived = current is not None and current == record.target_closure
    if record.state is State.DEFERRED or (record.state is State.ACTIVATING and rollout.accepted.adopted):
        if arrived and current is not None:
            return LocalActivationCompleted(observed_current_closure=current, exit_code=0, completed_at=moment.now)
        rebooted = record.deferred_boot_id is not None and not same_boot(record.deferred_boot_id, moment.boot_id)
        if rebooted and current is not None:
            return LocalActivationFailed(
                exit_code=-1,
                stderr_tail=f"{BOOT_FALLBACK}: {_came_up(record.target_closure, current)}",
                failed_at=moment.now,
                switch_fired=True,
                observed_at_failure=current,
                boot_fallback=True,
            )
        return None
    if record.state is State.SOAKING and rollout.taken_back is not None:
        return _taken_back(rollout, rollout.taken_back, moment)
    if record.state is State.SOAKING and fell_back(rollout, moment):
        return LocalSustainedFailureCrossed(
            failed_at=moment.now,
            sustained_duration_secs=0,
            failing_probes=(BOOT_FALLBACK,),
            policy_applied=rollout.accepted.policy,
            observed_at_failure=current,
        )
    return _soaking(rollout, moment, threshold)


def _taken_back(rollout: Rollout, words: str, moment: Moment) -> Event:
    """The guard has acted, for the release's own agent was not ready in time: the gate's last word, then the end."""
    record, gate = rollout.record, rollout.record.probes.get(AGENT_START)
    if AGENT_START in record.gates and (gate is None or gate.status is ProbeStatus.PASS):
        return LocalProbeResult(
            probe_name=AGENT_START,
            mode=Mode.ENFORCE,
            status=ProbeStatus.FAIL,
            observed_at=moment.now,
            failure_reason=clip(words, REASON_LIMIT, "..."),
        )
    return LocalSustainedFailureCrossed(
        failed_at=moment.now,
        sustained_duration_secs=0,
        failing_probes=(AGENT_START,),
        policy_applied=rollout.accepted.policy,
        observed_at_failure=moment.current,
    )


def _came_up(target: str, current: str) -> str:
    return f"the host came up with {current} and not with {target}"


def fell_back(rollout: Rollout, moment: Moment) -> bool:
    """Whether a boot ended in another system than the soaking one: its entry was not written, its tries were used up,
    or somebody chose another entry. A switch by hand happens within a boot in which the target was seen to run.
    """
    elsewhere = moment.current is not None and moment.current != rollout.record.target_closure
    return elsewhere and rollout.boot_id is not None and not same_boot(rollout.boot_id, moment.boot_id)


def _soaking(rollout: Rollout, moment: Moment, threshold: float) -> Event | None:
    record = rollout.record
    verdict = timing.decide(record, rollout.timers, moment.monotonic, moment.current, threshold)
    if isinstance(verdict, timing.SustainedFailure):
        return LocalSustainedFailureCrossed(
            failed_at=moment.now,
            sustained_duration_secs=int(verdict.seconds),
            failing_probes=verdict.probes,
            policy_applied=rollout.accepted.policy,
            observed_at_failure=moment.current,
        )
    goes_on = rollout.hands_over or rollout.awaits_ready
    if isinstance(verdict, timing.Convergence) and moment.current is not None and not goes_on:
        # A wall clock that was set back since would stamp this before the soak's end, which the measured time refutes.
        at = max(moment.now, record.soak_due_at or moment.now)
        return LocalConvergedReached(converged_at=at, current_closure=moment.current)
    return None


def expected_of(host: Host) -> str | None:
    """What ought to run on the host: what its active rollout left, or what soaks until its switch begins."""
    active = host.active
    if active is None:
        return None
    return expected_closure(predecessor(host) or active)


def expected_closure(rollout: Rollout) -> str | None:
    """What ought to run while nothing of ours is under way; None while a switch may be, or a rollback is owed."""
    record = rollout.record
    if record.state in (State.SOAKING, State.CONVERGED):
        return record.target_closure
    if record.state is State.REVERTED:
        return record.reverted_to
    return None


def seen_running(rollout: Rollout, moment: Moment) -> Rollout:
    """The rollout; once its soaking target is seen to run in this boot, what replaces that is no boot's doing."""
    record = rollout.record
    seen = record.state is State.SOAKING and moment.current == record.target_closure
    return replace(rollout, boot_id=moment.boot_id) if seen and rollout.boot_id != moment.boot_id else rollout


def boot_entry_taken_back(earlier: Rollout, moment: Moment) -> Event:
    """The boot entry that is waited for went with ``earlier``, which it was to follow; nothing of it was tried here."""
    return LocalActivationFailed(
        exit_code=-1,
        stderr_tail=f"superseded-failed: {earlier.rollout_id} failed while this release waited for a reboot, "
        "and the way back has replaced its boot entry",
        failed_at=moment.now,
        switch_fired=False,
        observed_at_failure=moment.current,
    )


def needs_probes(rollout: Rollout, current: str | None) -> bool:
    """Whether the probes of a soaking rollout have yet to be started by this process, and can tell something."""
    record = rollout.record
    return record.state is State.SOAKING and not rollout.probes_started and current == record.target_closure


def probes_mislead(rollout: Rollout, current: str | None) -> bool:
    """Whether the probes of a soaking rollout look at a closure that is not its own.

    What they find would count as soon as the operator goes back: a pass that the target never gave, or a rollback of
    a target that nobody saw failing.
    """
    record = rollout.record
    elsewhere = current is not None and current != record.target_closure
    return record.state is State.SOAKING and rollout.probes_started and elsewhere
