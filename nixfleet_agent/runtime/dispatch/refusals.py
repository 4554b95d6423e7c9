"""What is said of Dispatches that are not accepted: log, counters, and the last ones on the status board."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.runtime.dispatch.decision import Expire, Refuse, Retry
from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.threads.clock import Clock

#: How many of the last ones are shown.
SHOWN = 10


@dataclass(frozen=True, slots=True)
class RefusalEntry:
    """One of the section ``refusals``, newest last; ``outcome`` is ``refused``, ``expired`` or ``kept``."""

    at: datetime
    outcome: str
    label: str
    reason: str
    rollout_id: str | None
    target_closure: str | None


class Refusals:
    """Used by the long poll worker alone."""

    def __init__(self, board: StatusBoard, clock: Clock, log: logging.Logger) -> None:
        self._board = board
        self._clock = clock
        self._log = log
        self._last: tuple[RefusalEntry, ...] = ()

    def refused(self, dispatch: Dispatch | None, refusal: Refuse) -> None:
        """For good: an operator should know that somebody asked this host for what CI did not sign."""
        self._board.count("dispatches", outcome="refused")
        self._board.count("dispatches_refused", reason=refusal.label)
        self._log.error("a Dispatch was refused: %s", refusal.reason, extra=_fields(dispatch, refusal.label))
        self._note("refused", refusal.label, refusal.reason, dispatch)

    def expired(self, dispatch: Dispatch, expired: Expire) -> None:
        """Given up after the channel's freshness window."""
        self._board.count("dispatches", outcome="expired")
        self._log.error("a Dispatch was given up: %s", expired.reason, extra=_fields(dispatch, "expired"))
        self._note("expired", "expired", expired.reason, dispatch)

    def kept(self, dispatch: Dispatch, keep: Retry) -> None:
        """Not now, for a reason that was not said before."""
        self._board.count("dispatches", outcome="kept")
        self._log.warning("a Dispatch is kept for later: %s", keep.reason, extra=_fields(dispatch, keep.label))
        self._note("kept", keep.label, keep.reason, dispatch)

    def _note(self, outcome: str, label: str, reason: str, dispatch: Dispatch | None) -> None:
        entry = RefusalEntry(
            at=self._clock.now(),
            outcome=outcome,
            label=label,
            reason=reason,
            rollout_id=dispatch.rollout_id if dispatch else None,
            target_closure=dispatch.target_closure if dispatch else None,
        )
        self._last = (*self._last, entry)[-SHOWN:]
        self._board.publish("refusals", self._last)


def _fields(dispatch: Dispatch | None, label: str) -> dict[str, str]:
    named = {"rollout_id": dispatch.rollout_id, "closure": dispatch.target_closure} if dispatch else {}
    return {"reason": label, **named}
