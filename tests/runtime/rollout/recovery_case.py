"""A journal as a process has left it."""

from __future__ import annotations

import unittest

from nixfleet_agent.state_machine import ProbeStatus
from tests.runtime.harness import (
    TestHost,
)

R, S = "stable@aa", "stable@bb"


PASS, FAIL = ProbeStatus.PASS, ProbeStatus.FAIL


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.host = TestHost(self)
        self.host.start()

    def kinds(self, rollout_id: str = R) -> list[str]:
        return [kind for _, kind in self.host.log(rollout_id)]

    def is_idle(self) -> None:
        self.assertIsNone(self.host.activation.peek())
        self.assertIsNone(self.host.probes.peek())
