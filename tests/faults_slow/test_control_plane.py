"""Control planes and networks that fail all through a rollout; dispatches out of order."""

from __future__ import annotations

from tests.faults import cp_faults, wrong_server
from tests.faults_slow.case import FaultCase


class ControlPlaneTest(FaultCase):
    def test_answers_that_are_wrong(self) -> None:
        self.holds(cp_faults.ITEMS["cp-taken-but-500"], cp_faults.ITEMS["cp-garbage"])

    def test_a_control_plane_that_never_answers(self) -> None:
        self.holds(cp_faults.ITEMS["cp-never"])

    def test_somebody_else_at_its_address(self) -> None:
        items = wrong_server.ITEMS
        self.holds(items["cp-certificate-of-another-ca"], items["cp-certificate-expired"])

    def test_its_clock_is_an_hour_off(self) -> None:
        items = wrong_server.ITEMS
        self.holds(items["cp-clock-hour-ahead"], items["cp-clock-hour-behind"])

    def test_a_network_that_fails(self) -> None:
        self.holds(cp_faults.ITEMS["net-reset"], cp_faults.ITEMS["net-half-an-answer"])

    def test_a_control_plane_that_is_killed(self) -> None:
        self.holds(cp_faults.ITEMS["cp-killed"])

    def test_a_database_that_is_wiped(self) -> None:
        self.holds(cp_faults.ITEMS["cp-wiped"])

    def test_a_storm_of_repeated_turns(self) -> None:
        self.holds(cp_faults.ITEMS["dispatch-storm"])

    def test_an_older_release_after_a_newer_one(self) -> None:
        self.holds(cp_faults.ITEMS["dispatch-reordered"])

    def test_a_newer_release_at_any_moment_of_an_older_one(self) -> None:
        self.holds(cp_faults.ITEMS["newer-at-any-moment"])
