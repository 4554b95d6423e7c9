"""What every benchmark here shares: a figure with its bar, medians, one table, one command line.

A benchmark is a module with ``measure(quick: bool) -> list[Figure]``. It is run alone by
``python -m tests.bench NAME [--quick] [--json]``, so that its process is not warmed or swollen by another.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row: ``value`` in ``unit``, against ``baseline`` (same unit, measured in the same run) where there is one.

    ``most`` and ``least`` are bars: on the ratio to the baseline, or on the value where there is no baseline. A row
    without a bar is there to be read.
    """

    what: str
    value: float
    unit: str
    baseline: float | None = None
    against: str = ""
    most: float | None = None
    least: float | None = None
    runs: int = 1

    @property
    def ratio(self) -> float | None:
        return None if not self.baseline else self.value / self.baseline

    @property
    def met(self) -> bool | None:
        """Whether the bar holds; None where there is none."""
        if self.most is None and self.least is None:
            return None
        judged = self.value if self.ratio is None else self.ratio
        return (self.most is None or judged <= self.most) and (self.least is None or judged >= self.least)

    @property
    def bar(self) -> str:
        sign = " x" if self.ratio is not None else ""
        told = [f"<= {self.most:g}{sign}"] if self.most is not None else []
        return " and ".join(told + ([f">= {self.least:g}{sign}"] if self.least is not None else []))


HEADER = ("what", "figure", "baseline of the same run", "ratio", "bar", "n", "")


def rows(figures: Iterable[Figure]) -> list[tuple[str, ...]]:
    """The cells of the table."""
    return [
        (
            figure.what,
            f"{figure.value:.3g} {figure.unit}" if figure.value < 1000 else f"{figure.value:.0f} {figure.unit}",
            f"{figure.baseline:.3g} {figure.unit} {figure.against}".strip() if figure.baseline is not None else "",
            f"{figure.ratio:.2f}" if figure.ratio is not None else "",
            figure.bar,
            str(figure.runs),
            {None: "", True: "met", False: "MISSED"}[figure.met],
        )
        for figure in figures
    ]


def table(lines: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> str:
    """A table that is aligned in a terminal and is Markdown too."""
    every = [header, *lines]
    widths = [max(3, *(len(line[column]) for line in every)) for column in range(len(header))]
    shown = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in every
    ]
    return "\n".join([shown[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *shown[1:]])


def percentile(values: Iterable[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def cpu_seconds(work: Callable[[], object]) -> float:
    """How much CPU one call takes: for work that waits for nothing, so that a busy machine does not show."""
    began = time.process_time()
    work()
    return time.process_time() - began


def in_turns(rounds: int, *sides: Callable[[], float]) -> list[float]:
    """The median of each side; they take turns, so that a busy moment of the machine falls on all of them."""
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, values in zip(sides, taken, strict=True):
            values.append(side())
    return [statistics.median(values) for values in taken]


def main(measure: Callable[[bool], list[Figure]], about: str | None, argv: Sequence[str] | None = None) -> int:
    """The command line of one benchmark; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: to see that it runs, not to quote")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    figures = measure(options.quick)
    if options.json:
        print(json.dumps([asdict(figure) for figure in figures]))
    else:
        print(table(rows(figures)))
    sys.stdout.flush()
    return 1 if any(figure.met is False for figure in figures) else 0
