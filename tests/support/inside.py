"""Tests that run somewhere else: a module's tests are listed here, run by another process, and judged one by one here.

    InsideTest = mirror("tests.x.cases", lambda command: machine.run(*command))

``python -m tests.support.inside MODULE`` is what runs there; it prints one JSON object a test.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import unittest
from collections.abc import Iterator
from typing import Any


class _Teller(unittest.TestResult):
    """Tells how each test ended, when it has; a fault outside of tests (setUpClass) under its own name."""

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self._tell(test.id())

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._began = time.monotonic()
        self._seen = len(self.failures), len(self.errors), len(self.skipped)

    def _tell(self, name: str) -> None:
        failures, errors, skipped = self._seen
        bad = [text for _, text in self.failures[failures:] + self.errors[errors:]]
        why = [reason for _, reason in self.skipped[skipped:]]
        told = {"test": name, "bad": "\n".join(bad), "skipped": "; ".join(why)}
        print(json.dumps(told | {"seconds": round(time.monotonic() - self._began, 2)}), flush=True)


def names(suite: unittest.TestSuite) -> Iterator[str]:
    """The ids of a suite's tests."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from names(test)
        else:
            yield test.id()


def load(module: str) -> unittest.TestSuite:
    """All tests of a module; one that can't be imported has one test, which fails."""
    return unittest.defaultTestLoader.loadTestsFromName(module)


def answers(stdout: str) -> dict[str, dict[str, Any]]:
    """What the other process told, by the test's id."""
    found = {}
    for line in stdout.splitlines():
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            found[told["test"]] = told
    return found


def main(wanted: list[str]) -> int:
    result = _Teller()
    for name in wanted:
        load(name).run(result)
    outside = [text for test, text in result.errors if not isinstance(test, unittest.TestCase)]
    print("\n".join(outside), file=sys.stderr)
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
