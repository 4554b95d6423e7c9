"""The moments that hooks are run at, and which of them the log of a rollout still owes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nixfleet_agent.journal.entries import Entry

#: May keep a switch waiting; asked by the activation, not told from the log.
BEFORE_SWITCH = "before-switch"

#: The kinds of events that a moment is told by: each is durable before its hooks run, and run again after a crash.
MOMENTS: Mapping[str, str] = {
    "ActivationCompleted": "after-switch",
    "ActivationDeferred": "deferred",
    "ActivationFailed": "failed",
    "Converged": "converged",
    "Failed": "failed",
    "RollbackComplete": "reverted",
}

#: The folders below ``hooks.d``.
FOLDERS = (BEFORE_SWITCH, *dict.fromkeys(MOMENTS.values()))


@dataclass(frozen=True, slots=True)
class Occasion:
    """One moment of one rollout; ``seq`` is its event's, 0 before a switch. ``details`` are the event's fields."""

    moment: str
    rollout_id: str
    seq: int
    target: str
    prior: str | None
    details: Mapping[str, Any]

    def environment(self) -> dict[str, str]:
        """The variables that a hook gets beside the agent's own."""
        return {
            "NIXFLEET_MOMENT": self.moment,
            "NIXFLEET_ROLLOUT_ID": self.rollout_id,
            "NIXFLEET_SEQ": str(self.seq),
            "NIXFLEET_TARGET_CLOSURE": self.target,
            "NIXFLEET_PRIOR_CLOSURE": self.prior or "",
            "NIXFLEET_REASON": _reason(self.details),
        }


def owed(log: Iterable[Entry], told: int) -> Iterator[Occasion]:
    """The occasions in a rollout's log after seq ``told``, in order; the log begins with its header (seq 0)."""
    target, prior = "", None
    for entry in log:
        if entry.seq == 0:
            target, prior = str(entry.event.get("targetClosure", "")), entry.event.get("priorClosure")
        elif entry.seq > told and entry.kind in MOMENTS:
            way_back = prior if isinstance(prior, str) else None
            yield Occasion(MOMENTS[entry.kind], entry.rollout_id, entry.seq, target, way_back, entry.event)


def _reason(details: Mapping[str, Any]) -> str:
    """What went wrong or what stood in the way, as far as the event says it; one line."""
    for name in ("stderrTail", "component"):
        if isinstance(details.get(name), str):
            return " ".join(details[name].split())
    failing = details.get("failingProbes")
    return f"failing probes: {', '.join(map(str, failing))}" if isinstance(failing, (list, tuple)) else ""
