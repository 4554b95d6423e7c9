"""``python -m tests.faults [--quick] [--list] [--minutes N] [NAME...]``: every fault on purpose, and a table of it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.faults import (
    clocks,
    cp_faults,
    crash,
    damage,
    disk_errors,
    full_disk,
    nix_faults,
    outage,
    power_cuts,
    signals,
    soak,
    wrong_server,
)
from tests.faults.rig import Problem
from tests.faults.runs import Outcome, Runs
from tests.faults.world import World

MODULES = (
    *(crash, power_cuts, disk_errors, full_disk, damage),
    *(signals, clocks, nix_faults),
    *(cp_faults, wrong_server, outage),
    soak,
)
#: Most of a run is waiting.
JOBS = 3 * (os.cpu_count() or 1)
ITEMS: dict[str, Callable[[Runs], Outcome]] = {name: item for module in MODULES for name, item in module.ITEMS.items()}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="items, or beginnings of their names; default: all")
    parser.add_argument("--quick", action="store_true", help="a sample of each item")
    parser.add_argument("--list", action="store_true", help="name the items and stop")
    parser.add_argument("--jobs", type=int, default=JOBS, help="runs at a time (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long the soak goes on (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the soak; printed, so that it can be given again")
    options = parser.parse_args(argv)
    chosen = [name for name in ITEMS if not options.names or any(name.startswith(n) for n in options.names)]
    if options.list or not chosen:
        print("\n".join(ITEMS))
        return 0 if options.list else 2
    # In the background a shell has SIGINT ignored; either must end what was started here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    world = World()
    try:
        secs = 20.0 if options.quick else 60.0 * options.minutes
        runs = Runs(world, options.quick, options.jobs, secs, options.seed)
        try:
            return run(runs, chosen)
        finally:
            runs.close()
    finally:
        world.close()


def run(runs: Runs, names: list[str]) -> int:
    """Run the items and print the table; 1 when anything failed.

    They are taken from both ends: what comes first computes, what comes last mostly waits.
    """
    began, left = time.monotonic(), deque(names)
    outcomes: list[Outcome] = []

    def take(next_one: Callable[[], str]) -> None:
        while left:
            try:
                name = next_one()
            except IndexError:  # the other end was faster
                return
            outcomes.append(_row(runs, name))

    print(_line("item", "tries", "outcome", "seconds"), flush=True)
    with ThreadPoolExecutor(2) as ends:
        try:
            for end in [ends.submit(take, left.popleft), ends.submit(take, left.pop)]:
                end.result()
        except BaseException:
            left.clear()
            runs.close()
            raise
    failed = sum(bool(outcome.problems) for outcome in outcomes)
    said = f"{failed} FAILED" if failed else "ok"
    print(_line("together", sum(each.tries for each in outcomes), said, f"{time.monotonic() - began:.1f}"), flush=True)
    return 1 if failed else 0


def _row(runs: Runs, name: str) -> Outcome:
    """Run one item and print what came of it."""
    began = time.monotonic()
    try:
        outcome = ITEMS[name](runs)
    except Problem as problem:
        outcome = Outcome(1, [str(problem)])
    said = "skipped" if outcome.skipped else "FAILED" if outcome.problems else "ok"
    row = _line(name, outcome.tries, said, f"{time.monotonic() - began:.1f}") + f"  {outcome.skipped}".rstrip()
    print("\n".join([row, *(f"    {line}" for line in [*outcome.problems, *outcome.notes])]), flush=True)
    return outcome


def _line(item: str, tries: object, outcome: str, seconds: str) -> str:
    return f"{item:32} {tries:>6} {outcome:10} {seconds:>8}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
