"""When the agents of a fleet that see one manifest at the same moment begin to fetch it: a histogram.

    python -m tests.bench.prefetch_spread [--agents 100] [--seed 1]

Each agent has a random generator of its own, as in the field. The bar is on chi-square over ten parts of the window: a
fleet that is spread evenly exceeds it once in a thousand times.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence

from nixfleet_agent.config.model import PrefetchConfig
from nixfleet_agent.prefetch.decision import starts_at
from tests.bench import figures
from tests.bench.figures import Figure

AGENTS, SEED, PARTS = 100, 1, 10
#: Of nine degrees of freedom, for one in a thousand.
CHI_SQUARE_BAR = 27.88


def starts(agents: int, window: float, seed: int) -> list[float]:
    """The second of each agent's start after the manifest."""
    return [starts_at(0.0, window, random.Random(f"{seed}/{number}")) for number in range(agents)]


def counted(found: Sequence[float], window: float) -> list[int]:
    """How many start in each of ``PARTS`` equal parts of the window."""
    counts = [0] * PARTS
    for start in found:
        counts[min(PARTS - 1, int(start / window * PARTS))] += 1
    return counts


def chi_square(counts: Sequence[int]) -> float:
    """How far the counts are from even."""
    even = sum(counts) / len(counts)
    return sum((count - even) ** 2 for count in counts) / even


def histogram(counts: Sequence[int], window: float) -> str:
    """One line a part: its seconds, a bar, its count."""
    width = window / len(counts)
    return "\n".join(
        f"{number * width:4.0f} to {(number + 1) * width:3.0f} s  {'#' * count} {count}"
        for number, count in enumerate(counts)
    )


def measure(quick: bool) -> list[Figure]:
    window = PrefetchConfig().spread_secs
    counts = counted(starts(AGENTS, window, SEED), window)
    return [
        Figure(
            what=f"{AGENTS} agents see one manifest: chi-square of their starts over {PARTS} parts of {window:g} s",
            value=chi_square(counts),
            unit="",
            most=CHI_SQUARE_BAR,
            runs=AGENTS,
        ),
        Figure(what="the same: most that start in one part", value=max(counts), unit="agents", runs=AGENTS),
    ]


def main() -> int:
    """The histogram, and the table of any benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--agents", type=int, default=AGENTS)
    parser.add_argument("--seed", type=int, default=SEED)
    given, rest = parser.parse_known_args()
    window = PrefetchConfig().spread_secs
    if "--json" not in rest:
        print(histogram(counted(starts(given.agents, window, given.seed), window), window), end="\n\n")
    return figures.main(measure, __doc__, rest)


if __name__ == "__main__":
    sys.exit(main())
