"""The dead-man guard: acts when nobody disarms it, needs nothing of ours, and never acts twice or too late."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import unittest
from dataclasses import replace

from nixfleet_agent.activation.host import read_boot_id
from nixfleet_agent.activation.model import (
    Completed,
    Deferred,
    Failed,
    Forward,
    Rollback,
    RollbackDeferred,
    RolledBack,
)
from nixfleet_agent.activation.records import Record, taken_back
from nixfleet_agent.demo.nixos_switch import Switch
from tests.activation.case import ROLLOUT, PipelineCase, processes_of, until
from tests.support.nix import FAIL, SLOW


class GuardTest(PipelineCase):
    def leave_armed(self, script: str = 'flip "$self"; exit 1\n') -> str:
        """A release after which the agent is gone, its guard armed; its closure."""
        self.host.configure(failed_units="fail")
        bad = self.nixery.system("guarded-" + str(abs(hash(script))), script)
        self.assertIsInstance(self.forward(bad), Failed)
        return bad

    def guard_record(self) -> Record:
        return self.records("guard")[0]

    def test_a_release_that_nobody_answers_for_is_taken_back_and_the_mark_is_recognised(self) -> None:
        bad = self.leave_armed()
        self.assertEqual(self.host.running(), bad)
        self.ring()
        until(lambda: self.guard_record().exit_code is not None, "the guard to act")
        outcome = self.resume(bad)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.phase, outcome.switch_fired), (-1, "guard", True))
        self.assertEqual(outcome.observed, self.v1)
        self.assertEqual(self.host.switches(), [f"switch {bad}", f"switch {self.v1}"])
        self.assertEqual((self.host.profile_closure(), self.host.boots()), (self.v1, self.v1))
        self.assertEqual(self.pipeline().rollback(self.back(bad)), RolledBack(self.v1, 0))

    def guarded_by(self, prior: str) -> None:
        """A release that nobody answers for, and the end of the guard that goes back to ``prior``."""
        self.host.boot(prior)
        self.host.configure(failed_units="fail")
        bad = self.nixery.system("bad-guarded", 'flip "$self"; exit 1\n')
        self.assertIsInstance(self.pipeline().forward(self.intent(bad, prior), self.methods.append), Failed)
        self.ring()
        until(lambda: self.guard_record().exit_code is not None, "the end of the guard")

    def test_the_priors_own_pre_switch_check_does_not_stop_it(self) -> None:
        prior = self.nixery.system("doubtful", switch=Switch(checks={"disk": "false"}))
        self.guarded_by(prior)
        self.assertEqual((self.host.running(), self.host.boots(), self.host.profile_closure()), (prior,) * 3)

    def test_a_bus_between_the_release_and_an_older_way_back_is_left_to_a_boot(self) -> None:
        """What soaked was booted into; the release that came after it was switched to live, and owes the same."""
        bus = [{"switch-inhibitors": json.dumps({"dbus-implementation": name})} for name in ("broker", "dbus")]
        prior, soaked = (self.nixery.system(f"bus-{number}", files=files) for number, files in enumerate(bus))
        bad = self.nixery.system("bus-bad", 'flip "$self"; exit 1\n', files=bus[1])
        self.host.boot(prior)
        self.host.boot(soaked)
        self.host.configure(failed_units="fail")
        self.assertIsInstance(self.pipeline().forward(self.intent(bad, prior), self.methods.append), Failed)
        self.ring()
        until(lambda: self.guard_record().exit_code is not None, "the end of the guard")
        self.assertEqual(self.host.switches(), [f"switch {bad}", f"boot {prior}"])
        self.assertEqual((self.host.running(), self.host.boots(), self.host.profile_closure()), (bad, prior, prior))
        outcome = self.pipeline().rollback(Rollback(ROLLOUT, prior, bad, True, bad))
        assert isinstance(outcome, RollbackDeferred)
        self.assertEqual(outcome.component, "dbus-implementation")
        again = self.pipeline().forward(Forward("stable@abc2", bad, prior, "halt"), self.methods.append)
        self.assertIsInstance(again, Failed, "the boot entry has made no half switch whole")

    def test_a_switch_of_its_own_that_fails_leaves_a_good_boot_entry(self) -> None:
        prior = self.nixery.system("stubborn", 'say "unit busy"; exit 6')
        self.guarded_by(prior)
        self.assertEqual((self.guard_record().exit_code, self.host.boots()), (6, prior))

    def test_a_switch_that_was_turned_away_once_is_tried_again_when_the_boot_entry_could_be_written(self) -> None:
        """A process that is being killed holds the lock a moment longer."""
        once = '"$SWITCH_LOG.once"'
        script = f'if [ "$action" = switch ] && [ ! -e {once} ]; then : >{once}; exit 1; fi\n'
        prior = self.nixery.system("turned-away", script + 'flip "$self"\n')
        self.guarded_by(prior)
        self.assertEqual((self.guard_record().exit_code, self.host.running(), self.host.boots()), (0, prior, prior))

    def test_the_guard_ends_a_switch_that_still_hangs(self) -> None:
        self.host.configure(settle_budget_secs=0.2)
        bad = self.leave_armed('flip "$self"; sleep 60\n')
        self.ring()
        until(lambda: self.host.running() == self.v1, "the guard to act")
        until(lambda: not processes_of(self.host.root), "the end of the hung switch and of the guard")
        self.assertIn("ending it", self.guard_record().output(4096))
        self.assertEqual(self.host.switches(), [f"switch {bad}", f"switch {self.v1}"])

    def test_the_guard_ends_a_script_that_outlives_its_killed_wrapper(self) -> None:
        self.host.configure(settle_budget_secs=0.2)
        bad = self.leave_armed('flip "$self"; sleep 61\n')
        started = self.records("forward")[0].started
        assert started is not None
        os.kill(started.pid, signal.SIGKILL)
        self.ring()
        until(lambda: self.guard_record().exit_code is not None, "the end of the guard")
        self.assertFalse([line for line in processes_of(self.host.root).values() if "sleep 61" in line])
        self.assertEqual(self.host.switches(), [f"switch {bad}", f"switch {self.v1}"])

    def test_the_guard_needs_no_file_of_the_package(self) -> None:
        self.leave_armed()
        lines = processes_of(self.host.root).values()
        self.assertTrue(lines)
        self.assertFalse([line for line in lines if "nixfleet_agent" in line or "python" in line], lines)
        self.pipeline().release(ROLLOUT)

    def test_a_running_guard_is_awaited_by_the_rollback(self) -> None:
        prior = self.nixery.system("slow-prior", SLOW)
        self.host.boot(prior)
        bad = self.nixery.system("bad", FAIL)
        self.pipeline().forward(self.intent(bad, prior), self.methods.append)
        self.ring()
        until(lambda: f"switch {prior}" in self.host.switches(), "the guard to act")
        intent = type(self.back(bad))(ROLLOUT, prior, bad, True, None)
        with self.assertLogs(self.log, "WARNING") as logs:
            self.assertEqual(self.pipeline().rollback(intent), RolledBack(prior, 0))
        self.assertIn("waiting for it", logs.output[0])
        self.assertEqual(self.host.switches(), [f"switch {bad}", *[f"switch {prior}"] * 2], "one after the other")

    def test_a_guard_that_acts_during_the_poll_ends_it(self) -> None:
        self.host.configure(poll_budget_secs=600.0)
        hung = self.nixery.system("hang", "sleep 60\n")
        result = self.in_thread(lambda: self.forward(hung))
        until(self.host.switches, "the switch")
        self.ring()
        outcome = result()
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.phase, outcome.switch_fired), ("guard", True))

    def test_a_guard_that_acts_just_before_it_is_disarmed_makes_the_success_a_failure(self) -> None:
        def act() -> None:
            self.ring()
            until(lambda: self.host.running() == self.v1, "the guard to act")

        self.after_phase["verify"] = act
        outcome = self.forward(self.v2)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.phase, outcome.observed), ("guard", self.v1))

    def test_what_an_operator_gave_up_is_not_taken_back_by_the_guard(self) -> None:
        bad = self.leave_armed()
        self.pipeline().disarm()
        self.assertEqual((self.records("guard"), self.host.running()), ([], bad))
        until(lambda: not processes_of(self.host.root), "the end of the guard's wait")

    # -- the release's own agent ----------------------------------------------------------------

    def hand_over(self, prior: str | None = None, target: str | None = None) -> str | None:
        """The target (v2) has been switched to, and its own agent is to go on; why that can't be guarded."""
        target = target or self.v2
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        return self.pipeline().guard_successor(self.intent(target, prior), "nixfleet-agent.service")

    def test_an_agent_that_is_not_ready_in_time_has_the_host_taken_back_and_is_started_anew(self) -> None:
        asked = self.host.root / "asked"
        systemctl = self.host.root / "bin/systemctl"
        systemctl.parent.mkdir()
        systemctl.write_text(f'#!/bin/sh\necho "$@" >>{asked}\n[ "$1" != show ] || echo ActiveState=failed\n')
        systemctl.chmod(0o755)
        self.host.environment["PATH"] = f"{systemctl.parent}:{os.environ['PATH']}"
        self.assertIsNone(self.hand_over())
        self.assertEqual(self.pipeline().awaits_successor(), ROLLOUT)
        self.assertEqual(taken_back(self.host.state_dir, self.guard_record().intent.boot), {})
        self.ring(300)
        until(lambda: self.guard_record().exit_code == 0, "the guard to act")
        self.assertEqual((self.host.running(), self.host.profile_closure(), self.host.boots()), (self.v1,) * 3)
        said = asked.read_text().splitlines()
        self.assertEqual(said[0].split()[0], "show")
        self.assertEqual(said[-1], "restart --no-block nixfleet-agent.service", "the agent of the system that is back")
        words = f"the guard has taken the host back to {self.v1}: nixfleet-agent.service was not ready in time"
        self.assertEqual(
            taken_back(self.host.state_dir, self.guard_record().intent.boot),
            {ROLLOUT: f"{words}: ActiveState=failed"},
        )
        self.assertFalse(self.pipeline().successor_ready(ROLLOUT), "it came too late")
        self.assertIn("guard: the guard takes", str(self.pipeline().guard_successor(self.intent(self.v2), "x")))

    def test_the_time_of_the_new_agent_begins_anew_and_ends_when_it_is_ready(self) -> None:
        self.assertIsNone(self.hand_over())
        first = self.guard_record().waiting
        self.assertIsNone(self.pipeline().guard_successor(self.intent(self.v2), "nixfleet-agent.service"))
        (second,) = self.records("guard")
        self.assertNotEqual(first, second.waiting)
        self.assertTrue(self.pipeline().successor_ready(ROLLOUT))
        self.assertIsNone(self.pipeline().awaits_successor())
        until(lambda: not processes_of(self.host.root), "the end of the guard's wait")
        self.assertEqual(self.host.running(), self.v2)

    def test_a_shutdown_in_the_middle_does_not_leave_the_new_agent_without_a_guard(self) -> None:
        self.assertIsNone(self.hand_over())
        self.interrupt("shutdown")
        self.assertIsNone(self.pipeline().guard_successor(self.intent(self.v2), "nixfleet-agent.service"))
        self.assertEqual(self.pipeline().awaits_successor(), ROLLOUT)
        self.reason = None
        self.pipeline().release(ROLLOUT)

    def test_a_guard_that_acts_is_not_awaited_by_an_agent_that_is_to_leave(self) -> None:
        prior = self.nixery.system("slow-prior", 'sleep 3; flip "$self"\n')
        self.host.boot(prior)
        self.assertIsNone(self.hand_over(prior))
        self.ring(300)
        until(lambda: self.guard_record().started, "the guard to act")
        self.interrupt("shutdown")
        other = replace(self.intent(self.v2), rollout_id="stable@other")
        why = self.pipeline().guard_successor(other, "nixfleet-agent.service")
        self.assertIsNone(self.guard_record().exit_code, "it still acts")
        self.assertEqual(why, f"guard: the guard takes the host back to {prior}")
        until(lambda: self.guard_record().exit_code == 0, "the end of the guard")
        self.reason = None

    def rebooted(self) -> None:
        """The machine went down while the new agent was waited for, and came up with what the host runs."""
        self.kill_waiting()
        until(lambda: not processes_of(self.host.root), "the end of the guard's wait")
        intent = self.guard_record().path / "intent.json"
        intent.write_text(intent.read_text().replace(self.guard_record().intent.boot, "0-another-boot"))
        self.assertIsNone(self.pipeline().awaits_successor())

    def rearm(self) -> str:
        """What the unit does that a boot starts before the agent; what it says. systemd-run only waits, and runs."""
        self.program(
            "systemd-run",
            'while [ "$1" != -- ]; do case $1 in --on-active=*) after=${1#*=};; esac; shift; done; shift\n'
            'setsid sh -c \'sleep "$0"; exec "$@"\' "${after%s}" "$@" </dev/null >/dev/null 2>&1 &',
        )
        script = self.host.state_dir / "switch/rearm.sh"
        return subprocess.run(
            ["/bin/sh", str(script), str(self.host.current_system)],
            env=self.host.environment,
            stdout=subprocess.PIPE,
            timeout=60,
            text=True,
            check=True,
        ).stdout

    def test_after_a_boot_the_new_agent_has_its_time_again(self) -> None:
        self.assertIsNone(self.hand_over())
        self.rebooted()
        self.assertIn("within 300 s", self.rearm())
        self.assertEqual(self.pipeline().awaits_successor(), ROLLOUT)
        self.ring(300)
        until(lambda: self.guard_record().exit_code == 0, "the guard to act")
        self.assertEqual((self.host.running(), self.host.profile_closure(), self.host.boots()), (self.v1,) * 3)
        self.assertIn(ROLLOUT, taken_back(self.host.state_dir, read_boot_id()))

    def test_which_ends_when_it_is_ready(self) -> None:
        self.assertIsNone(self.hand_over())
        self.rebooted()
        self.rearm()
        self.assertTrue(self.pipeline().successor_ready(ROLLOUT))
        self.ring(300)
        until(lambda: not processes_of(self.host.root), "the guard to wake and leave")
        self.assertEqual(self.host.running(), self.v2)

    def test_nothing_is_armed_after_a_boot_for_what_was_disarmed_or_does_not_run_or_waits_already(self) -> None:
        self.assertIsNone(self.hand_over())
        self.assertEqual(self.rearm(), "", "in the same boot it waits by itself")
        self.rebooted()
        self.host.boot(self.v1)
        self.assertEqual(self.rearm(), "", "the boot has brought another system")
        self.host.boot(self.v2)
        self.assertTrue(self.guard_record().withdraw())
        self.assertEqual(self.rearm(), "", "it was disarmed")
        self.assertIsNone(self.pipeline().awaits_successor())

    def test_the_guard_of_a_switch_does_not_wait_for_an_agent(self) -> None:
        self.leave_armed()
        self.assertIsNone(self.pipeline().awaits_successor())
        self.pipeline().release(ROLLOUT)

    def test_where_nothing_is_taken_back_the_new_agent_is_not_guarded_either(self) -> None:
        self.assertIsNone(self.hand_over(prior=self.v2))
        self.assertEqual(self.records("guard"), [])

    def test_zero_turns_it_off(self) -> None:
        self.host.configure(guard_secs=0.0)
        self.leave_armed()
        self.assertEqual(self.records("guard"), [])

    def test_a_newer_rollout_disarms_the_guard_of_an_older_one_before_its_own_switch(self) -> None:
        bad = self.leave_armed()
        self.host.configure(failed_units="report")
        newer = Forward("stable@abc2", self.v2, bad, "halt")
        self.assertEqual(self.pipeline().forward(newer, self.methods.append), Completed(self.v2, 0, ()))
        self.assertEqual(self.records("guard"), [])

    def newer(self, target: str, *, rollout_id: str = "stable@abc2") -> Forward:
        return Forward(rollout_id, target, self.v1, "rollback-and-halt")

    def test_a_newer_release_leaves_the_new_agents_guard_until_its_own_switch(self) -> None:
        self.assertIsNone(self.hand_over())
        newer = self.newer(self.nixery.system("v3"))
        stood: list[str | None] = []
        self.consent = lambda intent: stood.append(self.pipeline().awaits_successor())
        self.after_phase["fire"] = lambda: stood.append(self.pipeline().awaits_successor())
        self.assertEqual(self.pipeline().forward(newer, self.methods.append), Completed(newer.target, 0, ()))
        self.assertEqual((stood, self.records("guard")), ([ROLLOUT, None], []))

    def test_it_also_stands_when_the_newer_one_fails_before_its_switch_and_takes_that_back(self) -> None:
        self.assertIsNone(self.hand_over())
        newer = self.newer(self.nixery.system("no-script", switchable=False))
        outcome = self.pipeline().forward(newer, self.methods.append)
        assert isinstance(outcome, Failed)
        self.assertFalse(outcome.switch_fired)
        back = Rollback(newer.rollout_id, self.v1, newer.target, False, self.v2)
        self.assertEqual(self.pipeline().rollback(back), RolledBack(self.v2, 0))
        self.assertEqual(self.pipeline().awaits_successor(), ROLLOUT)
        self.pipeline().release(ROLLOUT)

    def test_and_when_the_newer_one_is_superseded_itself(self) -> None:
        self.assertIsNone(self.hand_over())
        self.interrupt("superseded")
        self.pipeline().forward(self.newer(self.nixery.system("v3")), self.methods.append)
        self.assertEqual(self.pipeline().awaits_successor(), ROLLOUT)
        self.reason = None
        self.pipeline().release(ROLLOUT)

    def test_and_when_the_newer_one_waits_for_a_reboot(self) -> None:
        kernels = [self.nixery.system(f"kernel-{n}", files={"switch-inhibitors": f'{{"kernel": "{n}"}}'}) for n in "12"]
        self.assertIsNone(self.hand_over(target=kernels[0]))
        self.assertIsInstance(self.pipeline().forward(self.newer(kernels[1]), self.methods.append), Deferred)
        self.assertEqual(self.pipeline().awaits_successor(), ROLLOUT)
        self.pipeline().release(ROLLOUT)

    def test_a_guard_of_an_earlier_boot_neither_acts_nor_counts_as_a_mark(self) -> None:
        bad = self.leave_armed()
        self.kill_waiting()
        intent = self.guard_record().path / "intent.json"
        intent.write_text(intent.read_text().replace(self.guard_record().intent.boot, "0-another-boot"))
        outcome = self.resume(bad)
        assert isinstance(outcome, Failed)
        self.assertEqual(outcome.phase, "switch", "judged by the switch's own record")
        self.pipeline().release(ROLLOUT)
        self.assertEqual(self.pipeline().rollback(self.back(bad)), RolledBack(self.v1, 0))

    def test_a_guard_whose_disarming_came_first_never_acts(self) -> None:
        self.leave_armed()
        record = self.guard_record()
        self.assertTrue(record.withdraw())
        self.ring()
        until(lambda: not processes_of(self.host.root), "the guard to wake and leave")
        self.assertFalse(record.withdraw() and record.started, "withdrawn for good")
        self.assertEqual(len(self.host.switches()), 1)
        self.pipeline().release(ROLLOUT)

    def test_a_guard_whose_record_is_gone_never_acts(self) -> None:
        self.leave_armed()
        shutil.rmtree(self.guard_record().path)
        self.ring()
        until(lambda: not processes_of(self.host.root), "the guard to wake and leave")
        self.assertEqual(len(self.host.switches()), 1)

    def kill_waiting(self) -> None:
        waiting = self.guard_record().waiting
        assert waiting is not None
        os.killpg(waiting.group, signal.SIGKILL)


if __name__ == "__main__":
    unittest.main()
