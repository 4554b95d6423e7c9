"""A reducer with a journal, and what it was told and did."""

from __future__ import annotations

import unittest
from typing import Any

from nixfleet_agent.runtime.rollout.inputs import (
    Answer,
)
from nixfleet_agent.state_machine import ProbeStatus, State
from tests.runtime.harness import TestHost

R, S, T = "stable@aa", "stable@bb", "stable@cc"


PASS, FAIL = ProbeStatus.PASS, ProbeStatus.FAIL


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.host = TestHost(self)
        self.host.start()

    def probe(self, status: ProbeStatus, rollout_id: str = R, **changes: Any) -> Answer:
        return self.host.tell(rollout_id, "ProbeResult", status=status, **changes)

    def failed_by_probe(self) -> None:
        """R soaks and fails: its rollback is owed."""
        self.host.soaking(R)
        self.host.order()
        self.probe(FAIL)
        self.host.clock.advance(60)
        self.probe(FAIL)
        self.host.clock.advance(60)
        self.host.tick()
        self.assertIs(self.host.record().state, State.FAILED)
