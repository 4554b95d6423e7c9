"""What the next process makes of the files and of what runs: each row of boot recovery that the reducer decides."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any

from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.journal import header
from nixfleet_agent.journal.entries import Entry
from nixfleet_agent.journal.header import DISPATCH_KIND
from nixfleet_agent.runtime.rollout.orders import Release, ResetProbes
from nixfleet_agent.state_machine import State
from tests.runtime.harness import (
    HALT,
    HOSTNAME,
    NEWER,
    PRIOR,
    ROLLBACK,
    TARGET,
    THIRD,
    TestHost,
)
from tests.runtime.rollout.recovery_case import FAIL, PASS, Case, R, S
from tests.state_machine.machine import T0

POLICY = "rollback-and-halt"


class ByState(Case):
    def test_pending_was_accepted_and_goes_on(self) -> None:
        for current in (PRIOR, TARGET, THIRD, None):
            with self.subTest(current=current):
                host = self.host = TestHost(self)
                host.start()
                host.stop()
                entry = header.accepted(host.acceptance(R, TARGET), 1, PRIOR)
                host.journal.accept(
                    Entry(
                        seq=0,
                        hostname=HOSTNAME,
                        rollout_id=R,
                        kind=DISPATCH_KIND,
                        created_at=T0,
                        event=entry.to_json(),
                    )
                )
                host.start(current)
                self.assertEqual(host.log(), [(0, "Dispatch"), (1, "DispatchAck")])
                self.assertEqual(host.order(), Forward(R, TARGET, PRIOR, POLICY))
                host.stop()

    def test_activating_is_the_pipelines_to_resume_whatever_runs(self) -> None:
        for started in (False, True):
            for current in (PRIOR, TARGET, THIRD, None):
                with self.subTest(started=started, current=current):
                    host = self.host = TestHost(self)
                    host.start()
                    host.dispatch(R, TARGET)
                    if started:
                        host.switching(R)
                    before = host.log()
                    host.restart(current)
                    self.assertEqual(
                        host.order(),
                        Forward(R, TARGET, PRIOR, POLICY, resume=True, already_started=started),
                    )
                    self.assertEqual(host.log(), before)
                    host.stop()

    def deferred(self) -> None:
        self.host.dispatch(R, TARGET)
        self.host.tell(R, "ActivationDeferred", boot_id="boot-1")

    def test_deferred_with_the_target_running_completes(self) -> None:
        for boot in ("boot-1", "boot-2"):
            with self.subTest(boot=boot):
                self.host = TestHost(self)
                self.host.start()
                self.deferred()
                self.host.boot_id = boot
                self.host.restart(TARGET)
                self.assertEqual(self.kinds()[-1], "ActivationCompleted")
                self.assertIs(self.host.record().state, State.SOAKING)
                self.assertEqual(self.host.probe_order(), ResetProbes(R))
                self.host.stop()

    def test_deferred_after_a_reboot_into_something_else_failed_and_its_boot_entry_is_taken_back(self) -> None:
        """Otherwise the next reboot might bring a release that nobody watches."""
        self.deferred()
        self.host.boot_id = "boot-2"
        self.host.restart(PRIOR)
        self.assertEqual(self.kinds()[-1], "ActivationFailed")
        record = self.host.record()
        self.assertEqual((record.state, record.rollback_owed), (State.FAILED, True))
        self.assertEqual(self.host.order(), Rollback(R, PRIOR, TARGET, True, PRIOR))
        self.assertTrue(str(self.host.journal.read(R)[-1].event["stderrTail"]).startswith("boot-fallback: "))

    def test_soaking_after_a_boot_into_something_else_failed_as_boot_fallback(self) -> None:
        for policy, state_after in ((ROLLBACK, Rollback(R, PRIOR, TARGET, True, PRIOR)), (HALT, None)):
            with self.subTest(policy=policy):
                self.host = TestHost(self)
                self.host.start()
                self.host.soaking(R, policy=policy)
                self.host.order()
                self.host.boot_id = "boot-2"
                self.host.restart(PRIOR)
                self.assertEqual(self.host.journal.read(R)[-1].event["failingProbes"], ["boot-fallback"])
                self.assertIs(self.host.record().state, State.FAILED)
                order = self.host.order()
                self.assertEqual(order if isinstance(order, Rollback) else None, state_after)
                self.assertIsNone(self.host.board.get("drift"), "nobody switched by hand")
                self.host.stop()

    def test_a_switch_by_hand_after_a_boot_into_the_soaking_release_is_no_fallback(self) -> None:
        self.host.soaking(R)
        self.host.boot_id = "boot-2"
        self.host.restart(TARGET)
        self.host.declare(R, "web")
        self.host.restart(THIRD)
        self.assertIs(self.host.record().state, State.SOAKING)
        self.assertEqual(self.host.board.get("drift"), THIRD)

    def test_deferred_in_the_same_boot_waits(self) -> None:
        self.deferred()
        for current in (PRIOR, None):
            self.host.restart(current)
            self.is_idle()
            self.assertIs(self.host.record().state, State.DEFERRED)

    def test_deferred_after_a_reboot_waits_until_it_can_be_read_what_runs(self) -> None:
        self.deferred()
        self.host.boot_id = "boot-2"
        self.host.restart(None)
        self.assertIs(self.host.record().state, State.DEFERRED)

    def test_soaking_on_the_target_runs_its_probes_and_soaks_on(self) -> None:
        self.host.soaking(R, soak_floor=10)
        self.host.tell(R, "ProbeResult", status=PASS)
        self.host.clock.advance(200)
        self.host.tell(R, "ProbeResult", status=FAIL)
        self.host.tell(R, "ProbeResult", status=PASS)
        self.host.restart(TARGET)
        self.assertEqual(self.host.probe_order(), ResetProbes(R))
        self.assertIsNone(self.host.activation.peek())
        self.host.declare(R, "web")
        self.host.clock.advance(399)
        self.host.tell(R, "ProbeResult", status=PASS)
        self.host.tick()
        self.assertIs(self.host.record().state, State.SOAKING)
        self.host.clock.advance(1)
        self.host.tick()
        self.assertIs(self.host.record().state, State.CONVERGED)

    def test_a_clock_that_was_set_meanwhile_changes_nothing_about_the_soak_after_a_restart(
        self,
    ) -> None:
        for step in (86_400, -86_400):
            with self.subTest(step=step):
                self.host = TestHost(self)
                self.host.start()
                self.host.soaking(R, soak_floor=10)
                self.host.clock.advance(200)
                self.host.clock.step(step)
                self.host.tell(R, "ProbeResult", status=PASS)
                self.host.restart(TARGET)
                self.host.declare(R, "web")
                self.host.tell(R, "ProbeResult", status=PASS)
                self.host.clock.advance(399)
                self.host.tick()
                self.assertIs(self.host.record().state, State.SOAKING)
                self.host.clock.advance(1)
                self.host.tick()
                self.assertIs(self.host.record().state, State.CONVERGED)
                self.host.stop()

    def test_soaking_while_an_operators_switch_runs_reports_drift_and_nothing_else(self) -> None:
        self.host.soaking(R)
        self.host.tell(R, "ProbeResult", status=PASS)
        before = self.host.log()
        self.host.restart(THIRD)
        self.is_idle()
        self.assertEqual(self.host.board.get("drift"), THIRD)
        self.host.clock.advance(3600)
        self.host.tick()
        self.assertEqual(self.host.log(), before)
        self.host.tick(TARGET)
        self.assertEqual(self.host.probe_order(), ResetProbes(R))

    def failed(self, **changes: Any) -> None:
        self.host.soaking(R, **changes)
        for _ in range(2):
            self.host.tell(R, "ProbeResult", status=FAIL)
            self.host.clock.advance(60)
        self.host.tick()

    def test_failed_with_a_rollback_owed_goes_back_whatever_runs(self) -> None:
        for current in (TARGET, PRIOR, THIRD, None):
            with self.subTest(current=current):
                self.host = TestHost(self)
                self.host.start()
                self.failed()
                self.host.restart(current)
                self.assertEqual(self.host.order(), Rollback(R, PRIOR, TARGET, True, TARGET))
                self.host.stop()

    def test_failed_by_the_activation_keeps_what_only_this_host_knows(self) -> None:
        self.host.dispatch(R, TARGET)
        self.host.tell(R, "ActivationFailed", switch_fired=False, observed_at_failure=PRIOR)
        self.host.restart(PRIOR)
        self.assertEqual(self.host.order(), Rollback(R, PRIOR, TARGET, False, PRIOR))

    def test_over_is_over(self) -> None:
        def converged() -> None:
            self.host.soaking(R)
            self.host.tell(R, "ProbeResult", status=PASS)
            self.host.clock.advance(300)
            self.host.tick()

        def reverted() -> None:
            self.failed()
            self.host.tell(R, "RollbackComplete", reverted_to_closure=PRIOR)

        ends: tuple[tuple[Callable[[], None], State], ...] = (
            (converged, State.CONVERGED),
            (reverted, State.REVERTED),
            (lambda: self.failed(policy=HALT), State.FAILED),
        )
        for end, state in ends:
            for current in (PRIOR, TARGET, THIRD):
                with self.subTest(state=state, current=current):
                    self.host = TestHost(self)
                    self.host.start()
                    end()
                    before = self.host.log()
                    self.host.restart(current)
                    # Between its end and the letting go of what it held, the process may have died.
                    self.assertEqual(self.host.activation.take(0), Release(R))
                    self.host.clock.advance(3600)
                    self.host.tick()
                    self.is_idle()
                    self.assertEqual((self.host.record().state, self.host.log()), (state, before))
                    self.host.stop()

    def test_only_the_active_one_resumes(self) -> None:
        self.failed()
        self.host.order()
        self.host.current = PRIOR
        self.host.tell(R, "RollbackComplete", reverted_to_closure=PRIOR)
        self.host.dispatch(S, NEWER)
        self.host.dispatch("stable@cc", THIRD)
        self.host.restart(PRIOR)
        self.assertEqual(self.host.order(), Forward("stable@cc", THIRD, PRIOR, POLICY, resume=True))

    def test_the_record_is_the_same_as_before(self) -> None:
        self.failed()
        before = self.host.board.get("rollouts")
        self.host.restart(TARGET)
        self.assertEqual(self.host.board.get("rollouts"), before)


if __name__ == "__main__":
    unittest.main()
