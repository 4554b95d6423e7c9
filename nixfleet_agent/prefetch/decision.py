"""What to do about the release that comes next: fetch it, look at it, wait, or leave it alone. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

#: Seconds until what an operator or another program may have changed is looked at again.
RECHECK_SECS = 60.0


class Do(Enum):
    """What comes next: ``LOOK`` asks the store alone whether the closure is there, and holds it where it is."""

    REST = "rest"
    LOOK = "look"
    FETCH = "fetch"
    INSPECT = "inspect"


class State(Enum):
    """How far the next release is, as `status` shows it."""

    WAITING = "waiting"
    FETCHING = "fetching"
    FAILED = "failed"
    CHECKING = "checking"
    READY = "ready"
    OBSTRUCTED = "obstructed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that the decision rests on; times are monotonic seconds.

    The release: ``announced`` once this process has verified what CI publishes, ``closure`` is the one it names for
    this host (None: none). ``refusal`` is why it could not be accepted now; ``had_its_turn``: its rollout ran here and
    won't run again; ``in_progress``: its rollout is under way.

    The host: ``held`` is the closure that the root holds, ``current`` what runs, ``urgent``: an activation or a
    rollback is at work; ``quarantined`` and ``hold`` are the reasons, where there are any.

    What was done: ``looked``: the store was asked; ``starts_at``: when this host may ask the caches; ``failure`` and
    ``next_try_at`` of the last try; ``inspect_at``: when the closure is to be looked at, None: that is done.
    """

    now: float
    enabled: bool
    announced: bool
    closure: str | None
    refusal: str | None = None
    had_its_turn: bool = False
    in_progress: bool = False
    held: str | None = None
    current: str | None = None
    urgent: bool = False
    quarantined: str | None = None
    hold: str | None = None
    looked: bool = False
    starts_at: float = 0.0
    failure: str | None = None
    next_try_at: float = 0.0
    inspect_at: float | None = 0.0
    obstructed: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """``state`` None: there is nothing to show. ``until``: monotonic second of the next look, None: when something
    changes. ``keep``: what the root holds may stay; else the root goes.
    """

    do: Do
    state: State | None = None
    reason: str | None = None
    until: float | None = None
    keep: bool = True


def starts_at(now: float, spread_secs: float, rng: random.Random) -> float:
    """The monotonic second from which one host of a fleet that sees a release at ``now`` may ask the caches for it.

    Full jitter: with a delay that is the same for all, a fleet would only meet at the cache a little later.
    """
    return now + rng.uniform(0, spread_secs)


def decide(s: Situation) -> Decision:
    """What the situation asks for: a reason to leave it alone counts before a reason to wait."""
    if not s.enabled:
        return Decision(Do.REST, keep=False)
    if s.closure is None:
        # Until the first poll of this process the root is of the release that the last one knew.
        return Decision(Do.REST, keep=not s.announced)
    if s.in_progress:
        return Decision(Do.REST, keep=s.held == s.closure)
    if s.had_its_turn or s.closure == s.current:
        return Decision(Do.REST, keep=False)
    if s.quarantined is not None:
        reason = f"it is in quarantine: {s.quarantined}"
        return Decision(Do.REST, State.WAITING, reason, s.now + RECHECK_SECS, keep=False)
    return _gates(s) or _next_step(s)


def _gates(s: Situation) -> Decision | None:
    """Why nothing may be done now, though it may later; what is held stays."""
    keep, again = s.held == s.closure, s.now + RECHECK_SECS
    if s.refusal is not None:
        return Decision(Do.REST, State.WAITING, s.refusal, again, keep)
    if s.hold is not None:
        return Decision(Do.REST, State.WAITING, f"an operator holds back new activations: {s.hold}", again, keep)
    if s.urgent:
        return Decision(Do.REST, State.WAITING, "an activation or a rollback is at work", None, keep)
    return None


def _next_step(s: Situation) -> Decision:
    if s.held == s.closure:
        if s.inspect_at is not None and s.now >= s.inspect_at:
            return Decision(Do.INSPECT, State.CHECKING)
        return Decision(Do.REST, State.OBSTRUCTED if s.obstructed else State.READY, None, s.inspect_at)
    if not s.looked:
        return Decision(Do.LOOK, State.WAITING, keep=False)
    if s.now < s.starts_at:
        reason = "its start is spread, so that the fleet does not meet at the cache"
        return Decision(Do.REST, State.WAITING, reason, s.starts_at, keep=False)
    if s.failure is not None and s.now < s.next_try_at:
        return Decision(Do.REST, State.FAILED, s.failure, s.next_try_at, keep=False)
    return Decision(Do.FETCH, State.FETCHING, keep=False)
