"""Runs test modules in worker processes and adds up what they report.

A worker reads module names from its standard input and writes one JSON line per event to a pipe of its
own, so that nothing a test prints can be taken for a result.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import hypothesis

TOP = Path(__file__).resolve().parent.parent.parent


@dataclass
class Tally:
    """What all workers reported so far."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    durations: dict[str, float] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, event: dict[str, Any]) -> None:
        with self.lock:
            match event["outcome"]:
                case "passed":
                    self.passed += 1
                case "skipped":
                    self.skipped += 1
                    print(f"skipped {event['test']}: {event['details']}", flush=True)
                case "leak":
                    self.leaks.append(event["details"])
                    return
                case _:
                    self.failed += 1
                    self.problems.append((event["test"], event["details"]))
                    print(f"FAILED {event['test']}", flush=True)
            self.durations[event["test"]] = event["seconds"]


class Pool:
    """A few worker processes that share one list of modules; ``watched`` are interpreter options that go before."""

    def __init__(self, jobs: int, limit_secs: int, tally: Tally, watched: Sequence[str] = ()) -> None:
        self._jobs = max(1, jobs)
        self._limit_secs = limit_secs
        self._tally = tally
        self._watched = watched
        self._lock = threading.Lock()

    def run(self, modules: list[str]) -> None:
        """Run every module; returns when the last is done."""
        waiting = iter(modules)
        threads = [threading.Thread(target=self._serve, args=(waiting,)) for _ in range(min(self._jobs, len(modules)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _serve(self, waiting: Iterator[str]) -> None:
        worker: _WorkerProcess | None = None
        while (module := self._next(waiting)) is not None:
            worker = worker or _WorkerProcess(self._limit_secs, self._watched)
            for event in worker.run(module):
                self._tally.add(event)
            if worker.ended:
                worker = None
        if worker is not None:
            worker.close()

    def _next(self, waiting: Iterator[str]) -> str | None:
        with self._lock:
            return next(waiting, None)


class _WorkerProcess:
    """One child, and the pipe that its events come through."""

    def __init__(self, limit_secs: int, watched: Sequence[str]) -> None:
        reading, writing = os.pipe()
        self.ended = False
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", *watched, "-m", "tests", "--worker", str(writing)],
            cwd=TOP,
            stdin=subprocess.PIPE,
            pass_fds=(writing,),
            env={**os.environ, "NIXFLEET_TESTS_LIMIT_SECS": str(limit_secs)},
            text=True,
        )
        os.close(writing)
        self._events = os.fdopen(reading, encoding="utf-8")

    def run(self, module: str) -> Iterator[dict[str, Any]]:
        """Yield the events of one module; a worker that dies is an event of its own."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(module + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died between two modules; the end of its pipe, read below, says so
        for line in self._events:
            event = json.loads(line)
            if event["outcome"] == "done":
                return
            yield event
        self.close()
        details = f"the test process ended with {self._process.returncode} (a crash, or past its time limit; see above)"
        yield {"outcome": "failed", "test": module, "seconds": 0.0, "details": details}

    def close(self) -> None:
        self.ended = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # the child is gone already
        self._events.close()
        self._process.wait()


class _Result(unittest.TestResult):
    """Reports each test once: a test with several failing parts is one failed test."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self.buffer = True
        self._out = out
        self._began = 0.0
        self._outcome: tuple[str, str] | None = None
        self._inside = False

    def say(self, outcome: str, test: str, details: str = "", seconds: float = 0.0) -> None:
        line = {"outcome": outcome, "test": test, "seconds": seconds, "details": details}
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._began, self._outcome, self._inside = time.monotonic(), None, True

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        outcome, details = self._outcome or ("passed", "")
        self.say(outcome, test.id(), details, time.monotonic() - self._began)
        self._inside = False

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._note(test, "failed", self.errors[-1][1])

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._note(test, "failed", self.failures[-1][1])

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            latest = self.failures if issubclass(err[0], test.failureException) else self.errors
            self._note(test, "failed", f"{subtest}\n{latest[-1][1]}")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self._note(test, "failed", "was expected to fail, and passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._note(test, "skipped", reason)

    def _note(self, test: unittest.TestCase, outcome: str, details: str) -> None:
        self._mirrorOutput = False  # what the test printed is in the details already
        if not self._inside:  # setUpClass, tearDownClass, setUpModule
            self.say(outcome, test.id(), details)
            return
        if self._outcome is not None and self._outcome[0] == "failed":
            details = f"{self._outcome[1]}\n{details}"
            outcome = "failed"
        self._outcome = (outcome, details)


def worker_main(descriptor: int) -> int:
    """Run the modules named on standard input; returns at its end."""
    limit_secs = int(os.environ["NIXFLEET_TESTS_LIMIT_SECS"])
    faulthandler.enable()  # a crash of the interpreter says where, on standard error
    # The same examples in every run, and no example fails for having taken long: `python -m unittest` finds new ones.
    hypothesis.settings.load_profile("ci")
    names_descriptor = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # a test's child must not read the names
    os.close(null)
    os.set_inheritable(descriptor, False)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out, os.fdopen(names_descriptor, encoding="utf-8") as names:
        result = _Result(out)

        def leaked(unraisable: Any) -> None:
            result.say("leak", "", f"{unraisable.exc_value} (in {unraisable.object!r})")

        sys.unraisablehook = leaked
        for line in names:
            faulthandler.dump_traceback_later(limit_secs, exit=True)
            unittest.defaultTestLoader.loadTestsFromName(line.strip()).run(result)
            faulthandler.cancel_dump_traceback_later()
            gc.collect()
            result.say("done", line.strip())
        sys.unraisablehook = sys.__unraisablehook__
    return 0
