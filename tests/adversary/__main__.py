"""`python -m tests.adversary [--states N] [--per-world N] [--walks MINUTES]`: explores the model of the host.

World after world, every move in every state, until so many distinct states were seen (ten million), on all processors;
then, with `--walks`, long random ones for that many minutes. Ends with 1 and the shortest way into it when a promise
is broken.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import time

from tests.adversary.explore import at_random, everything, shortest
from tests.adversary.worlds import worlds


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.adversary", description="Explore the model of the host.")
    parser.add_argument("--states", type=int, default=10_000_000, metavar="N", help="distinct states (default: 10^7)")
    parser.add_argument("--per-world", type=int, default=60_000, metavar="N", help="of them in one world")
    parser.add_argument("--walks", type=float, default=0.0, metavar="MINUTES", help="then walk at random, this long")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
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
