"""Each fault of the control plane does what it says to a client, and nothing once it is turned off."""

from __future__ import annotations

import http.client
import time
import unittest
from typing import Any

from tests.local_cp.scripted import ControlPlaneCase, until_soaking
from tests.support.signing import closure_name

ONE = ("web-01",)
BROKEN = (OSError, http.client.HTTPException)


class Faults(ControlPlaneCase):
    def setUp(self) -> None:
        super().setUp()
        self.rollout_id = self.publish("aaa1", ONE)
        self.web = self.agent("web-01")

    def test_a_partition_cuts_open_connections_and_drops_new_ones(self) -> None:
        waiting = self.web.connect()
        self.addCleanup(waiting.close)
        waiting.request("GET", "/v1/agent/dispatch?wait=60")
        self.cp.partition(True)
        with self.assertRaises(BROKEN):
            waiting.getresponse()
        fresh = self.web.connect()
        self.addCleanup(fresh.close)
        with self.assertRaises(BROKEN):
            fresh.request("GET", "/v1/fleet.resolved")
            fresh.getresponse()
        self.cp.partition(False)
        self.web.close()
        self.assertEqual(self.web.beat().status, 200)

    def test_a_turn_is_not_lost_in_a_partition(self) -> None:
        self.web.beat()
        self.cp.partition(True)
        with self.assertRaises(BROKEN):
            self.web.poll(wait=1)
        self.cp.partition(False)
        self.web.close()
        turn = self.web.poll(wait=5)
        assert turn is not None
        self.assertEqual(turn["rollout_id"], self.rollout_id)

    def test_an_event_of_a_forgotten_kind_is_answered_well_and_not_kept_the_first_time(self) -> None:
        self.web.beat()
        self.assertIsNotNone(self.web.poll(wait=10))
        self.cp.faults.set("forgotten", ["DispatchAck"])
        [(kind, fields), *_] = until_soaking(self.target(self.rollout_id, "web-01"))
        for kept in ([], [(1, "DispatchAck")]):
            reply = self.web.event(self.rollout_id, kind, seq=1, **fields)
            self.assertEqual((reply.status, self.logged("web-01", self.rollout_id)), (204, kept))

    def test_a_slow_answer_is_late_and_whole(self) -> None:
        self.web.beat()
        self.cp.faults.delay = 0.3
        began = time.monotonic()
        self.assertEqual(self.web.call("GET", "/v1/fleet.resolved").status, 200)
        self.assertGreaterEqual(time.monotonic() - began, 0.3)

    def test_a_tampered_signature_differs_and_only_for_that_rollout(self) -> None:
        good = self.web.call("GET", f"/v1/rollouts/{self.rollout_id}/sig")
        self.cp.faults.tampered = frozenset({self.rollout_id})
        bad = self.web.call(
            "GET", f"/v1/rollouts/{self.rollout_id}/sig", headers={"If-None-Match": good.headers["etag"]}
        )
        self.assertEqual(bad.status, 200)
        self.assertNotEqual(bad.body, good.body)
        self.assertEqual(len(bad.body), 64)
        self.assertEqual(self.web.call("GET", "/v1/fleet.resolved/sig").body, self.published("fleet.resolved.sig"))

    def published(self, name: str) -> bytes:
        return (self.cp.folder / "published" / name).read_bytes()

    def test_a_wrong_closure_is_named_in_the_turn_only(self) -> None:
        wrong = closure_name("evil")
        self.cp.faults.wrong_closures = {self.rollout_id: wrong}
        self.web.beat()
        turn: Any = self.web.poll(wait=5)
        self.assertEqual(turn["target_closure"], wrong)
        record = self.cp.control.store.record(self.rollout_id, "web-01")
        assert record is not None
        self.assertEqual(record.target_closure, self.target(self.rollout_id, "web-01"))


if __name__ == "__main__":
    unittest.main()
