"""Run inside a container whose PID 1 is systemd: the pipeline with its systemd backend, real units, a real timer."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import threading
import time
import unittest

from nixfleet_agent.activation.backends import choose
from nixfleet_agent.activation.backends.systemd import SystemdBackend
from nixfleet_agent.activation.model import Completed, Deferred, Failed, Interrupted, RolledBack
from tests.activation import agent_process
from tests.activation.case import PipelineCase, until
from tests.support.nix import FAIL, HANG, HANG_AFTER_FLIP, KILL_AGENT, KILL_AGENT_AND_FAIL, SLOW

GUARD_TIMER = "nixfleet-guard.timer"


def systemctl(*arguments: str) -> str:
    """What systemctl says on standard output, whatever its exit code."""
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip()


def show(unit: str, name: str) -> str:
    return systemctl("show", "--value", f"--property={name}", unit)


def loaded() -> list[str]:
    """The agent's transient units that systemd still knows."""
    lines = systemctl("list-units", "--all", "--plain", "--no-legend", "nixfleet-*").splitlines()
    return [line.split()[0] for line in lines]


class SystemdPipelineCase(PipelineCase):
    def setUp(self) -> None:
        super().setUp()
        self.host.configure(backend="systemd")
        self.addCleanup(self._forget_units)

    def _forget_units(self) -> None:
        for unit in loaded():
            systemctl("stop", unit)
            systemctl("reset-failed", unit)


class ForwardTest(SystemdPipelineCase):
    def test_auto_is_systemd_where_it_is_the_running_init(self) -> None:
        self.host.configure(backend="auto")
        self.assertIsInstance(choose(self.pipeline()._context), SystemdBackend)

    def test_a_release_runs_in_a_unit_of_its_own_and_leaves_no_unit(self) -> None:
        script = (
            'cat /proc/self/cgroup; systemctl is-active nixfleet-guard.timer nixfleet-switch.service; flip "$self"\n'
        )
        target = self.nixery.system("unit", script)
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertEqual((self.methods, self.host.profile_closure()), (["systemd-run"], target))
        said = self.records("forward")[0].output(4096).splitlines()
        self.assertIn("0::/system.slice/nixfleet-switch.service", said)
        self.assertEqual(said[-2:], ["active", "active"], "the guard's timer and the switch")
        until(lambda: not loaded(), "the end of the units")
        self.assertEqual(self.records("guard"), [])

    def test_it_gets_the_agents_environment_as_it_is_and_nothing_of_the_agents_unit(self) -> None:
        odd = {
            "SECRET": "s3cret value",
            "ODD_PERCENT": "100% %n %% %i",
            "ODD_QUOTES": "a 'b' \"c\" \\d $HOME ${HOME} `e`",
            "ODD_LINES": "one\ntwo\tthree\n",
            "ODD_EMPTY": "",
            "ODD_WORDS": "grün = 1",
        }
        self.host.environment |= odd | {
            "NOTIFY_SOCKET": "/run/systemd/notify",
            "WATCHDOG_USEC": "1000000",
            "INVOCATION_ID": "the agent's own",
            "STATE_DIRECTORY": "/var/lib/agent",
        }
        target = self.nixery.system("env", f'env -0 >"{self.host.root}/seen"; flip "$self"\n')
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        entries = (self.host.root / "seen").read_text().split("\0")
        seen = dict(entry.partition("=")[::2] for entry in entries if entry)
        self.assertEqual({name: seen.get(name) for name in odd}, odd)
        self.assertEqual(seen["NIX_REMOTE"], f"local?root={self.host.store_root}")
        self.assertEqual([n for n in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "STATE_DIRECTORY") if n in seen], [])
        self.assertRegex(seen["INVOCATION_ID"], re.compile(r"\A[0-9a-f]{32}\Z"))

    def test_a_variable_that_systemd_does_not_take_is_no_obstacle(self) -> None:
        self.host.environment |= {
            "BASH_FUNC_which%%": "() {  echo\n}",
            "with-dash": "x",
            "1ST": "x",
            "NOT_UTF8": os.fsdecode(b"\xff\xfe"),
            "BELL": "\a",
            "GOOD": "yes",
        }
        target = self.nixery.system("env-odd", f'echo "$GOOD" >"{self.host.root}/seen"; flip "$self"\n')
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertEqual((self.host.root / "seen").read_text(), "yes\n")

    def test_a_failing_switch_is_told_with_its_exit_code_within_one_poll(self) -> None:
        self.host.configure(poll_interval_secs=0.5)
        ended = self.host.root / "ended"
        bad = self.nixery.system("bad-timed", f'echo "no such unit" >&2; date +%s.%N >"{ended}"; exit 11\n')
        outcome = self.forward(bad)
        late = time.time() - float(ended.read_text())
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.switch_fired, outcome.observed), (11, True, self.v1))
        self.assertIn("no such unit", outcome.stderr_tail)
        self.assertLess(late, 0.5 + 1.0, "one poll, and what a loaded machine needs")
        until(lambda: show("nixfleet-switch.service", "ActiveState") == "failed", "the unit's end")
        self.assertEqual(show("nixfleet-switch.service", "ExecMainStatus"), "11", "to be seen by an operator")

    def test_a_failed_unit_is_reset_before_its_name_is_used_again(self) -> None:
        bad = self.nixery.system("bad", FAIL)
        self.assertIsInstance(self.forward(bad), Failed)
        self.assertEqual(self.pipeline().rollback(self.back(bad)), RolledBack(self.v1, 0))
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {bad}", f"switch {self.v1}", f"switch {self.v2}"])

    def test_a_failed_rollback_is_tried_again_as_the_same_unit(self) -> None:
        bad = self.nixery.system("bad", FAIL)
        stubborn = self.nixery.system(
            "stubborn",
            'if [ ! -e "$SWITCH_LOG.once" ]; then : >"$SWITCH_LOG.once"; exit 7; fi\n'
            'cat /proc/self/cgroup; flip "$self"\n',
        )
        self.host.nix("nix-store", "--realise", f"/nix/store/{stubborn}")
        self.host.run_system(self.v2)
        self.assertIsInstance(self.pipeline().forward(self.intent(bad, stubborn), self.methods.append), Failed)
        order = dataclasses.replace(self.back(bad), target=stubborn)
        outcome = self.pipeline().rollback(order)
        self.assertEqual(getattr(outcome, "exit_code", None), 7, outcome)
        self.assertEqual(self.pipeline().rollback(order), RolledBack(stubborn, 0))
        self.assertIn("/nixfleet-rollback.service", self.records("rollback")[-1].output(4096))

    def test_a_switch_that_makes_systemd_load_and_execute_itself_anew_goes_on(self) -> None:
        script = (
            "systemctl daemon-reload && systemctl daemon-reexec; sleep 0.3; "
            'systemctl is-active nixfleet-guard.timer nixfleet-switch.service; flip "$self"\n'
        )
        target = self.nixery.system("reexec", script)
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertEqual(self.records("forward")[0].output(4096).split(), ["active", "active"])
        self.assertEqual(systemctl("is-active", GUARD_TIMER), "inactive")

    def test_another_kernel_is_left_to_a_boot_and_arms_no_guard(self) -> None:
        kernels = [self.nixery.path(f"kernel-{n}", {"image": n}) for n in ("one", "two")]
        old, new = (
            self.nixery.system(
                f"with-{kernel[33:]}", links={"kernel": f"/nix/store/{kernel}/image"}, references=(kernel,)
            )
            for kernel in kernels
        )
        self.host.boot(old)
        outcome = self.pipeline().forward(self.intent(new, old), self.methods.append)
        assert isinstance(outcome, Deferred)
        self.assertEqual((outcome.component, self.host.switches()), ("kernel", [f"boot {new}"]))
        self.assertEqual((self.host.bootloader.read_text(), self.records("guard")), (f"{new}\n", []))


