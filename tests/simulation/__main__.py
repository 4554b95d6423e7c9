"""``python -m tests.simulation``: new seeds for a while, or one seed again, with its timeline.

python -m tests.simulation --minutes 60             new seeds, on all processors; what fails is shrunk and printed
python -m tests.simulation --seed 28 --timeline     one seed again, line by line
python -m tests.simulation --seed 28 --keep 0,3,7   the same with some of its steps only, as the shrinker prints it
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace

from tests.simulation.mutants import MUTANTS, hunt
from tests.simulation.plan import WORKLOADS, Plan, draw
from tests.simulation.run import Outcome, run
from tests.simulation.shrink import shrink

#: Seeds that one process runs before it answers.
BATCH = 10
#: All that a simulated agent's children would see of the environment.
_KEPT = frozenset({"PATH", "HOME", "PYTHONPATH", "PYTHONHASHSEED"})


@dataclass(frozen=True, slots=True)
class Tally:
    """What a number of runs came to. ``failures``: (seed, violation)."""

    seeds: int = 0
    rollouts: int = 0
    host_seconds: float = 0.0
    cpu_seconds: float = 0.0
    failures: tuple[tuple[int, str], ...] = ()

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.seeds + other.seeds,
            self.rollouts + other.rollouts,
            self.host_seconds + other.host_seconds,
            self.cpu_seconds + other.cpu_seconds,
            self.failures + other.failures,
        )

    def __str__(self) -> str:
        seconds, years = max(self.cpu_seconds, 1e-9), self.host_seconds / 86400 / 365.25
        return (
            f"{self.seeds} seeds, {self.rollouts} rollouts, {years:.3f} simulated host-years:"
            f" {len(self.failures)} seeds failed; a second of one core is {self.rollouts / seconds:.1f} rollouts,"
            f" a minute of it {60 * years / seconds:.4f} host-years"
        )


def batch(workload: str, first: int, count: int) -> Tally:
    """Run these seeds."""
    prepare()
    tally = Tally()
    for seed in range(first, first + count):
        plan = draw(seed, workload)
        outcome = run(plan)
        failures = ((seed, outcome.violation),) if outcome.violation else ()
        tally += Tally(1, outcome.rollouts, outcome.simulated * plan.hosts, outcome.seconds, failures)
    return tally


def prepare() -> None:
    """The environment is an input that no seed draws."""
    for name in os.environ.keys() - _KEPT:
        del os.environ[name]


def explore(first: int, minutes: float, processes: int, most_failures: int = 5, workload: str = "trouble") -> Tally:
    """New seeds from ``first`` on until the time is over or enough have failed."""
    until = time.monotonic() + 60 * minutes
    tally, following = Tally(), first
    size = BATCH if workload == "trouble" else 1
    with ProcessPoolExecutor(processes) as pool:
        running = set()
        while True:
            while len(running) < 2 * processes and time.monotonic() < until and len(tally.failures) < most_failures:
                running.add(pool.submit(batch, workload, following, size))
                following += size
            if not running:
                return tally
            done = next(as_completed(running))
            running.remove(done)
            tally += done.result()


def explain(seed: int, outcome: Outcome) -> str:
    """A failing seed, shrunk, as one command and a timeline."""
    plan, kept, smallest = shrink(outcome)
    workload = f" --workload {plan.workload}" if plan.workload != "trouble" else ""
    hosts = f" --hosts {plan.hosts}" if plan.hosts != outcome.plan.hosts else ""
    numbers = ",".join(map(str, kept))
    again = f"python -m tests.simulation --seed {seed} --keep {numbers}{hosts}{workload} --timeline"
    return "\n".join([*smallest.lines, "", f"{smallest.violation}", f"again: {again}"])


def hunts(processes: int) -> int:
    """The table of the mutants; 1 when one stayed hidden."""
    print(f"{'found by seed':>13} {'core seconds':>12}  mutant: what broke")
    hidden = 0
    with ProcessPoolExecutor(processes, initializer=prepare) as pool:
        for found in pool.map(hunt, range(len(MUTANTS))):
            hidden += found.seed is None
            seed = "-" if found.seed is None else found.seed
            broke = found.violation or "NOT FOUND"
            print(f"{seed:>13} {found.seconds:>12.1f}  {found.what}: {broke[:140]}", flush=True)
    return 1 if hidden else 0


def _plan(arguments: argparse.Namespace) -> Plan:
    plan = draw(arguments.seed, arguments.workload)
    if arguments.keep is not None:
        plan = plan.keeping({int(number) for number in arguments.keep.split(",") if number})
    if arguments.hosts is not None:
        plan = replace(plan, hosts=arguments.hosts, waves=min(plan.waves, arguments.hosts))
    return plan


def _one(arguments: argparse.Namespace) -> int:
    prepare()
    plan = _plan(arguments)
    if arguments.timeline:
        print("\n".join(map(str, plan.steps)))
    outcome = run(plan, print if arguments.timeline else None)
    if outcome.violation and arguments.shrink:
        print(explain(arguments.seed, outcome))
    print(f"seed {arguments.seed}: {outcome.violation or 'every promise was kept'}; trace {outcome.trace}")
    return 1 if outcome.violation else 0


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--timeline", action="store_true", help="print what happens")
    parser.add_argument("--shrink", action="store_true", help="look for the smallest plan that fails in the same way")
    parser.add_argument("--keep", help="numbers of the steps to keep, separated by commas")
    parser.add_argument("--hosts", type=int, help="how many hosts, in place of what the seed draws")
    parser.add_argument("--first", type=int, default=None, help="the first of the new seeds (default: by the time)")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long new seeds are run")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="trouble", help="what kind of life")
    parser.add_argument("--mutants", action="store_true", help="put old bugs back one by one, and look for each")
    return parser


def main(arguments: list[str]) -> int:
    """Exit code 0 when every promise was kept."""
    given = options().parse_args(arguments)
    if given.mutants:
        return hunts(given.processes)
    if given.seed is not None:
        return _one(given)
    first = int(time.time()) * 1000 if given.first is None else given.first
    print(f"seeds from {first} on", flush=True)
    tally = explore(first, given.minutes, given.processes, workload=given.workload)
    prepare()
    for seed, _ in tally.failures[:3]:
        print(f"\nseed {seed}:\n{explain(seed, run(draw(seed, given.workload)))}")
    for seed, violation in tally.failures:
        print(f"seed {seed}: {violation}")
    print(tally)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
