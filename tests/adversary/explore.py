"""Explores the model: exhaustively, every move in every state up to a number of states, and at random beyond."""

from __future__ import annotations

import gc
import multiprocessing
import random
import re
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.adversary.canonical import key
from tests.adversary.holes import HOLES, Hole
from tests.adversary.logs import forget
from tests.adversary.moves import moves
from tests.adversary.node import Node
from tests.adversary.promises import violation
from tests.adversary.worlds import World, worlds

#: What differs between two violations of one kind.
_NAMES = re.compile(r"\S+@\S+|\b[PABC]\b|\d+|\(.*")


@dataclass
class Found:
    """What an exploration came to. ``depth`` is that to which every move in every state was made."""

    states: int = 0
    depth: int = 0
    seconds: float = 0.0
    violations: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)


def exhaustive(world: World, limit: int, until: float = float("inf")) -> Found:
    """Every state of the world in order of distance, up to ``limit`` of them; stops at the first broken promise."""
    began = time.monotonic()
    start = Node(world)
    seen = {hash(key(start))}
    queue: deque[tuple[Node, tuple[str, ...]]] = deque([(start, ())])
    found = Found()
    while queue and len(seen) < limit and time.monotonic() < until:
        node, path = queue.popleft()
        found.depth = len(path)
        for name, move in moves(node):
            after = move(node)
            if after is node:
                continue
            mark = hash(key(after))
            if mark in seen:
                continue
            seen.add(mark)
            if what := violation(after):
                found.violations.append((world.name, what, (*path, name)))
                queue.clear()
                break
            queue.append((after, (*path, name)))
    found.states, found.seconds = len(seen), time.monotonic() - began
    return found


def at_random(world: World, walks: int, steps: int, seed: int, seen: set[int]) -> Found:
    """Walks of ``steps`` moves; ``seen`` are the states so far, and grows."""
    chance, found, before = random.Random(seed), Found(depth=steps), len(seen)
    for _ in range(walks):
        node, path = Node(world), []
        for _ in range(steps):
            name, move = chance.choice(list(moves(node)))
            node = move(node)
            path.append(name)
            mark = hash(key(node))
            if mark in seen:
                continue
            seen.add(mark)
            if what := violation(node):
                found.violations.append((world.name, what, tuple(path)))
                break
    found.states = len(seen) - before
    return found


def replayed(world: World, path: Iterable[str]) -> tuple[Node, str]:
    """The state at the end of named moves, and the first promise broken on the way.

    A move that is not possible any more ends the path: what led on is closed.
    """
    node = Node(world)
    for name in path:
        possible = dict(moves(node))
        if name not in possible:
            break
        node = possible[name](node)
        if what := violation(node):
            return node, what
    return node, ""


def found_again(hole: Hole, limit: int) -> Found:
    """What an exploration of its world finds with the rule of old in its place; it isn't told where to look."""
    forget()  # what was folded by the code as it is
    with hole.rule_of_old():
        return exhaustive(hole.world, limit)


def every_hole(limit: int, processes: int) -> Iterable[tuple[str, Found]]:
    """Each named hole with what was found, in the order of the names."""
    jobs = [(name, limit) for name in HOLES]
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
        yield from pool.imap(_hole, jobs, chunksize=1)


def _hole(job: tuple[str, int]) -> tuple[str, Found]:
    gc.disable()
    name, limit = job
    return name, found_again(HOLES[name], limit)


def _work(job: tuple[World, int]) -> Found:
    world, limit = job
    gc.disable()  # a node refers to no younger one: there are no cycles to look for among a million of them
    return exhaustive(world, limit)


def everything(states: int, per_world: int, processes: int) -> Iterable[Found]:
    """Worlds after worlds until ``states`` distinct ones were seen; the states of different worlds differ."""
    jobs = ((world, per_world) for world in worlds())
    total = 0
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for found in pool.imap_unordered(_work, jobs):
            total += found.states
            yield found
            if total >= states:
                pool.terminate()
                return


def shortest(violations: Sequence[tuple[str, str, tuple[str, ...]]]) -> str:
    """The violation of each kind with the fewest moves, as text."""
    kinds: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    for each in sorted(violations, key=lambda each: len(each[2])):
        kinds.setdefault(_NAMES.sub("_", each[1]), each)
    return "\n".join(
        "\n".join([f"{name}: {what}", *(f"  {step}" for step in path)]) for name, what, path in kinds.values()
    )
