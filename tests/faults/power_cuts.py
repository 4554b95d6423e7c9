"""A power cut at every durable-write boundary: what was not synced is gone, the host boots what its boot entry names.

Delivered events are moved without an fsync on purpose: they come back and are sent again, and the control plane drops
them. A switch that the cut ended is fired again, so the calls of switch scripts are not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from tests.faults.runs import Outcome, Runs, of_its_own, spread

QUICK = 2
STORIES = ("forward", "rollback", "failed-switch", "deferred")
#: Not a switch that failed: with its record gone too, a host that has booted the release has simply arrived there.
FORGETFUL = ("forward", "rollback")
#: The event that must be durable before a switch is fired.
FIRED = "ActivationStarted"
LOOSE = frozenset({"switches"})


def cut_everywhere(runs: Runs, story: str, forgets: bool = False) -> Outcome:
    return runs.each(_tries(runs, story, forgets))


def _tries(runs: Runs, story: str, forgets: bool) -> Iterator[Callable[[], Outcome]]:
    for boot in runs.baseline(story).traces:
        keys = of_its_own(runs, story, boot)
        if forgets:  # before anything is fired there is nothing to forget
            keys = keys[next(index for index, (name, _) in enumerate(keys) if name.endswith(FIRED)) :]
        for name, occurrence in spread(keys, QUICK) if runs.quick else keys:
            plan = {boot: {"action": "power", "at": name, "occurrence": occurrence}}
            what = f"power cut in boot {boot} before {name} ({occurrence})"
            yield partial(runs.compare, story, plan, what, LOOSE, forgets)


ITEMS: dict[str, Callable[[Runs], Outcome]] = {f"power-{name}": partial(cut_everywhere, story=name) for name in STORIES}
#: The switches' own records are gone as well.
ITEMS |= {f"power-forgets-{name}": partial(cut_everywhere, story=name, forgets=True) for name in FORGETFUL}
