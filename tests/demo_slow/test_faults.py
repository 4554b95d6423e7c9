"""Scenarios in which something is killed, cut off, lost or forged; each end is checked again from outside."""

from __future__ import annotations

import unittest
from typing import Any

from tests.demo_slow.case import DemoCase

CONVERGED = {"v1": "Converged", "v2": "Converged"}
ROLLED_BACK = {**CONVERGED, "v3": "Reverted"}


class Killed(DemoCase):
    def test_agents_in_a_switch_and_in_a_rollback(self) -> None:
        self.assert_ends(self.demo("--fault", "kill", "--agents", "2"), "v2", ROLLED_BACK)

    def test_the_control_plane_which_goes_on_from_its_database(self) -> None:
        document = self.demo("--scenario", "kill-cp", "--agents", "2")
        self.assert_ends(document, "v3", {**CONVERGED, "v3": "Converged"})

    def test_the_control_plane_which_loses_its_database(self) -> None:
        document = self.demo("--fault", "wipe-cp", "--agents", "2")
        self.assert_ends(document, "v2", {"v2": "Converged", "v3": "Reverted"})
        self.assertEqual(len(self.logs()), 4)  # of v1, which is over, nobody speaks any more

    def test_the_control_plane_which_forgets_what_it_has_answered(self) -> None:
        states = dict.fromkeys(("v1", "v2", "v3"), "Converged") | dict.fromkeys(("v4", "v5"), "Reverted")
        self.assert_ends(self.demo("--fault", "forgetful-cp", "--agents", "2"), "v3", states)


class CutOff(DemoCase):
    def test_hosts_go_back_without_the_control_plane(self) -> None:
        self.assert_ends(self.demo("--fault", "partition", "--agents", "2"), "v2", ROLLED_BACK)


class Forged(DemoCase):
    def refused(self, document: dict[str, Any], *reasons: str) -> None:
        """Every host has refused for these reasons, in the demo's words and in its own log."""
        for host in document["hosts"]:
            log = (self.folder / "hosts" / host["name"] / "agent.log").read_text()
            for reason in reasons:
                self.assertIn(f'"{reason}"', log)
                self.assertIn([host["name"], reason], document["refusals"])

    def test_a_hostile_control_plane(self) -> None:
        document = self.demo("--scenario", "hostile", "--agents", "2")
        states = {"v1": "Converged", "v2": "Pending", "v3": "Pending", "v4": "Pending", "v5": "Converged"}
        self.assert_ends(document, "v5", states)
        self.refused(document, "bad_signature", "closure_mismatch", "older_than_accepted")
        # Nothing of what was refused was even fetched.
        for version in ("v2", "v3", "v4", "v9"):
            self.assertEqual(list((self.folder / "hosts").glob(f"*/store/nix/store/*-{version}")), [])

    def test_a_bad_signature(self) -> None:
        document = self.demo("--fault", "bad-signature", "--agents", "1")
        self.assert_ends(document, "v1", {"v1": "Converged", "v2": "Pending"})
        self.refused(document, "bad_signature")

    def test_a_wrong_closure(self) -> None:
        document = self.demo("--fault", "wrong-closure", "--agents", "1")
        self.assert_ends(document, "v1", {"v1": "Converged", "v2": "Pending"})
        self.refused(document, "closure_mismatch")

    def test_a_stale_release(self) -> None:
        document = self.demo("--fault", "stale", "--agents", "1")
        self.assert_ends(document, "v1", {"v1": "Converged"})
        self.refused(document, "stale")


if __name__ == "__main__":
    unittest.main()
