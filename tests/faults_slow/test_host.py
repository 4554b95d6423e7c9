"""What happens to the host around the agent: its clock, its sleep, and others at work on its Nix."""

from __future__ import annotations

from tests.faults import clocks, nix_faults
from tests.faults_slow.case import FaultCase


class ClockTest(FaultCase):
    def test_set_an_hour_off(self) -> None:
        self.holds(clocks.ITEMS["clock-hour-ahead"], clocks.ITEMS["clock-hour-behind"])

    def test_summer_comes_and_goes(self) -> None:
        self.holds(clocks.ITEMS["clock-summer-time"])

    def test_the_host_sleeps(self) -> None:
        self.holds(clocks.ITEMS["suspended"])


class NixTest(FaultCase):
    def test_garbage_is_collected_all_along(self) -> None:
        self.holds(nix_faults.ITEMS["nix-garbage-collected"])

    def test_the_way_back_is_deleted(self) -> None:
        self.holds(nix_faults.ITEMS["nix-prior-deleted"])

    def test_the_daemon_is_gone(self) -> None:
        self.holds(nix_faults.ITEMS["nix-daemon-gone"])

    def test_an_operator_switches_meanwhile(self) -> None:
        self.holds(nix_faults.ITEMS["nixos-rebuild"])
