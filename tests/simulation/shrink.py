"""Makes a failing plan small: fewer steps, fewer hosts, while it breaks the same promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.simulation.plan import Plan
from tests.simulation.run import Outcome, run


def promise(violation: str) -> str:
    """What was broken, without the particulars: the word before the colon."""
    return violation.partition(":")[0].partition(" ")[0]


def shrink(outcome: Outcome, tries: int = 200) -> tuple[Plan, tuple[int, ...], Outcome]:
    """The smallest plan found within ``tries`` runs, the numbers of the steps kept of the original, and its run."""
    original = outcome.plan
    best, kept = outcome, tuple(range(len(original.steps)))
    wanted = promise(outcome.violation)
    plan = original
    left = [tries]

    def fails(candidate: Plan) -> Outcome | None:
        left[0] -= 1
        found = run(candidate)
        return found if promise(found.violation) == wanted else None

    size = max(1, len(kept) // 2)
    while size and left[0] > 0:
        kept, best, plan, removed = _without_chunks(original, plan, kept, best, size, fails, left)
        size = size if removed and size == 1 else size // 2
    for hosts in range(1, plan.hosts):
        fewer = replace(plan, hosts=hosts, waves=min(plan.waves, hosts))
        if all(step.host < hosts for step in fewer.steps) and (found := fails(fewer)) is not None:
            plan, best = fewer, found
            break
    return plan, kept, best


def _without_chunks(
    original: Plan,
    plan: Plan,
    kept: tuple[int, ...],
    best: Outcome,
    size: int,
    fails: Callable[[Plan], Outcome | None],
    left: list[int],
) -> tuple[tuple[int, ...], Outcome, Plan, bool]:
    removed, start = False, 0
    while start < len(kept) and left[0] > 0:
        fewer = kept[:start] + kept[start + size :]
        candidate = original.keeping(fewer)
        if (found := fails(candidate)) is not None:
            kept, best, plan, removed = fewer, found, candidate, True
        else:
            start += size
    return kept, best, plan, removed
