"""Whether a boot counts: by what became of the release that it brought, and of no other."""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from nixfleet_agent.commands import boot_check
from nixfleet_agent.commands.boot_check import counting, judge
from tests.commands.host_case import NEW, HostCase

OTHER = "z" * 32 + "-other"


def rollout(rollout_id: str, state: str, closure: str = NEW, at: str = "2026-05-16T01:00:00Z") -> dict[str, Any]:
    return {"rollout_id": rollout_id, "state": state, "target_closure": closure, "dispatched_at": at}


def host(*rollouts: dict[str, Any], active: str = "stable@aa", watched: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"host": {"active_id": active, "watched": watched}, "rollouts": rollouts}


class Judged(unittest.TestCase):
    def test_each_state_of_the_release_that_was_booted(self) -> None:
        good = {"Converged": True, "Failed": False, "Reverted": False}
        for state in ("Pending", "Activating", "Deferred", "Soaking", *good):
            verdict = judge(host(rollout("stable@aa", state)), NEW)
            self.assertIs(verdict.good, good.get(state), state)
            self.assertIn("stable@aa", verdict.reason)

    def test_a_system_that_no_rollout_brought_is_good(self) -> None:
        self.assertIs(judge(host(rollout("stable@aa", "Failed", OTHER)), NEW).good, True)
        self.assertIs(judge({"host": None, "rollouts": []}, NEW).good, True)

    def test_one_that_was_superseded_counts_while_it_is_watched(self) -> None:
        newer = rollout("stable@bb", "Activating", OTHER, "2026-05-16T02:00:00Z")
        older = rollout("stable@aa", "Soaking")
        self.assertIsNone(judge(host(older, newer, active="stable@bb", watched=("stable@aa",)), NEW).good)
        verdict = judge(host(older, newer, active="stable@bb"), NEW)
        self.assertIs(verdict.good, False)
        self.assertIn("superseded", verdict.reason)

    def test_the_newest_rollout_of_a_closure_decides(self) -> None:
        first, again = rollout("stable@aa", "Reverted"), rollout("stable@cc", "Converged", at="2026-05-17T01:00:00Z")
        for order in ((first, again), (again, first)):
            self.assertIs(judge(host(*order), NEW).good, True)


class Command(HostCase):
    def boot(self, closure: str) -> None:
        (self.folder / "booted-system").symlink_to(f"/nix/store/{closure}")

    def test_a_boot_of_what_no_rollout_brought_is_good(self) -> None:
        self.boot(OTHER)
        ran = self.call("boot-check")
        self.assertEqual((ran.code, ran.out), (0, f"{OTHER}: no rollout brought it\n"))
        told = json.loads(self.call("boot-check", "--json", "--wait").out)
        self.assertEqual(told, {"good": True, "reason": "no rollout brought it", "booted": OTHER})

    def test_what_can_not_be_read_is_not_good(self) -> None:
        ran = self.call("boot-check", "--wait")
        self.assertEqual(ran.code, 1)
        self.assertIn("booted-system does not exist", ran.err)

    def test_with_wait_it_ends_when_it_is_decided(self) -> None:
        self.boot(NEW)
        looks = [host(rollout("stable@aa", state)) for state in ("Deferred", "Soaking", "Converged")]
        with (
            mock.patch.object(boot_check, "snapshot_of", lambda config: looks.pop(0)),
            mock.patch.object(boot_check, "INTERVAL", 0.0),
        ):
            self.assertEqual(self.call("boot-check", "--wait").code, 0)
        self.assertEqual(looks, [])
        with mock.patch.object(boot_check, "snapshot_of", lambda config: host(rollout("stable@aa", "Soaking"))):
            self.assertEqual(self.call("boot-check").code, 1)


class Counting(unittest.TestCase):
    def test_check_says_who_judges_a_boot_that_is_counted(self) -> None:
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.enterContext(mock.patch.object(boot_check, "COUNTED", folder / "counted"))
        self.enterContext(mock.patch.object(boot_check, "REQUIRED", folder / "required"))
        self.assertEqual(list(counting()), [])
        (folder / "counted").touch()
        self.assertEqual([finding.level for finding in counting()], ["warn"])
        (folder / "required").symlink_to("/nowhere")
        self.assertEqual([finding.level for finding in counting()], ["ok"])


if __name__ == "__main__":
    unittest.main()
