"""What the activation pipeline is told and what it answers: intents in, outcomes out, all plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

#: The signed policy under which the host takes a failed release back by itself.
ROLLBACK_AND_HALT = "rollback-and-halt"

EXIT_UNKNOWN = -1
EXIT_SIGNATURE_REFUSED = -2
EXIT_THIRD_CLOSURE = -3


@dataclass(frozen=True, slots=True)
class Forward:
    """The switch to ``target``; ``prior`` is the way back, if any.

    ``resume``: after a restart in the middle of it; ``already_started``: its start is in the log.
    ``signed_at`` is when the manifest that it was accepted under was signed; it does not make it another order.
    ``fresh_until`` is when the signed release is too old for another try of what failed; None: not limited.
    """

    rollout_id: str
    target: str
    prior: str | None
    policy: str
    resume: bool = False
    already_started: bool = False
    signed_at: datetime | None = field(default=None, compare=False)
    fresh_until: datetime | None = None

    @property
    def way_back(self) -> str | None:
        """The closure to return to; a prior equal to the target is none."""
        return self.prior if self.prior != self.target else None

    @property
    def takes_back(self) -> bool:
        """Whether a failure of this rollout is undone on the host."""
        return self.policy == ROLLBACK_AND_HALT and self.way_back is not None


@dataclass(frozen=True, slots=True)
class Rollback:
    """The switch back to ``target``, away from ``failed``; ``forward_fired`` None: only the switch records can tell.

    ``observed_at_failure`` is what ran when the rollout failed, where the caller knows it. ``inherited``: another
    rollout's switch is to be undone too, whether or not this one's own was ever fired.
    """

    rollout_id: str
    target: str
    failed: str
    forward_fired: bool | None
    observed_at_failure: str | None
    inherited: bool = False


@dataclass(frozen=True, slots=True)
class Completed:
    """``observed`` is current and its switch has ended; ``failed_units`` are those that its script named."""

    observed: str
    exit_code: int
    failed_units: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """``stderr_tail`` starts with ``phase`` and is at most 4 KiB; ``switch_fired``: units may be half changed."""

    exit_code: int
    stderr_tail: str
    phase: str
    switch_fired: bool
    observed: str | None


@dataclass(frozen=True, slots=True)
class Deferred:
    """The bootloader has the target; ``component`` can't be changed in a running system (boot ``boot_id``)."""

    component: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class RolledBack:
    """``observed`` is what runs after the rollback."""

    observed: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class RollbackFailed:
    """The host is not back yet; calling again retries."""

    exit_code: int
    stderr_tail: str
    phase: str


@dataclass(frozen=True, slots=True)
class RollbackDeferred:
    """The target is what boots next, and the rollback is over when it has; ``component`` can't be changed live."""

    component: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class RollbackDrift:
    """Somebody has switched the host to ``observed``, which this rollout knows nothing of: nothing was done."""

    observed: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """``reason`` (``shutdown`` or ``superseded``) came first; there is nothing to report."""

    reason: str


ForwardOutcome = Completed | Failed | Deferred | Interrupted
RollbackOutcome = RolledBack | RollbackFailed | RollbackDeferred | RollbackDrift | Interrupted
