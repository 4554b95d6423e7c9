"""Runs the tests: `python -m tests [--fast | --slow] [--coverage] [names]`.

Modules are handed one at a time to a few worker processes, so that a module that hangs or dies takes
nothing else with it. Folders named `*_slow` come last. The last line is `N passed, N failed, N skipped`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from tests.support import branches
from tests.support.runner import Pool, Tally, worker_main

TOP = Path(__file__).resolve().parent.parent


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests", description="Run the tests of nixfleet-agent.")
    parser.add_argument("names", nargs="*", help="modules, folders or files; default: all")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--fast", action="store_true", help="leave out the folders named *_slow")
    which.add_argument("--slow", action="store_true", help="only the folders named *_slow")
    parser.add_argument(
        "--jobs",
        type=int,
        help="processes (default: one a processor, at most two; twice as many for the fast ones)",
    )
    parser.add_argument("--slowest", type=int, default=10, help="how many of the slowest tests to name")
    parser.add_argument("--coverage", action="store_true", help="branch coverage by package; fails below its bars")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker is not None:
        return worker_main(options.worker)

    # What a shell starts in its background ignores these two, and would hand that on to all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    modules = discover(options.names)
    fast = [m for m in modules if not is_slow(m)] if not options.slow else []
    slow = [m for m in modules if is_slow(m)] if not options.fast else []
    if options.coverage:
        branches.forget()
    tally = Tally()
    began = time.monotonic()
    processors = min(2, os.cpu_count() or 1)
    for phase, chosen, limit, jobs in (("fast", fast, 300, 2 * processors), ("slow", slow, 1800, processors)):
        if chosen:
            phase_began = time.monotonic()
            Pool(options.jobs or jobs, limit, tally, branches.WATCHED if options.coverage else ()).run(chosen)
            print(f"{phase}: {len(chosen)} modules in {time.monotonic() - phase_began:.1f} s", flush=True)
    covered = branches.judge() if options.coverage else True
    return report(tally, options.slowest, time.monotonic() - began) or (0 if covered else 1)


def discover(names: list[str]) -> list[str]:
    """The dotted names of all test modules, or of those under the folders, files or modules in `names`."""
    found = sorted(".".join(path.relative_to(TOP).with_suffix("").parts) for path in (TOP / "tests").rglob("test_*.py"))
    if not names:
        return found
    chosen = []
    for name in names:
        dotted = ".".join(Path(name.removesuffix(".py").removesuffix("/")).parts)
        wanted = dotted if dotted == "tests" or dotted.startswith("tests.") else f"tests.{dotted}"
        matching = [m for m in found if m == wanted or m.startswith(f"{wanted}.") or wanted.startswith(f"{m}.")]
        if not matching:
            sys.exit(f"python -m tests: no test module matches {name!r}")
        chosen += [wanted] if matching[0] != wanted and wanted.startswith(f"{matching[0]}.") else matching
    return list(dict.fromkeys(chosen))


def is_slow(module: str) -> bool:
    return any(part.endswith("_slow") for part in module.split("."))


def report(tally: Tally, slowest: int, seconds: float) -> int:
    if tally.durations and slowest:
        print("\nslowest:")
        for test, took in sorted(tally.durations.items(), key=lambda item: -item[1])[:slowest]:
            print(f"  {took:7.2f} s  {test}")
    for problem in tally.leaks:
        print(f"\nnot cleaned up: {problem}")
    for test, details in tally.problems:
        print(f"\nFAILED {test}\n{details.rstrip()}")
    ran = tally.passed + tally.failed + tally.skipped
    if not ran:
        print("\nno test ran")
    print(f"\n{ran} tests in {seconds:.1f} s\n")
    print(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped", flush=True)
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
