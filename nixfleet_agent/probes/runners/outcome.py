"""What a probe run comes to: pass, or fail with a reason that fits into an event. There is no third answer."""

from __future__ import annotations

from dataclasses import dataclass

from nixfleet_agent.state_machine.events import SubResult
from nixfleet_agent.state_machine.states import ProbeStatus
from nixfleet_agent.text import clip, printable

#: UTF-8 bytes of a reason, the mark not counted.
REASON_LIMIT = 512
REASON_MARK = "...[truncated]"

#: Reasons are escaped before they are cut; what is far longer than fits need not be looked at.
_LOOKED_AT = 4 * REASON_LIMIT


@dataclass(frozen=True, slots=True)
class RunnerOutcome:
    """``failure_reason`` is None on a pass; ``sub_results`` are the controls of an evidence probe, else None."""

    status: ProbeStatus
    failure_reason: str | None = None
    sub_results: tuple[SubResult, ...] | None = None

    @property
    def passed(self) -> bool:
        return self.status is ProbeStatus.PASS


def passed(sub_results: tuple[SubResult, ...] | None = None) -> RunnerOutcome:
    """A pass."""
    return RunnerOutcome(ProbeStatus.PASS, None, sub_results)


def failed(reason: str, sub_results: tuple[SubResult, ...] | None = None) -> RunnerOutcome:
    """A fail; control characters of ``reason`` are escaped, then it is cut at a whole character."""
    shown = clip(printable(clip(reason, _LOOKED_AT), 8 * _LOOKED_AT), REASON_LIMIT, REASON_MARK)
    return RunnerOutcome(ProbeStatus.FAIL, shown or "no reason was given", sub_results)