class EndsTest(SystemdPipelineCase):
    def test_a_hung_unit_is_stopped_before_the_rollback_fires(self) -> None:
        self.host.configure(poll_budget_secs=0.5)
        bad = self.nixery.system("hang", HANG)
        self.assertIsInstance(self.forward(bad), Failed)
        self.assertEqual(systemctl("is-active", "nixfleet-switch.service"), "active")
        self.host.configure(poll_budget_secs=10.0)
        self.assertEqual(self.pipeline().rollback(self.back(bad)), RolledBack(self.v1, 0))
        self.assertNotEqual(systemctl("is-active", "nixfleet-switch.service"), "active")

    def test_a_unit_of_ours_without_a_record_is_stopped_first(self) -> None:
        self.host.configure(poll_budget_secs=0.4)
        self.forward(self.nixery.system("hang", HANG), policy="halt")
        for record in self.records("forward"):
            (record.path / "intent.json").unlink()
        self.host.configure(poll_budget_secs=10.0)
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))
        self.assertEqual(self.host.running(), self.v2)

    def test_a_unit_that_an_operator_kills_is_a_failure_at_once(self) -> None:
        bad = self.nixery.system("hang", HANG)
        result = self.in_thread(lambda: self.forward(bad))
        until(lambda: self.host.switches(), "the switch")
        systemctl("kill", "--signal=SIGKILL", "nixfleet-switch.service")
        outcome = result()
        assert isinstance(outcome, Failed)
        self.assertTrue(outcome.switch_fired)
        self.assertEqual(self.pipeline().rollback(self.back(bad)), RolledBack(self.v1, 0))

    def test_a_script_that_outlives_its_killed_wrapper_is_gone_before_the_rollback(self) -> None:
        late = 'trap "" TERM; i=0; while [ $i -lt 30 ]; do i=$((i + 1)); sleep 0.1; done; flip "$self"\n'
        bad = self.nixery.system("late", late)
        result = self.in_thread(lambda: self.forward(bad))
        until(lambda: self.host.switches(), "the switch")
        systemctl("kill", "--kill-who=main", "--signal=SIGKILL", "nixfleet-switch.service")
        self.assertIsInstance(result(), Failed)
        self.assertEqual(self.pipeline().rollback(self.back(bad)), RolledBack(self.v1, 0))
        self.assertNotIn(systemctl("is-active", "nixfleet-switch.service"), {"active", "deactivating"})
        self.assertEqual(self.host.running(), self.v1)

    def test_a_shutdown_leaves_the_unit_running_and_it_is_found_again(self) -> None:
        target = self.nixery.system("slow", SLOW)
        result = self.in_thread(lambda: self.forward(target))
        until(lambda: self.host.switches(), "the switch")
        self.interrupt("shutdown")
        self.assertEqual(result(), Interrupted("shutdown"))
        self.reason = None
        self.wake = threading.Event()
        self.assertEqual(self.resume(target), Completed(target, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {target}"])

    def test_an_agent_killed_by_its_own_switch_finds_it_completed(self) -> None:
        target = self.nixery.system("killer", KILL_AGENT)
        process = agent_process.start(self.host, self.intent(target))
        said, _ = process.communicate(timeout=30)
        self.assertEqual(process.returncode, -signal.SIGKILL, said)
        self.assertEqual(self.resume(target), Completed(target, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {target}"])
        self.assertEqual(systemctl("is-active", GUARD_TIMER), "inactive")

    def test_an_agent_killed_by_a_switch_that_fails_learns_its_exit_code(self) -> None:
        target = self.nixery.system("killer-fails", KILL_AGENT_AND_FAIL)
        process = agent_process.start(self.host, self.intent(target))
        process.communicate(timeout=30)
        outcome = self.resume(target)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, self.host.switches()), (13, [f"switch {target}"]))


class GuardTest(SystemdPipelineCase):
    """The timer rings by itself, a second or two after it was armed."""

    def acts(self, rollout_id: str) -> None:
        """A release hangs after its flip, and its guard takes the host back."""
        intent = dataclasses.replace(self.intent(self.bad), rollout_id=rollout_id)
        self.assertIsInstance(self.pipeline().forward(intent, self.methods.append), Failed)
        until(lambda: self.host.running() == self.v1, "the guard to act")
        until(lambda: self.records("guard")[-1].exit_code == 0, "the end of the guard")
        self.assertNotEqual(systemctl("is-active", "nixfleet-switch.service"), "active")
        outcome = self.pipeline().resume(intent, self.methods.append, True)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.phase, outcome.observed), ("guard", self.v1))

    def test_it_rings_ends_the_releases_unit_and_takes_the_host_back_time_and_again(self) -> None:
        self.host.configure(settle_budget_secs=0.1, guard_secs=1.0)
        self.bad = self.nixery.system("hang-after", HANG_AFTER_FLIP)
        for rollout_id in ("stable@a1", "stable@a2"):
            self.acts(rollout_id)
        self.host.configure(settle_budget_secs=10.0, guard_secs=600.0)
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))
        self.assertEqual(self.host.switches()[-1], f"switch {self.v2}")

    def test_it_still_rings_when_systemd_has_executed_itself_anew(self) -> None:
        self.host.configure(settle_budget_secs=0.1, guard_secs=3.0)
        bad = self.nixery.system("reexec-hang", "systemctl daemon-reload; systemctl daemon-reexec\n" + HANG_AFTER_FLIP)
        self.assertIsInstance(self.forward(bad), Failed)
        until(lambda: self.host.running() == self.v1, "the guard to act")
        until(lambda: self.records("guard")[-1].exit_code == 0, "the end of the guard")

    def test_a_disarmed_one_never_rings(self) -> None:
        self.host.configure(guard_secs=1.5)
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))
        self.assertEqual(systemctl("is-active", GUARD_TIMER), "inactive")
        quiet_until = time.monotonic() + 2.0
        until(lambda: time.monotonic() > quiet_until, "its time to pass")
        self.assertEqual((self.host.running(), self.host.switches()), (self.v2, [f"switch {self.v2}"]))


if __name__ == "__main__":
    unittest.main()
