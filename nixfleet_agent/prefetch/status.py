"""The section `next` of `status`: the release that comes next, and how far it is. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from nixfleet_agent.activation.readiness import Obstacle
from nixfleet_agent.prefetch.decision import State

#: Seconds of a download from which its end is estimated.
_ENOUGH_SECS = 5.0


@dataclass(frozen=True, slots=True)
class NextStatus:
    """``reason`` is why it waits or failed; bytes are of the download; ``total_bytes`` None: Nix does not tell.

    ``ready_at``: since when it is ready; while it is fetched, when it will be, as far as that can be told.
    ``next_try_at`` is when something is done about it again, None: when something changes.
    """

    rollout_id: str
    target_closure: str
    state: State
    reason: str | None = None
    fetched_bytes: int = 0
    total_bytes: int | None = None
    percent: int | None = None
    ready_at: datetime | None = None
    next_try_at: datetime | None = None
    obstacles: tuple[Obstacle, ...] = ()


def percent(fetched: int, total: int | None) -> int | None:
    """How much of a download is there; never 100 before it has ended. None while nobody knows how large it is."""
    return None if not total else min(99, fetched * 100 // total)


def expected_end(now: datetime, seconds: float, fetched: int, total: int | None) -> datetime | None:
    """When a download that took ``seconds`` so far will have ended if it goes on like that; None: too early to tell."""
    if not total or not fetched or seconds < _ENOUGH_SECS or fetched >= total:
        return None
    return now + timedelta(seconds=seconds * (total - fetched) / fetched)
