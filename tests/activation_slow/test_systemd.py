"""The systemd backend against stand-ins for systemd-run and systemctl that really run units and log each call."""

from __future__ import annotations

import os
import re
import signal
import unittest
from pathlib import Path

from nixfleet_agent.activation.backends import choose
from nixfleet_agent.activation.backends.setsid import SetsidBackend
from nixfleet_agent.activation.model import Completed, Failed, Interrupted, RollbackFailed, RolledBack
from nixfleet_agent.threads.clock import SystemClock
from tests.activation.case import ROLLOUT, PipelineCase, until
from tests.support.nix import FAIL, HANG, SLOW

FAKES = Path(__file__).resolve().parent.parent / "support" / "fake_systemd"


class SystemdTest(PipelineCase):
    def setUp(self) -> None:
        super().setUp()
        self.units = self.host.root / "units"
        self.units.mkdir()
        self.host.environment |= {
            "PATH": f"{FAKES}:{os.environ['PATH']}",
            "FAKE_SYSTEMD": str(self.units),
            "NOTIFY_SOCKET": "/run/systemd/notify",
            "INVOCATION_ID": "the agent's own",
            "SECRET": "s3cret value",
        }
        self.host.configure(backend="systemd")

    def calls(self, beginning: str) -> list[str]:
        lines = (self.units / "calls").read_text().splitlines()
        return [line for line in lines if line.startswith(beginning)]

    def test_a_release_runs_as_a_unit_that_gets_the_agents_environment(self) -> None:
        script = 'echo "$SECRET/${NOTIFY_SOCKET-none}/${INVOCATION_ID-none}/$NIX_REMOTE"; flip "$self"\n'
        target = self.nixery.system("env", script)
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertEqual(self.methods, ["systemd-run"])
        said = self.records("forward")[0].output(4096)
        self.assertEqual(said, f"s3cret value/none/none/local?root={self.host.store_root}\n")
        switch = self.calls("systemd-run --unit=nixfleet-switch ")
        self.assertEqual(len(switch), 1)
        self.assertNotIn("--collect", switch[0])
        self.assertNotIn("s3cret", switch[0], "every user of the host can read a command line")
        self.assertTrue(switch[0].endswith(f"{target}/bin/switch-to-configuration switch"))

    def test_variables_that_systemd_refuses_are_left_out_for_one_of_them_would_refuse_the_unit(self) -> None:
        refused = {
            "BASH_FUNC_which%%": "() { :; }",
            "1ST": "x",
            "BELL": "\a",
            "NOT_TEXT": "\udcff",
            "NO_CHAR": "\ufffe",
        }
        taken = {"LINES": "one\ntwo\tthree", "EMPTY": "", "PERCENT": "100% %n", "UMLAUT": "grün"}
        self.host.environment |= refused | taken
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))
        for call in self.calls("systemd-run"):
            given = {word.removeprefix("--setenv=") for word in call.split() if word.startswith("--setenv=")}
            self.assertEqual((given & refused.keys(), given & taken.keys()), (set(), set(taken)))

    def test_the_guard_is_a_timer_that_is_armed_before_the_switch_and_stopped_before_the_success(self) -> None:
        self.forward(self.v2)
        started = [line.split()[1] for line in self.calls("systemd-run")]
        self.assertEqual(started, ["--unit=nixfleet-guard", "--unit=nixfleet-switch"])
        self.assertIn("--on-active=600s", self.calls("systemd-run --unit=nixfleet-guard")[0])
        self.assertEqual(self.calls("systemctl stop"), ["systemctl stop nixfleet-guard.timer"])
        self.assertFalse((self.units / "nixfleet-guard.timer").exists())

    def test_the_timer_of_an_earlier_boot_is_neither_stopped_nor_missed(self) -> None:
        bad = self.nixery.system("bad", FAIL)
        self.forward(bad)
        pid = int((self.units / "nixfleet-guard.timer").read_text())
        os.killpg(pid, signal.SIGKILL)
        (self.units / "nixfleet-guard.timer").unlink()
        intent = self.records("guard")[0].path / "intent.json"
        intent.write_text(re.sub('"boot": "[^"]*"', '"boot": "an-earlier-one"', intent.read_text()))
        with self.assertNoLogs(self.log, "WARNING"):
            self.assertEqual(self.pipeline().rollback(self.back(bad)), RolledBack(self.v1, 0))
        self.assertEqual((self.calls("systemctl stop"), self.records("guard")), ([], []))

    def test_a_failed_unit_is_reset_before_the_name_is_used_again(self) -> None:
        bad = self.nixery.system("bad", FAIL)
        outcome = self.forward(bad)
        assert isinstance(outcome, Failed)
        self.assertEqual(outcome.exit_code, 11)
        self.assertEqual(self.pipeline().rollback(self.back(bad)), RolledBack(self.v1, 0))
        self.assertEqual(len(self.calls("systemd-run --unit=nixfleet-rollback ")), 1)
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))

    def test_a_hung_unit_is_stopped_before_the_rollback_fires(self) -> None:
        self.host.configure(poll_budget_secs=0.4)
        bad = self.nixery.system("hang", HANG)
        self.assertIsInstance(self.forward(bad), Failed)
        self.host.configure(poll_budget_secs=10.0)
        self.assertEqual(self.pipeline().rollback(self.back(bad)), RolledBack(self.v1, 0))
        self.assertIn("systemctl stop nixfleet-switch.service", self.calls("systemctl stop"))

    def test_a_unit_of_ours_without_a_record_is_stopped_first(self) -> None:
        self.host.configure(poll_budget_secs=0.3)
        self.forward(self.nixery.system("hang", HANG), policy="halt")
        for record in self.records("forward"):
            (record.path / "intent.json").unlink()
        self.host.configure(poll_budget_secs=10.0)
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))
        self.assertIn("systemctl stop nixfleet-switch.service", self.calls("systemctl stop"))

    def test_a_release_without_a_record_is_stopped_before_the_rollback(self) -> None:
        self.host.configure(poll_budget_secs=0.3)
        bad = self.nixery.system("hang", HANG)
        self.forward(bad)
        for record in self.records("forward"):
            (record.path / "intent.json").unlink()
        self.host.configure(poll_budget_secs=10.0)
        self.assertEqual(self.pipeline().rollback(self.back(bad)), RolledBack(self.v1, 0))
        self.assertIn("systemctl stop nixfleet-switch.service", self.calls("systemctl stop"))
        self.assertFalse((self.units / "nixfleet-switch.service").exists())

    def test_a_unit_that_can_not_be_ended_is_a_failure_not_a_wait_for_ever(self) -> None:
        self.host.configure(poll_budget_secs=0.3)
        bad = self.nixery.system("hang", HANG)
        self.forward(bad)
        stuck = self.units / "nixfleet-switch.service.stuck"
        stuck.touch()
        calls = self.units / "calls"

        class Later(SystemClock):
            """After the stop every look finds a second gone."""

            gone = 0

            def monotonic(self) -> float:
                self.gone += "systemctl stop nixfleet-switch" in calls.read_text()
                return super().monotonic() + self.gone

        self.clock = Later()
        outcome = self.pipeline().rollback(self.back(bad))
        assert isinstance(outcome, RollbackFailed)
        self.assertEqual(outcome.phase, "fire")
        self.assertIn("nixfleet-switch.service does not end", outcome.stderr_tail)
        stuck.unlink()
        self.clock = SystemClock()
        self.assertEqual(self.pipeline().rollback(self.back(bad)), RolledBack(self.v1, 0))

    def test_a_unit_that_ends_just_before_it_would_be_stopped_is_no_obstacle(self) -> None:
        (self.units / "nixfleet-switch.service.ending").touch()
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))
        self.assertIn("systemctl stop nixfleet-switch.service", self.calls("systemctl stop"))

    def test_the_guard_takes_the_host_back_and_stops_the_releases_unit(self) -> None:
        self.host.configure(settle_budget_secs=0.2)
        bad = self.nixery.system("hang-after", 'flip "$self"; sleep 60\n')
        self.assertIsInstance(self.forward(bad), Failed)
        self.ring()
        until(lambda: self.host.running() == self.v1, "the guard to act")
        self.assertIn("systemctl stop nixfleet-switch.service", self.calls("systemctl stop"))
        until(lambda: self.records("guard")[0].exit_code == 0, "the end of the guard")
        outcome = self.resume(bad)
        assert isinstance(outcome, Failed)
        self.assertEqual(outcome.phase, "guard")

    def test_a_systemd_that_refuses_is_a_failure_with_nothing_fired_and_no_guard_left(self) -> None:
        (self.units / "refuse").touch()
        outcome = self.forward(self.v2)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.phase, outcome.switch_fired), (-1, "guard-arm", False))
        self.assertIn("Failed to connect to bus", outcome.stderr_tail)
        outcome = self.forward(self.v2, policy="halt")
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.phase, outcome.switch_fired), ("fire", False))
        self.assertEqual((self.host.switches(), self.records("guard"), self.records("forward")), ([], [], []))

    def test_a_shutdown_leaves_the_unit_running_and_it_is_found_again(self) -> None:
        target = self.nixery.system("slow", SLOW)
        result = self.in_thread(lambda: self.forward(target))
        until(lambda: self.host.switches(), "the switch")
        self.interrupt("shutdown")
        self.assertEqual(result(), Interrupted("shutdown"))
        self.reason = None
        self.wake.clear()
        self.assertEqual(self.resume(target), Completed(target, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {target}"])


class ChoiceTest(PipelineCase):
    def test_auto_is_setsid_where_systemd_is_not_the_running_init(self) -> None:
        if Path("/run/systemd/system").is_dir():
            self.skipTest("systemd runs here")
        self.host.configure(backend="auto")
        self.assertIsInstance(choose(self.pipeline()._context), SetsidBackend)
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))
        self.assertEqual((self.methods, ROLLOUT), (["setsid"], self.records("forward")[0].intent.rollout_id))


if __name__ == "__main__":
    unittest.main()
