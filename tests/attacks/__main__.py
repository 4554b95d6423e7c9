"""`python -m tests.attacks [--quick] [--list] [NAME...]`: every attack on the agent, as a table.

Each row is one item: how many attempts it made, whether all of them came to nothing, and how long it took.
`--mutants` takes each defence out instead, one at a time, and shows which test notices; `--fuzz MINUTES` looks for
inputs that nobody thought of, and `--guided MINUTES` does so led by the code that they reach.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
import time
import unittest
from pathlib import Path

from tests.attacks.case import AttackCase

TOP = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("attacks", "attacks_slow")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description="Attack the agent.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="items whose name contains this; default: all")
    parser.add_argument("--quick", action="store_true", help="leave out what takes long")
    parser.add_argument("--list", action="store_true", help="name the items")
    parser.add_argument("--mutants", action="store_true", help="take each defence out and see a test fail")
    parser.add_argument("--fuzz", type=float, metavar="MINUTES", help="only look for strange inputs, this long")
    parser.add_argument("--guided", type=float, metavar="MINUTES", help="the same with atheris, which you install")
    options = parser.parse_args(arguments)
    if options.mutants:
        from tests.attacks import mutants

        return mutants.main(options.names, only_list=options.list)
    if options.fuzz:
        from tests.attacks import test_fuzz

        return test_fuzz.run_for(options.fuzz)
    if options.guided:
        from tests.attacks import guided

        return guided.run_for(options.guided, options.names)
    tests = [test for test in find(quick=options.quick) if not options.names or wanted(test, options.names)]
    if options.list:
        for test in tests:
            print(title(test))
        return 0
    return report(tests)


def find(*, quick: bool) -> list[unittest.TestCase]:
    """Every test of the folders, in the order of their files."""
    found: list[unittest.TestCase] = []
    for folder in FOLDERS[:1] if quick else FOLDERS:
        for path in sorted((TOP / "tests" / folder).glob("test_*.py")):
            module = importlib.import_module(f"tests.{folder}.{path.stem}")
            found += flat(unittest.defaultTestLoader.loadTestsFromModule(module))
    return found


def flat(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    tests: list[unittest.TestCase] = []
    for entry in suite:
        tests += flat(entry) if isinstance(entry, unittest.TestSuite) else [entry]
    return tests


def title(test: unittest.TestCase) -> str:
    return f"{type(test).__module__.rpartition('.')[2][5:]}: {test._testMethodName[5:].replace('_', ' ')}"


def wanted(test: unittest.TestCase, names: list[str]) -> bool:
    return any(name.replace("_", " ").lower() in title(test).lower() for name in names)


def report(tests: list[unittest.TestCase]) -> int:
    failed, tries, began = [], 0, time.monotonic()
    print(f"{'ITEM':<78} {'TRIES':>5}  {'OUTCOME':<8} {'TIME':>7}")
    for test in tests:
        result, started = unittest.TestResult(), time.monotonic()
        result.buffer = True
        unittest.TestSuite([test]).run(result)  # with what its class sets up
        problems = [text for _, text in (*result.errors, *result.failures)]
        made = AttackCase.tries.get(test.id(), 1) or 1
        outcome = "failed" if problems else ("skipped" if result.skipped else "refused")
        print(f"{title(test)[:78]:<78} {made:>5}  {outcome:<8} {time.monotonic() - started:>6.1f}s", flush=True)
        tries += made
        failed += [(title(test), text) for text in problems]
    out = io.StringIO()
    for name, text in failed:
        out.write(f"\nFAILED {name}\n{text}\n")
    print(out.getvalue(), end="")
    print(f"\n{len(tests)} items, {tries} attempts, {len(failed)} failed, {time.monotonic() - began:.1f} s")
    return 1 if failed or not tests else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
