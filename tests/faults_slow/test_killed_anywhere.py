"""SIGKILL and power cuts at durable writes of whole rollouts: the same end, every event once."""

from __future__ import annotations

from tests.faults import crash, power_cuts
from tests.faults_slow.case import FaultCase


class KilledTest(FaultCase):
    def test_a_release_that_converges(self) -> None:
        self.holds(crash.ITEMS["crash-forward"])

    def test_a_release_that_is_rolled_back(self) -> None:
        self.holds(crash.ITEMS["crash-rollback"], crash.ITEMS["crash-failed-switch"])

    def test_a_release_that_waits_for_a_reboot(self) -> None:
        self.holds(crash.ITEMS["crash-deferred"])

    def test_a_rollback_that_waits_for_a_reboot(self) -> None:
        self.holds(crash.ITEMS["crash-rollback-deferred"])

    def test_a_release_that_a_newer_one_overtakes(self) -> None:
        self.holds(crash.ITEMS["crash-superseded-activating"])


class PowerCutTest(FaultCase):
    def test_what_was_not_synced_is_gone(self) -> None:
        self.holds(power_cuts.ITEMS["power-forward"], power_cuts.ITEMS["power-rollback"])
