"""A control plane that completes its own record when a heartbeat reports the target, as the deployed one does."""

from __future__ import annotations

import unittest

from nixfleet_agent.local_cp.dispatcher import Options
from tests.local_cp.scripted import ControlPlaneCase, now, to_converged, until_soaking
from tests.support.signing import closure_name


class Completion(ControlPlaneCase):
    OPTIONS = Options(complete_from_heartbeat=True)

    def setUp(self) -> None:
        super().setUp()
        self.rollout_id = self.publish("aaa1", ("web-01",))
        self.web = self.agent("web-01")
        self.web.beat()
        self.assertIsNotNone(self.web.poll(wait=10))
        self.target_closure = self.target(self.rollout_id, "web-01")
        self.events = until_soaking(self.target_closure)

    def state(self) -> str:
        record = self.cp.control.store.record(self.rollout_id, "web-01")
        assert record is not None
        return record.state.value

    def newest(self) -> tuple[int, str]:
        return self.logged("web-01", self.rollout_id)[-1]

    def test_the_record_takes_the_next_seq_when_the_target_is_reported(self) -> None:
        self.play(self.web, self.rollout_id, self.events[:2])
        self.web.beat(self.rollout_id, self.target_closure)
        self.assertEqual((self.newest(), self.state()), ((3, "ActivationCompleted"), "Soaking"))

    def test_a_deferred_host_that_was_booted_into_the_target_is_completed_too(self) -> None:
        deferred: dict[str, object] = {"component": "systemd", "deferredAt": now()}
        self.play(self.web, self.rollout_id, [*self.events[:2], ("ActivationDeferred", deferred)])
        self.assertEqual(self.state(), "Deferred")
        self.web.beat(self.rollout_id, self.target_closure)
        self.assertEqual((self.newest(), self.state()), ((4, "ActivationCompleted"), "Soaking"))

    def test_another_closure_or_none_completes_nothing(self) -> None:
        self.play(self.web, self.rollout_id, self.events[:2])
        for closure in (None, closure_name("prior")):
            self.web.beat(self.rollout_id, closure)
            self.assertEqual((self.newest(), self.state()), ((2, "ActivationStarted"), "Activating"))

    def test_a_turn_that_was_not_acknowledged_is_not_completed(self) -> None:
        self.web.beat(closure=self.target_closure)
        self.assertEqual((self.logged("web-01", self.rollout_id), self.state()), ([], "Pending"))

    def test_the_hosts_own_completion_comes_as_a_repeat_and_the_rollout_goes_on(self) -> None:
        self.play(self.web, self.rollout_id, self.events[:2])
        self.web.beat(self.rollout_id, self.target_closure)
        self.play(self.web, self.rollout_id, to_converged(self.target_closure)[2:])
        self.assertEqual((self.newest(), self.state()), ((6, "Converged"), "Converged"))
        self.web.beat(closure=self.target_closure)
        self.assertEqual(self.newest(), (6, "Converged"))


class Plain(ControlPlaneCase):
    def test_without_the_option_only_events_change_a_record(self) -> None:
        rollout_id = self.publish("aaa1", ("web-01",))
        web = self.agent("web-01")
        web.beat()
        self.assertIsNotNone(web.poll(wait=10))
        target = self.target(rollout_id, "web-01")
        self.play(web, rollout_id, until_soaking(target)[:2])
        web.beat(rollout_id, target)
        self.assertEqual(self.logged("web-01", rollout_id)[-1], (2, "ActivationStarted"))


if __name__ == "__main__":
    unittest.main()
