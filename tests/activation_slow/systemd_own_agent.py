"""Run inside a container whose PID 1 is systemd: releases that change what the agent's own unit starts."""

from __future__ import annotations

import os
import signal
import unittest
from pathlib import Path

from nixfleet_agent.state_machine import State
from tests.activation_slow.systemd_pipeline import show, systemctl
from tests.activation_slow.systemd_unit import DROP_IN, UNIT, PackagedUnitCase


class OwnAgentTest(PackagedUnitCase):
    """Releases that bring another agent. As on NixOS, a switch does not restart it; v0's own is the packaged one."""

    def setUp(self) -> None:
        super().setUp()
        back = f'rm -f {DROP_IN}; systemctl daemon-reload; flip "$self"'
        self.world.closures["plain"] = self.world._system("plain", back, {"healthy": "yes\n"})

    def bring(self, name: str, agent: str) -> str:
        """A release whose unit starts the agent that the script describes; its closure."""
        place = f"/usr/bin/nixfleet-agent-{name}"
        act = (
            f"printf '%s\\n' '#!/bin/sh' '{agent}' >{place}; chmod +x {place}; "
            f"printf '%s\\n' '[Service]' ExecStart= 'ExecStart={place} run' >{DROP_IN}; "
            'systemctl daemon-reload; flip "$self"'
        )
        self.world.closures[name] = self.world._system(name, act, {"healthy": "yes\n"})
        self.addCleanup(Path(place).unlink, missing_ok=True)
        return self.world.closures[name]

    def on_plain(self) -> int:
        """The agent with a proven release below it whose unit is the packaged one; its process id."""
        pid = self.start()
        self.rig.publish("plain")
        self.rig.until_state("plain", State.CONVERGED)
        self.assertEqual(self.main_pid(), pid, "nothing of the agent has changed")
        return pid

    def taken_back_by_the_guard(self, name: str) -> None:
        self.assertEqual(systemctl("is-active", "nixfleet-guard.timer"), "active")
        self.assertEqual(self.rig.host.running(), self.world.closures[name])
        systemctl("start", "nixfleet-guard.service")  # what the timer would do, after five minutes
        self.rig.until(lambda: self.rig.host.running() == self.world.closures["plain"], "the guard to act")
        self.rig.until_state(name, State.REVERTED)
        self.rig.until_delivered()
        self.assertEqual(self.rig.host.running(), self.world.closures["plain"])
        self.assertEqual(show(UNIT, "ActiveState"), "active")
        results = [e for e in self.rig.events(name) if e["kind"] == "ProbeResult" and e["probeName"] == "agent-start"]
        self.assertIn("the guard has taken the host back", results[-1]["failureReason"])
        self.assertIn("was not ready in time", results[-1]["failureReason"])
        self.assertNotIn("Converged", [e["kind"] for e in self.rig.events(name)])

    def test_a_good_one_is_handed_over_to_in_the_soak_and_ends_it(self) -> None:
        closure = self.bring("next", 'exec /usr/bin/nixfleet-agent "$@"')
        pid = self.on_plain()
        self.rig.publish("next")
        self.rig.until_state("next", State.CONVERGED)
        self.rig.until_delivered()
        self.assertNotEqual(self.main_pid(), pid)
        self.assertEqual(show(UNIT, "NRestarts"), "1")
        self.rig.until(lambda: self.rig.logged("this agent goes on with the soak"), "that it is ready")
        self.assertEqual(self.rig.host.running(), closure)
        self.assertEqual(self.rig.host.switches().count(f"switch {closure}"), 1)
        self.assertEqual(systemctl("is-active", "nixfleet-guard.timer"), "inactive")
        told = [e for e in self.rig.events("next") if e["kind"] == "ProbeResult" and e["probeName"] == "agent-start"]
        self.assertEqual([e["status"] for e in told], ["pass"])

    def test_one_that_its_check_finds_bad_fails_the_release_and_the_old_one_stays(self) -> None:
        self.bring("sick-agent", "echo no module named ssl >&2; exit 1")
        pid = self.on_plain()
        self.rig.publish("sick-agent")
        self.rig.until_state("sick-agent", State.REVERTED)
        self.rig.until_delivered()
        self.assertEqual((self.main_pid(), show(UNIT, "NRestarts")), (pid, "0"))
        self.assertEqual(self.rig.host.running(), self.world.closures["plain"])
        events = self.rig.events("sick-agent")
        failed = next(e for e in events if e["kind"] == "Failed")
        self.assertEqual(failed["failingProbes"], ["agent-start"])
        reasons = [e["failureReason"] for e in events if e["kind"] == "ProbeResult" and e["status"] == "fail"]
        self.assertIn("no module named ssl", reasons[0])

    def test_one_that_checks_well_and_exits_78_never_converges_and_is_taken_back(self) -> None:
        self.bring("exits", '[ "$1" = check ] || exit 78; exec /usr/bin/nixfleet-agent "$@"')
        self.on_plain()
        self.rig.publish("exits")
        self.rig.until(lambda: show(UNIT, "ActiveState") == "failed", "the end of the new agent")
        self.assertEqual(show(UNIT, "ExecMainStatus"), "78")
        self.taken_back_by_the_guard("exits")

    def test_one_that_never_gets_ready_is_taken_back(self) -> None:
        self.bring("hangs", '[ "$1" = check ] || exec sleep 1000; exec /usr/bin/nixfleet-agent "$@"')
        pid = self.on_plain()
        self.rig.publish("hangs")
        self.rig.until(lambda: self.main_pid() not in (0, pid), "the new agent")
        self.assertEqual(show(UNIT, "ActiveState"), "activating")
        self.taken_back_by_the_guard("hangs")

    def test_a_crash_before_it_was_tried_starts_it_and_the_guard_stands_already(self) -> None:
        self.bring("crash", '[ "$1" = check ] || exit 78; exec sleep 1000')
        pid = self.on_plain()
        self.rig.publish("crash")
        self.rig.until_state("crash", State.SOAKING)
        os.kill(pid, signal.SIGKILL)
        self.rig.until(lambda: show(UNIT, "ActiveState") == "failed", "the end of the new agent")
        systemctl("start", "nixfleet-guard.service")
        self.rig.until_state("crash", State.REVERTED)
        self.assertEqual(self.rig.host.running(), self.world.closures["plain"])


if __name__ == "__main__":
    unittest.main()
