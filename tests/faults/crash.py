"""SIGKILL at every durable-write boundary of every story, restart, and the same end as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from tests.faults.runs import Outcome, Runs, of_its_own, spread
from tests.faults.stories import STORIES

#: Boundaries of each story in quick mode.
QUICK = 3


def item(story: str) -> Callable[[Runs], Outcome]:
    return partial(killed_everywhere, story=story)


def killed_everywhere(runs: Runs, story: str) -> Outcome:
    return runs.each(_tries(runs, story))


def _tries(runs: Runs, story: str) -> Iterator[Callable[[], Outcome]]:
    for boot in runs.baseline(story).traces:
        keys = of_its_own(runs, story, boot)
        for name, occurrence in spread(keys, QUICK) if runs.quick else keys:
            plan = {boot: {"action": "kill", "at": name, "occurrence": occurrence}}
            what = f"killed in boot {boot} before {name} ({occurrence})"
            yield partial(runs.compare, story, plan, what)


ITEMS = {f"crash-{name}": item(name) for name in STORIES}
