"""The promises I1 to I5 of a host, asked of its disk at the end of a run, whatever the run was about.

The model (``tests/adversary``) asks the same in every state that it can think of; this asks a real agent's disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nixfleet_agent.activation.verify_poll import DONE
from nixfleet_agent.runtime.rollout.rollouts import Host, Rollout, age
from nixfleet_agent.runtime.rollout.succession import in_charge, watched
from nixfleet_agent.state_machine import Policy, State


@dataclass(frozen=True, slots=True)
class Seen:
    """A host after a run: its rollouts as its log proves them, what runs, and the events of each rollout in order.

    ``rebooted``: a switch that was cut off by a reboot into its target has no exit code. ``identity`` are the files of
    its certificate and key.
    """

    host: Host
    current: str | None
    events: Mapping[str, list[Mapping[str, Any]]]
    rebooted: bool = False
    identity: tuple[Path, ...] = ()


def broken(seen: Seen) -> Iterator[str]:
    """One line for each promise that is not kept."""
    rollouts = sorted(seen.host.rollouts.values(), key=age)
    if rollouts and not (seen.current in _proven(rollouts) or _is_watched(seen) or _stays(rollouts)):
        yield f"I1: {seen.current} runs, not proven and not watched"
    accepted = [rollout.accepted for rollout in rollouts if not rollout.accepted.adopted]
    for before, after in pairwise(accepted):
        if (after.manifest_signed_at, after.manifest_hash) == (before.manifest_signed_at, before.manifest_hash):
            continue
        if after.manifest_signed_at <= before.manifest_signed_at:
            yield f"I2: {after.rollout_id} was accepted after {before.rollout_id}, and is not newer"
    for rollout in rollouts:
        codes = [e["exitCode"] for e in seen.events.get(rollout.rollout_id, ()) if e["kind"] == "ActivationCompleted"]
        if rollout.record.state is State.CONVERGED and not seen.rebooted and codes and codes[-1] not in DONE:
            yield f"I3: {rollout.rollout_id} has converged, and its switch ended with {codes[-1]}"
    yield from (f"I4: {path} is gone" for path in seen.identity if not path.is_file() or not path.stat().st_size)
    first = in_charge(seen.host)
    if first is not None and first.record.rollback_owed:
        yield f"I5: {first.rollout_id} still owes a rollback"


def _proven(rollouts: list[Rollout]) -> set[str | None]:
    """What ran before any rollout, and what converged and has not failed since."""
    first = rollouts[0].accepted
    proven = {first.target_closure if first.adopted else first.ran}
    for rollout in rollouts:
        record = rollout.record
        if record.state is State.CONVERGED:
            proven.add(record.target_closure)
        elif record.state in (State.FAILED, State.REVERTED) and record.switch_fired:
            proven.discard(record.target_closure)
    return proven


def _is_watched(seen: Seen) -> bool:
    return any(
        rollout.record.rollback_owed
        or (rollout.record.state is State.SOAKING and rollout.record.target_closure == seen.current)
        for rollout in watched(seen.host)
    )


def _stays(rollouts: list[Rollout]) -> bool:
    """The last switch failed, and by the signed policy, or for want of any way back, nothing follows."""
    last = next((rollout for rollout in reversed(rollouts) if rollout.begun), None)
    if last is None or last.record.state is not State.FAILED:
        return False
    return last.record.policy_applied is Policy.HALT or last.record.prior_closure is None
