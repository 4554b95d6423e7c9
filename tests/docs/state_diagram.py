"""Writes the diagram and the table in packaging/docs/state-machine.md: `python -m tests.docs.state_diagram`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from nixfleet_agent.state_machine import effects, transitions
from nixfleet_agent.state_machine.states import State
from nixfleet_agent.state_machine.transitions import TRANSITIONS

PAGE = Path(__file__).resolve().parents[2] / "packaging" / "docs" / "state-machine.md"
BEGIN = "<!-- generated from the table TRANSITIONS: python -m tests.docs.state_diagram -->"
END = "<!-- end of what is generated -->"

#: Maker of an effect -> what it makes on the agent, and on a control plane's mirror.
_ORDERS = {
    transitions.record: (effects.RecordTransition, effects.RecordTransition),
    transitions.emit: (effects.EmitEvent, effects.AppendEventLog),
    transitions.fire: (effects.FireSwitch, None),
    transitions.reset: (effects.ResetProbeCache, None),
    transitions.rollback: (effects.FireRollbackTo, None),
    transitions.quarantine: (None, effects.InsertQuarantine),
}
#: States in which a rollout may end.
_ENDS = {State.CONVERGED: "", State.FAILED: ": no rollback owed", State.REVERTED: ""}


def diagram() -> Iterator[str]:
    """Mermaid, one arrow for each pair of states."""
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {State.PENDING}: Dispatch accepted"
    for state, edges in TRANSITIONS.items():
        reached: dict[State, list[str]] = {}
        for event, edge in edges.items():
            reached.setdefault(edge.to, []).append(event.__name__)
        for to, events in reached.items():
            yield f"    {state} --> {to}: {'<br/>'.join(events)}"
    for state, note in _ENDS.items():
        yield f"    {state} --> [*]{note}"
    yield "```"


def table() -> Iterator[str]:
    """Markdown, one row for each edge."""
    yield "| from | event | to | effects on the agent | on a mirror |"
    yield "|---|---|---|---|---|"
    for state, edges in TRANSITIONS.items():
        for event, edge in edges.items():
            agent, mirror = (
                ", ".join(order.__name__ for make in edge.effects if (order := _ORDERS[make][side]) is not None)
                for side in (0, 1)
            )
            yield f"| {state} | {event.__name__} | {edge.to} | {agent} | {mirror} |"
        if not edges:
            yield f"| {state} | - | | | |"


def generated() -> str:
    """What belongs between the two marks of the page, marks included."""
    return "\n".join([BEGIN, "", *diagram(), "", *table(), "", END])


def page(text: str) -> str:
    """``text`` with that part renewed."""
    before, _, rest = text.partition(BEGIN)
    return before + generated() + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
