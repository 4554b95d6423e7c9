"""The verify poll: hangs, floods, forks, flapping links, interruption after the switch was fired."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import unittest
from collections.abc import Callable

from nixfleet_agent.activation.model import Completed, Failed, Forward, Interrupted, Rollback, RolledBack
from nixfleet_agent.activation.records import Identity
from tests.activation.case import ROLLOUT, PipelineCase, processes_of, until
from tests.support.nix import FLOOD, FORK, FORK_AND_FAIL, HANG, HANG_AFTER_FLIP, SLOW


class VerifyTest(PipelineCase):
    def end_switches(self) -> None:
        """End what a test has left on purpose: the hung script and the guard that waits."""
        self.pipeline().release(ROLLOUT)
        for record in self.records("forward"):
            started = record.started
            if started is not None and record.exit_code is None:
                os.killpg(started.group, signal.SIGKILL)

    def test_a_switch_that_hangs_before_the_flip_fails_after_the_poll_budget(self) -> None:
        self.addCleanup(self.end_switches)
        self.host.configure(poll_budget_secs=0.4)
        outcome = self.forward(self.nixery.system("hang", HANG))
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.phase, outcome.switch_fired), (-1, "switch-poll-timeout", True))
        self.assertIn("hanging before the flip", outcome.stderr_tail)

    def test_a_switch_that_hangs_after_the_flip_fails_after_the_settle_budget(self) -> None:
        self.addCleanup(self.end_switches)
        self.host.configure(settle_budget_secs=0.5)
        target = self.nixery.system("hang-after", HANG_AFTER_FLIP)
        outcome = self.forward(target)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.phase, outcome.observed), ("switch-settle-timeout", target))

    def test_the_flip_alone_is_no_success_while_the_switch_runs(self) -> None:
        target = self.nixery.system("slow", SLOW)
        result = self.in_thread(lambda: self.forward(target))
        until(lambda: self.host.running() == target, "the flip")
        self.assertIsNone(self.records("forward")[0].exit_code, "the switch has not ended")
        self.assertIsNotNone(self.pipeline()._switches.running())
        self.assertEqual(result(), Completed(target, 0, ()))
        self.assertEqual(self.records("forward")[0].exit_code, 0, "it has when the success is told")

    def test_a_switch_that_flips_back_and_forth_is_judged_by_where_it_ends(self) -> None:
        back = f'flip "$self"; sleep 0.2; flip {self.v1}; sleep 0.2'
        target = self.nixery.system("twice", f'{back}; flip "$self"\n')
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        outcome = self.forward(self.nixery.system("there-and-back", f"{back}; exit 5\n"), policy="halt")
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.phase, outcome.observed), (5, "switch", self.v1))

    def test_an_unreadable_link_for_a_moment_is_waited_out(self) -> None:
        script = 'rm "$SWITCH_CURRENT_SYSTEM"; sleep 0.3; flip "$self"\n'
        target = self.nixery.system("blinking", script)
        self.assertEqual(self.forward(target), Completed(target, 0, ()))

    def test_a_flood_of_output_is_bounded_on_disk_and_keeps_its_last_words(self) -> None:
        outcome = self.forward(self.nixery.system("flood", FLOOD))
        assert isinstance(outcome, Failed)
        self.assertEqual(outcome.exit_code, 12)
        self.assertTrue(outcome.stderr_tail.endswith("\nthe last word\n"), outcome.stderr_tail[-100:])
        self.assertLessEqual(len(outcome.stderr_tail.encode()), 4096)
        self.assertGreater(len(outcome.stderr_tail.encode()), 4000)
        written = sum(path.stat().st_size for path in self.records("forward")[0].path.iterdir())
        self.assertLess(written, 8 << 20)
        self.end_switches()

    def test_output_in_tiny_writes_still_keeps_four_kib(self) -> None:
        script = 'i=0; while [ $i -lt 6000 ]; do echo "$i"; i=$((i+1)); done; exit 3\n'
        outcome = self.forward(self.nixery.system("chatty", script))
        assert isinstance(outcome, Failed)
        numbers = outcome.stderr_tail.split()[2:]
        self.assertEqual(numbers[-1], "5999")
        self.assertEqual(numbers, [str(n) for n in range(6000 - len(numbers), 6000)])
        self.assertGreater(len(outcome.stderr_tail), 4000)
        self.end_switches()

    def test_what_a_switch_leaves_running_does_not_delay_its_success(self) -> None:
        self.addCleanup(lambda: os.kill(int(self.host.switch_log.with_name("switch.log.daemon").read_text()), 9))
        target = self.nixery.system("forking", FORK)
        self.assertEqual(self.forward(target), Completed(target, 0, ()))

    def test_what_a_failed_switch_leaves_running_does_not_hide_its_words(self) -> None:
        self.addCleanup(self.end_switches)
        self.addCleanup(lambda: os.kill(int(self.host.switch_log.with_name("switch.log.daemon").read_text()), 9))
        outcome = self.forward(self.nixery.system("forking-bad", FORK_AND_FAIL))
        assert isinstance(outcome, Failed)
        self.assertEqual(outcome.exit_code, 9)
        self.assertIn("forked and failing", outcome.stderr_tail)

    def test_words_that_come_just_after_the_end_are_still_told(self) -> None:
        self.addCleanup(self.end_switches)
        outcome = self.forward(self.nixery.system("late", '(sleep 0.3; echo "the reason" >&2) & exit 9\n'))
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.stderr_tail), (9, "switch: the reason\n"))

    def test_a_shutdown_leaves_the_switch_running_and_the_guard_armed(self) -> None:
        target = self.nixery.system("slow", SLOW)
        result = self.in_thread(lambda: self.forward(target))
        until(lambda: self.host.switches(), "the switch")
        self.interrupt("shutdown")
        self.assertEqual(result(), Interrupted("shutdown"))
        self.assertIsNone(self.records("forward")[0].exit_code)
        self.assertEqual(len(self.records("guard")), 1)
        self.reason = None
        self.wake.clear()
        self.assertEqual(self.resume(target), Completed(target, 0, ()))
        self.assertEqual((self.host.switches(), self.methods), ([f"switch {target}"], ["setsid"]))

    def test_a_fired_switch_is_awaited_when_a_newer_rollout_comes(self) -> None:
        target = self.nixery.system("slow", SLOW)
        result = self.in_thread(lambda: self.forward(target))
        until(lambda: self.host.switches(), "the switch")
        self.interrupt("superseded")
        self.assertEqual(result(), Completed(target, 0, ()))
        self.assertEqual(self.records("forward")[0].exit_code, 0)
        self.assertLess(self.asked, 1000, "a wait that is cut short by the newer intent must not make the poll spin")

    def test_the_guard_of_a_superseded_rollout_is_disarmed_when_its_switch_fails(self) -> None:
        target = self.nixery.system("slow-bad", "sleep 0.4; exit 5\n")
        result = self.in_thread(lambda: self.forward(target))
        until(lambda: self.host.switches(), "the switch")
        self.interrupt("superseded")
        self.assertIsInstance(result(), Failed)
        self.assertEqual(self.records("guard"), [])

    def test_a_wrapper_that_is_killed_alone_is_fired_again_once_its_script_is_gone(self) -> None:
        """The script went on and flipped, but nothing can tell how it ended."""
        target = self.nixery.system("slow", SLOW)
        result = self.in_thread(lambda: self.forward(target))
        until(lambda: self.host.switches(), "the switch")
        started = self.records("forward")[0].started
        assert started is not None
        os.kill(started.pid, signal.SIGKILL)
        self.assertEqual(result(), Completed(target, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {target}"] * 2)

    def test_a_switch_whose_group_is_killed_fails_at_once(self) -> None:
        self.addCleanup(self.end_switches)
        self.host.configure(poll_budget_secs=600.0)
        result = self.in_thread(lambda: self.forward(self.nixery.system("hang", HANG)))
        until(lambda: any("hanging" in r.output(4096) for r in self.records("forward")), "the script's words")
        started = self.records("forward")[0].started
        assert started is not None
        os.killpg(started.group, signal.SIGKILL)
        outcome = result()
        self.assertEqual((outcome.exit_code, outcome.phase), (-1, "switch"))
        self.assertIn("hanging before the flip\nit was killed, or lost with the machine", outcome.stderr_tail)

    def test_the_switch_is_no_child_of_ours_and_in_a_session_of_its_own(self) -> None:
        result = self.in_thread(lambda: self.forward(self.nixery.system("slow", SLOW)))
        until(lambda: self.host.switches(), "the switch")
        started = self.records("forward")[0].started
        assert started is not None
        self.assertNotEqual(os.getsid(started.pid), os.getsid(0))
        self.assertNotEqual(started.group, os.getpgid(0))
        self.assertIn(started.pid, processes_of(self.host.root))
        with self.assertRaises(ChildProcessError):
            os.waitpid(started.pid, os.WNOHANG)
        result()

    def test_a_hung_switch_to_another_target_is_ended_before_the_next_one_fires(self) -> None:
        self.host.configure(poll_budget_secs=0.4)
        self.assertIsInstance(self.forward(self.nixery.system("hang", HANG), policy="halt"), Failed)
        self.host.configure(poll_budget_secs=10.0)
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))

    def test_a_hung_switch_to_the_same_target_is_adopted_not_fired_twice(self) -> None:
        target = self.nixery.system("slower", 'sleep 1; flip "$self"\n')
        self.host.configure(poll_budget_secs=0.1)
        self.assertIsInstance(self.forward(target, policy="halt"), Failed)
        self.host.configure(poll_budget_secs=10.0)
        self.assertEqual(self.forward(target, policy="halt"), Completed(target, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {target}"])

    def test_a_switch_that_another_rollout_adopted_is_that_rollouts_to_take_back(self) -> None:
        self.host.configure(poll_budget_secs=0.2)
        target = self.nixery.system("hang", HANG)
        self.assertIsInstance(self.forward(target), Failed)
        newer = Forward("stable@def2", target, self.v1, "rollback-and-halt")
        outcome = self.pipeline().forward(newer, self.methods.append)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.phase, outcome.switch_fired), ("switch-poll-timeout", True))
        self.assertTrue(self.pipeline().forward_fired("stable@def2"), "known after a restart too")
        self.host.configure(poll_budget_secs=10.0)
        back = Rollback("stable@def2", self.v1, target, False, None)
        self.assertEqual(self.pipeline().rollback(back), RolledBack(self.v1, 0))
        self.assertEqual(self.host.switches(), [f"switch {target}", f"switch {self.v1}"])


class ReusedNumberTest(PipelineCase):
    """The kernel gives a number again: a lost switch must not be taken for whoever has its number now."""

    def hang(self, victim: Callable[[Identity], None], **numbers: int) -> str:
        """A hung switch of which ``victim`` kills something, and whose record then names ``numbers``; its target."""
        self.host.configure(poll_budget_secs=0.2)
        target = self.nixery.system("hang", HANG)
        self.forward(target, policy="halt")
        self.host.configure(poll_budget_secs=10.0)
        record = self.records("forward")[0]
        assert record.started is not None
        victim(record.started)
        place = record.path / "started"
        line = place.read_text()
        for name, number in numbers.items():
            line = re.sub(f"{name}=\\d+", f"{name}={number}", line)
        place.write_text(line)
        return target

    def test_a_group_of_strangers_is_neither_awaited_nor_ended(self) -> None:
        stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
        self.addCleanup(stranger.wait)
        self.addCleanup(stranger.kill)
        self.hang(lambda started: os.killpg(started.group, signal.SIGKILL), group=stranger.pid)
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))
        self.assertIsNone(stranger.poll(), "somebody else's process was ended")

    def test_a_script_goes_on_when_a_stranger_has_the_number_of_its_killed_wrapper(self) -> None:
        self.hang(lambda started: os.kill(started.pid, signal.SIGKILL), pid=os.getpid())
        self.assertEqual(self.forward(self.v2, policy="halt"), Completed(self.v2, 0, ()))
        until(lambda: not processes_of(self.host.root), "the end of the hung script")


if __name__ == "__main__":
    unittest.main()
