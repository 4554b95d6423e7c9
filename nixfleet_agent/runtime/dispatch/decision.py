"""What becomes of a received Dispatch: pure rules over it, the time it was kept, and what came of checking it.

It is refused for good, kept for another try, given up as too old, or handed to the reducer as an ``Acceptance``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from nixfleet_agent.artifacts.cache import Terms
from nixfleet_agent.artifacts.fetch import UnavailableError
from nixfleet_agent.errors import AgentError, ProtoError, TransportError
from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.proto.ids import case_hint
from nixfleet_agent.runtime.rollout.inputs import Answer
from nixfleet_agent.text import printable
from nixfleet_agent.trust.errors import VerificationError

#: How long a Dispatch is kept while no fleet was ever seen that says how long it may be.
KEPT_WITHOUT_FLEET = timedelta(hours=24)
#: How much longer than it is signed for the control plane may make a soak. What soaks is probed and writes a log, and
#: one that never ends fills the disk.
LONGEST_EXTRA_SOAK = timedelta(days=1)
#: Seconds between two looks at a hold or a quarantine, which an operator may lift at any moment.
GATE_RECHECK = 5.0


@dataclass(frozen=True, slots=True)
class Pending:
    """A Dispatch that is not decided yet. ``kept_for`` is how long, up to ``as_of`` and without the time under hold."""

    dispatch: Dispatch
    received_at: datetime
    as_of: datetime
    kept_for: timedelta = timedelta(0)
    held: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """Never: nothing that can change makes this Dispatch acceptable."""

    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class Retry:
    """Not now. ``gated`` while only this host's own hold or quarantine stands in the way; ``after`` is the seconds that
    the control plane asked to wait.
    """

    label: str
    reason: str
    gated: bool = False
    after: float = 0.0

    def differs_from(self, last: Retry | None) -> bool:
        """Whether it is worth saying aloud: the same kind of reason with another age or time in its text is not."""
        return last is None or last.label != self.label or (self.label == "not_now" and last.reason != self.reason)

    @property
    def pauses(self) -> bool:
        """Whether this host itself keeps it waiting on purpose: that time does not make a Dispatch older."""
        return self.label in ("hold", "window")


@dataclass(frozen=True, slots=True)
class Expire:
    """Kept as long as the channel's freshness window, and still not acceptable."""

    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """The reducer has it (``accepted``), or had it before (``repeat``)."""

    label: str


ACCEPTED = Done("accepted")
REPEAT = Done("repeat")

Outcome = Refuse | Retry | Expire | Done


def check_recipient(dispatch: Dispatch, machine_id: str) -> Refuse | None:
    """The refusal of a Dispatch that is for another host."""
    if dispatch.hostname == machine_id:
        return None
    hint = case_hint(dispatch.hostname, machine_id)
    return Refuse("host", f"it is for {printable(dispatch.hostname, 250)}, and this host is {machine_id}{hint}")


def of_failure(error: AgentError) -> Refuse | Retry:
    """What a failed check means: final refusals are those of content, everything else may pass."""
    if isinstance(error, VerificationError):
        return Refuse(error.reason, str(error)) if error.final else Retry(error.reason, str(error))
    if isinstance(error, TransportError):
        after = error.retry_after if isinstance(error, UnavailableError) else None
        return Retry(error.kind, str(error), after=after or 0.0)
    if isinstance(error, ProtoError):
        return Refuse("pattern", str(error))
    return Retry("local", str(error))


def of_gates(hold: str | None, window: str | None, quarantine: str | None) -> Retry | None:
    """What an operator's hold, a maintenance window or the quarantine means; each may be lifted at any moment."""
    if hold is not None:
        return Retry("hold", f"held back by an operator: {hold}", gated=True)
    if window is not None:
        return Retry("window", window, gated=True)
    if quarantine is not None:
        return Retry("quarantine", f"the closure is in quarantine: {quarantine}", gated=True)
    return None


def of_answer(answer: Answer | None, reason: str) -> Done | Retry:
    """What the reducer's reply means; no reply is shutdown, and the Dispatch stays for the next process."""
    if answer is Answer.ACCEPTED:
        return ACCEPTED
    if answer is Answer.REPEAT:
        return REPEAT
    return Retry("not_now", reason or "the agent is stopping", gated=True)


def resumed(pending: Pending, now: datetime) -> Pending:
    """A Dispatch read from disk by a new process: the time in between counts, where no hold was in force."""
    return advanced(pending, max(timedelta(0), now - pending.as_of), now)


def advanced(pending: Pending, elapsed: timedelta, now: datetime) -> Pending:
    """``elapsed`` went by on the monotonic clock; under hold it does not count."""
    counted = timedelta(0) if pending.held else elapsed
    return replace(pending, kept_for=pending.kept_for + counted, as_of=now)


def expiry(pending: Pending, window: timedelta | None) -> Expire | None:
    """Whether it has been kept longer than its channel's freshness window."""
    limit = KEPT_WITHOUT_FLEET if window is None else window
    if pending.kept_for <= limit:
        return None
    kept, allowed = (int(span.total_seconds() // 60) for span in (pending.kept_for, limit))
    return Expire(f"kept for {kept} minutes, and the freshness window of its channel is {allowed}")


def poll_wait(dispatch_wait: float, next_try_in: float | None) -> float:
    """Seconds that the next long poll may hold: while a Dispatch waits for its next try, not past that."""
    if next_try_in is None:
        return dispatch_wait
    return min(dispatch_wait, max(1.0, math.ceil(next_try_in)))


def acceptance(
    rollout_id: str,
    target_closure: str,
    terms: Terms,
    *,
    soak_due_at: datetime,
    received_at: datetime,
    current_closure: str | None,
) -> Acceptance:
    """What the reducer stores and acts on: times from the control plane, everything else from signed artifacts."""
    floor = terms.resolved.soak_floor_minutes
    longest = timedelta(minutes=floor) + LONGEST_EXTRA_SOAK
    return Acceptance(
        rollout_id=rollout_id,
        target_closure=target_closure,
        current_closure=current_closure,
        soak_due_at=received_at + longest if soak_due_at - received_at > longest else soak_due_at,
        accepted_at=received_at,
        soak_floor=floor,
        policy=terms.resolved.policy,
        manifest_hash=terms.manifest.hash,
        manifest_signed_at=terms.manifest.signed_at,
        fleet_hash=terms.fleet.hash,
        fleet_signed_at=terms.fleet.signed_at,
        marks=terms.marks.to_json(),
    )
