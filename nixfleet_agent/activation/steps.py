"""What the way forward and the way back have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from nixfleet_agent.activation import verify_poll
from nixfleet_agent.activation.backends.base import Backend
from nixfleet_agent.activation.context import Context
from nixfleet_agent.activation.errors import PhaseFailed
from nixfleet_agent.activation.guard import Guard
from nixfleet_agent.activation.records import BOOT, Record, Records
from nixfleet_agent.activation.switches import LOCK_PHASE, Job, Switches
from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.ids import CLOSURE, ROLLOUT_ID, require

_Verified = TypeVar("_Verified")

BOOT_PHASE = "defer-bootloader-update"


@dataclass(frozen=True, slots=True)
class Parts:
    """What forward and rollback work with."""

    context: Context
    records: Records
    backend: Backend
    switches: Switches
    guard: Guard


def require_names(rollout_id: str, *closures: str | None) -> None:
    """Raises PhaseFailed for a name that must not become a path or an argument."""
    try:
        require(ROLLOUT_ID, rollout_id, "the rollout id")
        for closure in closures:
            if closure is not None:
                require(CLOSURE, closure, "the closure")
    except ProtoError as error:
        raise PhaseFailed("names", str(error)) from error


def update_bootloader(parts: Parts, rollout_id: str, target: str, *, unchecked: bool = False) -> None:
    """Run the target's ``switch-to-configuration boot`` (raises PhaseFailed). The guard is never armed for it."""
    job = Job(rollout_id, BOOT, target, "boot", unchecked)
    with parts.context.phase("boot"):
        switch_until_unlocked(
            parts,
            lambda: parts.switches.fire(job),
            lambda record: verify_poll.follow_script(parts.context, parts.switches, record, BOOT_PHASE),
        )


def switch_until_unlocked(parts: Parts, fire: Callable[[], Record], verify: Callable[[Record], _Verified]) -> _Verified:
    """Fire and verify; a script that another's lock turned away has changed nothing and is fired again.

    Raises:
        PhaseFailed: as ``verify``; or the lock was held for the whole poll budget.
    """
    context = parts.context
    deadline = context.clock.monotonic() + context.config.poll_budget_secs
    while True:
        record = fire()
        try:
            return verify(record)
        except PhaseFailed as failure:
            if not record.lock_refused:
                raise
            parts.guard.disarm(keep_hand_over=True)
            if context.clock.monotonic() >= deadline:
                raise PhaseFailed(LOCK_PHASE, failure.tail, failure.exit_code, failure.observed) from failure
        context.log.info("another switch held the lock: trying again")
        context.pause(context.config.poll_interval_secs)
