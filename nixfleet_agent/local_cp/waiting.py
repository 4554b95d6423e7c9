"""What each host waits for, in words, as far as this control plane can know it: pure over what it holds.

A host that holds its turn back says nothing over the wire. Its turn was fetched and not accepted; more is known only
of agents on this machine (``neighbours``), whose own words are taken where there are any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nixfleet_agent.local_cp.planner import Placement
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.state_machine import State

#: The states of which more is told than the state itself and the events say.
DETAILED = (State.SOAKING, State.FAILED)


def reasons(
    placements: Mapping[str, Placement],
    planned: Mapping[str, str],
    details: Mapping[str, Mapping[str, Any]],
    components: Mapping[str, str],
    own_words: Mapping[str, str],
) -> Iterator[tuple[str, str]]:
    """(host name, what it waits for) of each host of one rollout that waits for something.

    Args:
        planned: the planner's reason, for hosts that have no turn yet.
        details: the stored records of hosts in a state of ``DETAILED``.
        components: what takes a reboot, for hosts that have said it.
        own_words: what agents on this machine say.
    """
    yield from ((hostname, reason) for hostname, reason in planned.items() if hostname not in placements)
    for hostname, placed in placements.items():
        said = own_words.get(hostname) if placed.state in (State.PENDING, State.ACTIVATING) else None
        reason = said or _of_state(placed, details.get(hostname, {}), components.get(hostname))
        if reason:
            yield hostname, reason


def _of_state(placed: Placement, record: Mapping[str, Any], component: str | None) -> str:
    match placed.state:
        case State.PENDING:
            if placed.delivered_at is None:
                return "its turn is ready: it has not asked for it yet"
            return f"it fetched its turn at {_clock(format_time(placed.delivered_at))}, and has not accepted it yet"
        case State.DEFERRED:
            return f"a reboot, for {component}" if component else "a reboot"
        case State.SOAKING:
            return _soak(record)
        case State.FAILED if record.get("policy_applied") == "rollback-and-halt":
            return "its way back"
    return ""


def _soak(record: Mapping[str, Any]) -> str:
    probes: Mapping[str, Mapping[str, Any]] = record.get("probes") or {}
    failing = sorted(name for name, probe in probes.items() if probe.get("status") == "fail")
    soak = f"its soak, until {_clock(record['soak_due_at'])} or later" if record.get("soak_due_at") else "its soak"
    return f"{soak}; failing: {', '.join(failing)}" if failing else soak


def _clock(at: str) -> str:
    return f"{at[11:19]} UTC"
