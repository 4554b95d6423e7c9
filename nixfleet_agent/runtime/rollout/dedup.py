"""Which probe results become events: every change does, an unchanged repeat only as a slow pulse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nixfleet_agent.state_machine import RolloutRecord
from nixfleet_agent.state_machine.events import ProbeResult


@dataclass(frozen=True, slots=True)
class Journaled:
    """The last result of a probe that became an event; ``at`` is monotonic seconds."""

    result: ProbeResult
    at: float


def retain_declared(record: RolloutRecord, results: Mapping[str, Journaled]) -> Mapping[str, Journaled]:
    """The journaled results that the record still has; of any other probe the next one is journaled, changed or not."""
    return MappingProxyType({name: last for name, last in results.items() if name in record.probes})


def should_record(last: Journaled | None, result: ProbeResult, monotonic: float, interval: float, queued: bool) -> bool:
    """Whether ``result`` is journaled. ``queued``: the last one still waits for the control plane.

    Twenty probes at 30 s would write 57,600 identical passes a day, and fill a disk in a long outage.
    """
    if last is None or _said(last.result) != _said(result):
        return True
    return not queued and monotonic - last.at >= interval


def _said(result: ProbeResult) -> tuple[object, ...]:
    return result.mode, result.status, result.failure_reason, result.sub_results
