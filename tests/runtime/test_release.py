"""A release that CI signed for this host and whose turn does not come shows, and nothing else does."""

from __future__ import annotations

import unittest
from datetime import timedelta

from nixfleet_agent.proto.manifest import RolloutManifest
from nixfleet_agent.runtime.release import SignedRelease, release_status, signed_release
from nixfleet_agent.state_machine import RolloutRecord, State
from nixfleet_agent.telemetry.status import RolloutsView
from tests.support.clock import EPOCH
from tests.support.signing import CiSigner

OLD, NEW = "a" * 32 + "-old", "b" * 32 + "-new"
LATER = EPOCH + timedelta(hours=3)
RELEASE = SignedRelease("stable@bb", NEW, LATER, EPOCH)


def view(closure: str, state: State) -> RolloutsView:
    record = RolloutRecord(
        rollout_id="stable@aa", hostname="h", channel="stable", target_closure=closure, dispatched_at=EPOCH, state=state
    )
    return RolloutsView(active_id="stable@aa", records=(record,))


class Behind(unittest.TestCase):
    def since(self, current: str | None, rollouts: RolloutsView | None, kept: str | None = None) -> object:
        status = release_status(RELEASE, current, rollouts, kept)
        assert status is not None
        self.assertEqual((status.rollout_id, status.target_closure, status.signed_at), ("stable@bb", NEW, LATER))
        return status.behind_since

    def test_while_another_closure_runs_and_no_turn_has_come(self) -> None:
        self.assertEqual(self.since(OLD, None), EPOCH)
        for state in State:
            with self.subTest(state):
                self.assertEqual(self.since(OLD, view(OLD, state)), EPOCH)

    def test_not_where_it_runs_or_nobody_can_say_what_does(self) -> None:
        self.assertIsNone(self.since(NEW, None))
        self.assertIsNone(self.since(None, None))

    def test_not_where_its_turn_came_however_that_ended(self) -> None:
        for state in State:
            with self.subTest(state):
                self.assertIsNone(self.since(OLD, view(NEW, state)))

    def test_not_while_its_dispatch_waits_here(self) -> None:
        self.assertIsNone(self.since(OLD, None, "stable@bb"))
        self.assertEqual(self.since(OLD, None, "stable@aa"), EPOCH)

    def test_nothing_is_said_where_nothing_was_verified(self) -> None:
        self.assertIsNone(release_status(None, OLD, None, None))


class Signed(unittest.TestCase):
    def manifest(self, closure: str) -> RolloutManifest:
        release = CiSigner().release({"web-01": "stable"}, signed_at=EPOCH)
        value = release.rollout("stable").value
        hosts = [{**entry, "targetClosure": closure} for entry in value["hostSet"]]
        return RolloutManifest.parse({**value, "hostSet": hosts})

    def test_it_is_as_old_as_its_target_and_not_as_its_newest_signature(self) -> None:
        manifest = self.manifest(NEW)
        first = signed_release(manifest, EPOCH, "web-01", None)
        assert first is not None
        again = signed_release(manifest, LATER, "web-01", first)
        self.assertEqual(again, SignedRelease(manifest.rollout_id, NEW, LATER, EPOCH))
        other = signed_release(self.manifest(OLD), LATER, "web-01", again)
        self.assertEqual(other, SignedRelease(manifest.rollout_id, OLD, LATER, LATER))
        self.assertIsNone(signed_release(manifest, EPOCH, "web-02", None))


if __name__ == "__main__":
    unittest.main()
