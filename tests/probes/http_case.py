"""What the tests of the http probe share."""

from __future__ import annotations

from typing import Any

from nixfleet_agent.probes.declarations import HttpDecl
from nixfleet_agent.probes.runners import RunnerOutcome, run
from tests.probes.support import ProbeCase, context


def probe(url: str, *, timeout: float = 5.0, **fields: Any) -> RunnerOutcome:
    return run(HttpDecl(name="p", url=url, timeout=timeout, **fields), context())


class HttpCase(ProbeCase):
    def assert_fails(self, outcome: RunnerOutcome, words: str) -> None:
        self.assertFalse(outcome.passed)
        self.assertIn(words, outcome.failure_reason or "")
