"""After a restart: each row of what the records and the host can say, and agents that were killed in the middle."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import unittest
from typing import Any
from unittest import mock

from nixfleet_agent.activation import realise
from nixfleet_agent.activation.backends.setsid import SetsidBackend
from nixfleet_agent.activation.host import read_boot_id
from nixfleet_agent.activation.model import Completed, Failed, Forward, RolledBack
from nixfleet_agent.activation.records import FORWARD, Intent, Record, Records
from nixfleet_agent.activation.scripts import WRAPPER, install
from nixfleet_agent.demo.nixos_switch import Switch
from tests.activation import agent_process
from tests.activation.case import ROLLOUT, PipelineCase, processes_of, until
from tests.support.nix import FAIL, HANG, KILL_AGENT, KILL_AGENT_AND_FAIL, SLOW


def another_boot(record: Record) -> None:
    """Make a record look like one from before a reboot."""
    for name in ("intent.json", "started"):
        path = record.path / name
        if path.exists():
            path.write_bytes(path.read_bytes().replace(record.intent.boot.encode(), b"0-boot-before-this-one"))


_launch = SetsidBackend.launch


def _only_delayed(backend: SetsidBackend, record: Record, command: list[str], delay: float = 0) -> None:
    if not delay:
        raise KeyboardInterrupt("the agent dies here")
    _launch(backend, record, command, delay)


class ResumeTest(PipelineCase):
    def lose_switch(self, script: str) -> str:
        """A release whose switch dies with the machine, before it could say how it ended."""
        bad = self.nixery.system("lost-" + str(abs(hash(script))), script)
        result = self.in_thread(lambda: self.forward(bad))
        until(lambda: self.host.switches(), "the switch")
        self.interrupt("shutdown")
        result()
        self.reason = None
        self.wake.clear()
        self.power_cut()
        return bad

    def power_cut(self) -> None:
        def all_dead() -> bool:  # again and again: one may have forked between the look and the kill
            left = processes_of(self.host.root)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        until(all_dead, "the end of everything")
        for direction in (FORWARD, "guard"):
            for record in self.records(direction):
                another_boot(record)

    def await_switches(self, number: int) -> None:
        until(lambda: len(self.host.switches()) == number, f"switch {number}")

    def prepared(self) -> Record:
        """A record that the agent prepared before it died, and never launched."""
        self.host.nix("nix-store", "--realise", f"/nix/store/{self.v2}")
        records = Records(self.host.state_dir, read_boot_id())
        install(records.folder)
        intent = Intent(
            ROLLOUT, FORWARD, self.v2, "switch", "setsid", "nixfleet-switch", self.v1, records.boot, 0.0, "now"
        )
        return records.prepare(intent)

    def launch(self, record: Record) -> None:
        """The wrapper of a record starts, perhaps too late."""
        script = self.host.store_root / "nix/store" / self.v2 / "bin/switch-to-configuration"
        wrapper = record.path.parent / WRAPPER
        arguments = ["/bin/sh", str(wrapper), "run", str(record.path), "0", str(script), "switch"]
        subprocess.run(arguments, env=self.host.environment, check=True, timeout=10)

    def test_never_fired_and_the_prior_runs_goes_the_whole_way(self) -> None:
        self.assertEqual(self.resume(self.v2, started=False), Completed(self.v2, 0, ()))
        self.assertEqual((self.host.switches(), self.methods), ([f"switch {self.v2}"], ["setsid"]))

    def test_never_fired_and_the_target_runs_is_complete(self) -> None:
        self.host.boot(self.v2)
        self.assertEqual(self.resume(self.v2), Completed(self.v2, 0, ()))
        self.assertEqual((self.host.switches(), self.methods), ([], []))

    def test_never_fired_and_a_third_closure_runs_is_minus_three(self) -> None:
        other = self.nixery.system("other")
        self.host.boot(other)
        outcome = self.resume(self.v2)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.switch_fired, outcome.observed), (-3, False, other))
        self.assertEqual(self.host.switches(), [])

    def test_what_the_superseded_rollouts_switch_left_is_no_third_closure(self) -> None:
        """The agent died after it had accepted this rollout, while the older one's switch was under way."""
        older = self.nixery.system("older")
        self.pipeline().forward(Forward("stable@abc0", older, self.v1, "halt"), [].append)
        self.assertEqual(self.resume(self.v2, started=False), Completed(self.v2, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {older}", f"switch {self.v2}"])

    def test_what_a_deferred_rollout_left_to_the_boot_that_came_first_is_no_third_closure(self) -> None:
        """The host booted after this rollout was accepted, and before its switch."""
        kernel = self.nixery.path("kernel-9", {"image": "nine\n"})
        deferred = self.nixery.system("deferred", links={"kernel": f"/nix/store/{kernel}/image"}, references=(kernel,))
        record = self.prepared_boot(deferred)
        another_boot(record)
        self.host.boot(deferred)
        self.assertEqual(self.resume(self.v2, started=False), Completed(self.v2, 0, ()))

    def test_what_was_refused_since_does_not_make_it_a_third_closure(self) -> None:
        """A release between the two changed nothing: what boots next stayed the same."""
        kernel = self.nixery.path("kernel-9", {"image": "nine\n"})
        deferred = self.nixery.system("deferred", links={"kernel": f"/nix/store/{kernel}/image"}, references=(kernel,))
        record = self.prepared_boot(deferred)
        refused = self.nixery.system("refused", switch=Switch(checks={"app": "false"}))
        outcome = self.pipeline().forward(Forward("stable@abc9", refused, self.v1, "halt"), self.methods.append)
        assert isinstance(outcome, Failed)
        self.assertEqual(outcome.phase, "pre-switch-check")
        another_boot(record)
        self.host.boot(deferred)
        self.assertEqual(self.resume(self.v2, started=False), Completed(self.v2, 0, ()))

    def prepared_boot(self, closure: str) -> Record:
        """An older rollout's boot entry was written."""
        self.host.nix("nix-store", "--realise", f"/nix/store/{closure}")
        records = Records(self.host.state_dir, read_boot_id())
        install(records.folder)
        intent = Intent(
            "stable@abc0", "boot", closure, "boot", "setsid", "nixfleet-switch", self.v1, records.boot, 0.0, "now"
        )
        record = records.prepare(intent)
        script = self.host.store_root / "nix/store" / closure / "bin/switch-to-configuration"
        wrapper = record.path.parent / WRAPPER
        arguments = ["/bin/sh", str(wrapper), "run", str(record.path), "0", str(script), "boot"]
        subprocess.run(arguments, env=self.host.environment, check=True, timeout=10)
        return record

    def leave_running(self, script: str) -> str:
        """An older rollout's switch runs, and the agent that fired it is gone; its target."""
        older = self.nixery.system("older-" + str(abs(hash(script))), script)
        intent = Forward("stable@abc0", older, self.v1, "halt")
        result = self.in_thread(lambda: self.pipeline().forward(intent, [].append))
        until(lambda: self.host.switches(), "the older switch")
        self.interrupt("shutdown")
        result()
        self.reason = None
        self.wake.clear()
        return older

    def test_never_fired_awaits_the_switch_of_the_rollout_that_it_superseded(self) -> None:
        older = self.leave_running('sleep 2; flip "$self"; echo "slow one done"\n')
        self.assertEqual(self.resume(self.v2, started=False), Completed(self.v2, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {older}", f"switch {self.v2}"])
        record = Records(self.host.state_dir, read_boot_id()).of("stable@abc0", FORWARD)[-1]
        self.assertEqual((record.exit_code, "slow one done" in record.output(4096)), (0, True), "never raced")

    def test_a_superseded_switch_that_hangs_is_ended_after_its_budget(self) -> None:
        self.host.configure(poll_budget_secs=0.5)
        self.leave_running(HANG)
        self.assertEqual(self.resume(self.v2, started=False), Completed(self.v2, 0, ()))

    def test_never_fired_but_its_guard_armed_and_the_target_runs_leaves_no_guard(self) -> None:
        # The guard is armed just before the switch is launched: the agent dies between the two.
        dying = mock.patch.object(SetsidBackend, "launch", autospec=True, side_effect=_only_delayed)
        with dying, self.assertRaises(KeyboardInterrupt):
            self.forward(self.v2)
        self.assertEqual(len(self.records("guard")), 1)
        self.host.boot(self.v2)
        self.assertEqual(self.resume(self.v2), Completed(self.v2, 0, ()))
        self.assertEqual(self.records("guard"), [])

    def test_prepared_but_not_launched_is_never_fired_and_a_late_wrapper_runs_nothing(self) -> None:
        record = self.prepared()
        self.assertTrue(record.withdraw())
        self.launch(record)
        self.assertEqual(self.host.switches(), [])
        self.assertEqual(self.resume(self.v2), Completed(self.v2, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {self.v2}"])

    def test_a_wrapper_that_started_first_can_not_be_withdrawn(self) -> None:
        record = self.prepared()
        self.launch(record)
        self.assertFalse(record.withdraw())
        self.assertEqual(self.resume(self.v2), Completed(self.v2, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {self.v2}"], "adopted, not fired twice")

    def test_a_switch_that_ended_well_meanwhile_is_complete(self) -> None:
        self.forward(self.v2)
        self.assertEqual(self.resume(self.v2), Completed(self.v2, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {self.v2}"])

    def test_a_switch_that_failed_meanwhile_is_failed_with_its_words(self) -> None:
        bad = self.nixery.system("bad", FAIL)
        first = self.forward(bad)
        self.assertEqual(self.resume(bad), first)
        self.assertEqual(self.host.switches(), [f"switch {bad}"])
        self.pipeline().release(ROLLOUT)

    def test_a_switch_lost_with_the_machine_is_fired_again_at_most_twice(self) -> None:
        bad = self.lose_switch(HANG)
        for attempt in (2, 3):
            result = self.in_thread(lambda: self.resume(bad))
            self.await_switches(attempt)
            self.interrupt("shutdown")
            result()
            self.reason = None
            self.wake.clear()
            self.power_cut()
        outcome = self.resume(bad)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.phase, outcome.switch_fired), (-1, "switch", True))
        self.assertIn("lost 3 times", outcome.stderr_tail)
        self.assertEqual(self.host.switches(), [f"switch {bad}"] * 3)

    def test_a_switch_lost_after_its_flip_is_complete_when_the_host_came_up_with_the_target(self) -> None:
        self.host.configure(failed_units="fail")
        target = self.lose_switch('flip "$self"; sleep 600\n')
        self.host.run_system(target)
        self.assertEqual(self.resume(target), Completed(target, -1, ()))

    def test_a_switch_that_succeeded_but_did_not_survive_the_reboot_fails_at_once(self) -> None:
        self.host.configure(poll_budget_secs=600.0)
        self.forward(self.v2)
        another_boot(self.records(FORWARD)[0])
        self.host.run_system(self.v1)
        outcome = self.resume(self.v2)
        assert isinstance(outcome, Failed)
        self.assertEqual(outcome.phase, "switch-lost")

    def test_a_lost_switch_and_a_third_closure_is_minus_three(self) -> None:
        bad = self.lose_switch(HANG)
        other = self.nixery.system("other")
        self.host.boot(other)
        outcome = self.resume(bad)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.observed), (-3, other))

    def test_the_time_that_passed_while_we_were_away_counts(self) -> None:
        slow = self.nixery.system("hang", HANG)
        result = self.in_thread(lambda: self.forward(slow))
        until(lambda: self.host.switches(), "the switch")
        self.interrupt("shutdown")
        result()
        self.reason = None
        self.wake.clear()
        record = self.records(FORWARD)[0]
        path = record.path / "intent.json"
        path.write_text(path.read_text().replace(str(record.intent.fired_at), str(record.intent.fired_at - 1000)))
        outcome = self.resume(slow)
        assert isinstance(outcome, Failed)
        self.assertEqual(outcome.phase, "switch-poll-timeout")
        self.assertEqual(self.pipeline().rollback(self.back(slow)), RolledBack(self.v1, 0))

    def test_a_folder_that_was_half_prepared_is_passed_over(self) -> None:
        (self.host.state_dir / "switch" / f"000001-forward-{ROLLOUT}").mkdir(parents=True)
        (self.host.state_dir / "switch" / "nonsense").write_text("{")
        self.assertEqual(self.resume(self.v2), Completed(self.v2, 0, ()))


class KilledTest(PipelineCase):
    """A real agent process, killed with SIGKILL by the very switch that it fired."""

    def run_until_killed(self, script: str) -> str:
        target = self.nixery.system("killer-" + str(abs(hash(script))), script)
        process = agent_process.start(self.host, self.intent(target))
        self.assertEqual(process.communicate(timeout=60)[0], "")
        self.assertEqual(process.returncode, -signal.SIGKILL)
        return target

    def test_a_switch_that_kills_the_agent_goes_on_and_is_found_complete(self) -> None:
        target = self.run_until_killed(KILL_AGENT)
        self.assertEqual(self.resume(target), Completed(target, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {target}"])
        self.assertEqual(self.records("guard"), [], "the guard that the dead agent armed is disarmed")

    def test_a_switch_that_kills_the_agent_and_fails_is_found_failed_and_taken_back(self) -> None:
        target = self.run_until_killed(KILL_AGENT_AND_FAIL)
        outcome = self.resume(target)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.switch_fired), (13, True))
        self.assertIn("failed without the agent", outcome.stderr_tail)
        self.assertEqual(self.pipeline().rollback(self.back(target)), RolledBack(self.v1, 0))

    def test_killing_the_agents_whole_session_does_not_touch_the_switch(self) -> None:
        target = self.nixery.system("slow", SLOW)
        process = agent_process.start(self.host, self.intent(target))
        until(lambda: self.host.switches(), "the switch")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        self.assertEqual(self.resume(target), Completed(target, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {target}"])

    def test_an_agent_killed_in_the_middle_of_a_rollback_is_not_missed(self) -> None:
        prior = self.nixery.system("killing-prior", KILL_AGENT)
        self.host.boot(prior)
        self.pipeline().forward(self.intent(self.v2, prior), self.methods.append)
        intent = type(self.back(self.v2))(ROLLOUT, prior, self.v2, True, None)
        process = agent_process.start(self.host, intent)
        self.assertEqual(process.communicate(timeout=60)[0], "")
        self.assertEqual(self.pipeline().rollback(intent), RolledBack(prior, 0))
        self.assertEqual(self.host.switches(), [f"switch {self.v2}", f"switch {prior}"])

    def test_a_rollback_that_ends_while_the_next_agent_asks_nix_is_not_fired_again(self) -> None:
        prior = self.nixery.system("killing-prior-2", KILL_AGENT)
        self.host.boot(prior)
        self.pipeline().forward(self.intent(self.v2, prior), self.methods.append)
        intent = type(self.back(self.v2))(ROLLOUT, prior, self.v2, True, None)
        self.assertEqual(agent_process.start(self.host, intent).communicate(timeout=60)[0], "")
        real = realise.realise

        def slow(*arguments: Any) -> Any:
            until(lambda: self.records("rollback")[-1].exit_code == 0, "the end of the switch")
            return real(*arguments)

        with mock.patch.object(realise, "realise", slow):
            self.assertEqual(self.pipeline().rollback(intent), RolledBack(prior, 0))
        self.assertEqual(self.host.switches(), [f"switch {self.v2}", f"switch {prior}"])


if __name__ == "__main__":
    unittest.main()
