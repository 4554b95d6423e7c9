"""What is asked of a host's disk after every run of the fault suite finds each broken promise, and nothing else."""

from __future__ import annotations

import tempfile
import unittest
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nixfleet_agent.journal.header import accepted
from nixfleet_agent.runtime.rollout.rollouts import Host, Rollout
from nixfleet_agent.state_machine import Policy, State
from tests.adversary.node import NAMES
from tests.adversary.worlds import CLOSURES, HOSTNAME, Release
from tests.faults.invariants import Seen, broken
from tests.state_machine.machine import T0

P, A, B = CLOSURES["P"], CLOSURES["A"], CLOSURES["B"]


def rollout(number: int, target: str, state: State, *, minute: int | None = None, **changes: Any) -> Rollout:
    """The ``number``-th of a host, which ran ``P`` before all of them."""
    release = Release("stable", NAMES[target], number if minute is None else minute, commit=f"c{number}")
    at = T0 + timedelta(minutes=number)
    entry = accepted(release.acceptance(P, at), number, P)
    return Rollout(replace(entry.record(HOSTNAME), state=state, **changes), entry, begun=True)


def seen(current: str, *rollouts: Rollout, **changes: Any) -> Seen:
    host = Host(MappingProxyType({each.rollout_id: each for each in rollouts}), rollouts[-1].rollout_id, len(rollouts))
    return Seen(host, current, changes.pop("events", {}), **changes)


class Broken(unittest.TestCase):
    def found(self, current: str, *rollouts: Rollout, **changes: Any) -> list[str]:
        return [line[:2] for line in broken(seen(current, *rollouts, **changes))]

    def test_a_host_that_keeps_them(self) -> None:
        events = {"stable@c1": [{"kind": "ActivationCompleted", "exitCode": 4}]}
        self.assertEqual(self.found(A, rollout(1, A, State.CONVERGED), events=events), [])
        self.assertEqual(self.found(P, rollout(1, A, State.REVERTED, reverted_to=P, switch_fired=True)), [])
        self.assertEqual(self.found(A, rollout(1, A, State.SOAKING)), [])
        halted = rollout(1, A, State.FAILED, switch_fired=True, policy_applied=Policy.HALT)
        self.assertEqual(self.found(A, halted), [])

    def test_proven_or_watched(self) -> None:
        self.assertEqual(self.found(B, rollout(1, A, State.CONVERGED)), ["I1"])
        failed = rollout(1, A, State.REVERTED, reverted_to=P, switch_fired=True)
        self.assertEqual(self.found(A, failed), ["I1"])
        again = rollout(2, A, State.REVERTED, reverted_to=P, switch_fired=True)
        self.assertEqual(self.found(A, rollout(1, A, State.CONVERGED), again), ["I1"], "it has failed since")

    def test_never_older(self) -> None:
        first = rollout(1, A, State.CONVERGED, minute=5)
        self.assertEqual(self.found(B, first, rollout(2, B, State.CONVERGED, minute=4)), ["I2"])
        self.assertEqual(self.found(B, first, rollout(2, B, State.CONVERGED, minute=5)), [], "the same manifest")

    def test_observed_ends(self) -> None:
        events = {"stable@c1": [{"kind": "ActivationCompleted", "exitCode": 2}]}
        self.assertEqual(self.found(A, rollout(1, A, State.CONVERGED), events=events), ["I3"])
        self.assertEqual(self.found(A, rollout(1, A, State.CONVERGED), events=events, rebooted=True), [])

    def test_nothing_irreversible(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "cert.pem")
            self.assertEqual(self.found(A, rollout(1, A, State.CONVERGED), identity=(path,)), ["I4"])
            path.write_text("a certificate")
            self.assertEqual(self.found(A, rollout(1, A, State.CONVERGED), identity=(path,)), [])

    def test_a_rollback_comes_to_its_end(self) -> None:
        owes = rollout(
            1, A, State.FAILED, switch_fired=True, rollback_owed=True, policy_applied=Policy.ROLLBACK_AND_HALT
        )
        self.assertEqual(self.found(A, owes), ["I5"])


if __name__ == "__main__":
    unittest.main()
