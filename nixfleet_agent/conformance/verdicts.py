"""What is judged: stories with their rows, and the verdict on each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nixfleet_agent.conformance.stand import Stand
from nixfleet_agent.demo.closures import System
from nixfleet_agent.errors import AgentError


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one row: what it says of an agent, and why that is not so; None where it is."""

    story: str
    row: str
    says: str
    problem: str | None


@dataclass(slots=True)
class Judge:
    """The rows of one story, which were named before it began: one that is never reached fails."""

    rows: Mapping[str, str]
    found: dict[str, str | None] = field(default_factory=dict)

    def row(self, name: str, *problems: str | None) -> None:
        """The row holds when there is no problem; said twice, both must hold."""
        if name not in self.rows:
            raise RuntimeError(f"no row {name}")
        earlier = self.found.get(name)
        self.found[name] = earlier or next((problem for problem in problems if problem), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """``tell`` brings the agent into a situation and judges it; ``systems`` are the releases that it needs."""

    name: str
    title: str
    rows: Mapping[str, str]
    tell: Callable[[Stand, Judge], None]
    systems: tuple[System, ...] = ()

    def verdicts(self, stand: Stand) -> list[Verdict]:
        """Tell the story; each row has a verdict whatever happens."""
        judge = Judge(self.rows)
        reason = "not reached"
        try:
            self.tell(stand, judge)
        except AgentError as error:  # Unmet, or what an agent sends can't be read
            reason = str(error)
        finally:
            stand.recorder.instead = lambda request: None
        return [Verdict(self.name, row, says, judge.found.get(row, reason)) for row, says in self.rows.items()]


def unless(holds: object, problem: str) -> str | None:
    """The problem where something does not hold."""
    return None if holds else problem
