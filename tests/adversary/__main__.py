"""`python -m tests.adversary [--states N] [--per-world N] [--walks MINUTES] [--mutants]`: explores the modelled host.

World after world, every move in every state, until so many distinct states were seen (ten million), on all processors;
then, with `--walks`, long random ones for that many minutes. Ends with 1 and the shortest way into each when a promise
is broken. With `--mutants` it puts back the rule behind each hole that was ever found, and tells after how many states
the exploration comes upon it: 1 when it does not.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import time

from tests.adversary.explore import at_random, every_hole, everything, shortest
from tests.adversary.worlds import worlds


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.adversary", description="Explore the model of the host.")
    parser.add_argument("--states", type=int, default=10_000_000, metavar="N", help="distinct states (default: 10^7)")
    parser.add_argument("--per-world", type=int, default=60_000, metavar="N", help="of them in one world")
    parser.add_argument("--walks", type=float, default=0.0, metavar="MINUTES", help="then walk at random, this long")
    parser.add_argument("--mutants", action="store_true", help="put the old holes back, and find each")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    return _mutants(options.per_world) if options.mutants else _explore(options)


def _mutants(limit: int) -> int:
    missed = 0
    for name, found in every_hole(limit, os.cpu_count() or 1):
        missed += not found.violations
        after = f"{found.states:>7} states, {found.depth + 1} moves" if found.violations else f"NOT in {found.states}"
        print(f"{after:<24} {name}", flush=True)
        for _, what, _ in found.violations:
            print(f"{'':24}   {what[:100]}", flush=True)
    return 1 if missed else 0


def _explore(options: argparse.Namespace) -> int:
    began, states, count, violations, depths = time.monotonic(), 0, 0, [], []
    for found in everything(options.states, options.per_world, os.cpu_count() or 1):
        states, count = states + found.states, count + 1
        violations += found.violations
        depths.append(found.depth)
    seconds = time.monotonic() - began
    print(f"{states} distinct states in {count} worlds, every move to a depth of {min(depths)} to {max(depths)},")
    print(f"in {seconds:.0f} s; {len(violations)} broken promises")
    seen: set[int] = set()
    until = time.monotonic() + 60 * options.walks
    for seed, world in enumerate(itertools.cycle(worlds())):
        if time.monotonic() >= until:
            break
        violations += at_random(world, 20, 60, seed, seen).violations
    if options.walks:
        print(f"{len(seen)} distinct states on random walks; {len(violations)} broken promises in all")
    if violations:
        print(shortest(violations))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
