"""A control plane that uses up every deadline: no worker is silent for longer than its watchdog allows.

A worker that is taken for dead has the whole agent restarted, which is more than a delay.
"""

from __future__ import annotations

import unittest
from dataclasses import replace
from typing import Any
from unittest import mock

from nixfleet_agent.net.answers import Answer
from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.runtime.dispatch.check import Gates
from nixfleet_agent.runtime.dispatch.decision import Pending
from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.runtime.workers.heartbeat import HeartbeatWorker
from nixfleet_agent.runtime.workers.longpoll import LongPollWorker
from nixfleet_agent.runtime.workers.manifest_poll import ManifestPollWorker
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.threads.worker import Worker
from tests.artifacts.release_base import FLEET_PATH, ROLLOUT, ReleaseTestCase, target
from tests.runtime.parts import services

EVERY_DEADLINE = 1.0


class Liveness(ReleaseTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.shutdown = ShutdownToken(self.clock)
        self.inputs = InputQueue(self.shutdown)
        self.worker: Worker | None = None
        self.longest = 0.0
        self.asked_for: list[str] = []
        current = self.release(hosts={"web-01": "stable"})
        self.rollout = current
        # Another fleet is served than the manifest pins, so that each thing is fetched as often as it can be.
        other = self.release(hosts={"web-01": "stable"}, soak_minutes=9)
        self.bodies = {FLEET_PATH: other.fleet, f"/v1/rollouts/{ROLLOUT}": current.rollout("stable")}
        self.enterContext(mock.patch.object(self.control_plane, "get", self.get))

    def get(self, path: str, *, deadline: float, **options: Any) -> Answer:
        """All that is asked for comes at the last moment, and its signature is wrong at every first look."""
        self.clock.advance(deadline * EVERY_DEADLINE)
        self.asked_for.append(path)
        assert self.worker is not None
        self.longest = max(self.longest, self.worker.silent_for())
        signed = self.bodies[path.removesuffix("/sig")]
        if not path.endswith("/sig"):
            return Answer(200, {}, signed.raw)
        first_look = self.asked_for.count(path) % 2 == 1
        return Answer(200, {}, bytes(64) if first_look else signed.signature)

    def services(self, **tuning: float) -> Services:
        return services(
            config=replace(self.config, tuning=replace(self.config.tuning, **tuning)),
            shutdown=self.shutdown,
            clock=self.clock,
            inputs=self.inputs,
            control_plane=self.control_plane,
            cache=self.cache,
            board=self.board,
        )

    def assert_in_time(self, worker: Worker, requests: int) -> None:
        self.assertGreaterEqual(len(self.asked_for), requests)
        self.assertGreater(self.longest, 100.0, "the deadlines were used up")
        self.assertLess(self.longest, worker.limit)

    def test_the_long_poll(self) -> None:
        gates = Gates(lambda rollout_id: False, lambda: None, lambda channel, closure: None, lambda: None)
        worker = self.worker = LongPollWorker(self.services(), gates)
        worker.alive()
        now = self.clock.now()
        dispatch = Dispatch(
            hostname="web-01", rollout_id=ROLLOUT, target_closure=target(self.rollout), soak_due_at=now, enqueued_at=now
        )
        worker._check.outcome(Pending(dispatch, now, now), anew=True, gated=False)
        self.assert_in_time(worker, 12)

    def test_the_manifest_poll(self) -> None:
        worker = self.worker = ManifestPollWorker(self.services(manifest_poll_interval=0.0))
        worker.alive()
        worker.poll()
        self.assert_in_time(worker, 8)

    def test_the_heartbeat(self) -> None:
        """One hint that looks as if it could be adopted costs as much as an order."""
        worker = self.worker = HeartbeatWorker(self.services(heartbeat_interval=0.0), lambda snapshot: None)
        worker.alive()
        with self.assertRaises(Exception):  # noqa: B017 - whatever it is refused for: what counts is the time
            self.cache.terms(ROLLOUT, "web-01", target(self.rollout), anew=True)
        self.assert_in_time(worker, 12)


if __name__ == "__main__":
    unittest.main()
