"""Run inside a container whose PID 1 is systemd: the packaged unit, as it is, with a real control plane and real Nix.

The container has the unit at its place, ``/usr/bin/nixfleet-agent``, and a drop-in that says where the output goes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import time
import unittest
from pathlib import Path
from typing import ClassVar

from nixfleet_agent.runtime.own_unit import OwnUnit, own_unit
from nixfleet_agent.state_machine import State
from nixfleet_agent.threads.clock import SystemClock
from tests.activation_slow.systemd_pipeline import loaded, show, systemctl
from tests.faults.rig import Rig
from tests.faults.world import World

UNIT = "nixfleet-agent.service"
STATE_DIR = Path("/var/lib/nixfleet-agent")
CONFIG = Path("/etc/nixfleet/agent.toml")
LOG = Path("/var/log/nixfleet-agent.log")
DROP_IN = Path(f"/etc/systemd/system/{UNIT}.d/60-of-this-test.conf")
#: systemd's own words for what a switch does to the agent that waits for it.
RESTART = 'systemctl restart nixfleet-agent.service || exit 3; flip "$self"'
KILL = 'systemctl kill --signal=SIGKILL nixfleet-agent.service; sleep 0.3; flip "$self"'
#: A probe as hosts have them: it asks systemd, runs Nix, and looks at what runs.
PROBE = (
    "systemctl is-active nixfleet-agent.service && nix-store --version && test -w /nix && "
    'test -e "$TEST_STORE/nix/store/$(basename "$(readlink "$SWITCH_CURRENT_SYSTEM")")/healthy"'
)


class PackagedUnitCase(unittest.TestCase):
    """``self.rig``: the control plane and the host; the agent there is the unit and nothing else."""

    world: ClassVar[World]

    @classmethod
    def setUpClass(cls) -> None:
        cls.world = World()
        cls.addClassCleanup(cls.world.close)
        well = {"healthy": "yes\n"}
        cls.world.closures["restarting"] = cls.world._system("restarting", RESTART, well)
        cls.world.closures["killing"] = cls.world._system("killing", KILL, well)

    def setUp(self) -> None:
        self.rig = Rig(self.world, self.id().rpartition(".")[2][:24], agent={"state_dir": str(STATE_DIR)})
        self.addCleanup(self._end)
        self.rig.host.state_dir, self.rig.log_file = STATE_DIR, LOG
        self.rig.host.environment["TEST_STATE"] = str(STATE_DIR)
        check = {"kind": "exec", "mode": "enforce", "intervalSeconds": 0.3, "timeoutSecs": 20}
        checks = {"app": check | {"command": ["sh", "-c", PROBE]}}
        (self.rig.folder / "health-checks.json").write_text(json.dumps(checks))
        CONFIG.parent.mkdir(exist_ok=True)
        self.configure()
        wanted = {n: v for n, v in self.rig.host.environment.items() if n.startswith(("NIX_", "TEST_", "SWITCH_"))}
        lines = [f'{name}="{value}"' for name, value in wanted.items()]
        Path("/etc/nixfleet/environment").write_text("\n".join(lines) + "\n")

    def configure(self, **activation: object) -> None:
        """The rig's configuration at the place where the unit looks for it, with the systemd backend."""
        self.rig.host.configure(backend="auto", **activation)
        self.rig.write_config({"agent": {"state_dir": str(STATE_DIR)}})
        shutil.copy(self.rig.folder / "agent.toml", CONFIG)

    def _end(self) -> None:
        for unit in (UNIT, *loaded()):
            systemctl("stop", unit)
            systemctl("reset-failed", unit)
        self.rig.close()
        shutil.rmtree(STATE_DIR, ignore_errors=True)
        LOG.unlink(missing_ok=True)
        if DROP_IN.exists():
            DROP_IN.unlink()
            systemctl("daemon-reload")

    def start(self, drop_in: str = "") -> int:
        """Start the unit, which returns once the agent has said that it is ready; its process id."""
        if drop_in:
            DROP_IN.write_text(f"[Service]\n{drop_in}\n")
            systemctl("daemon-reload")
        done = subprocess.run(["systemctl", "start", UNIT], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stderr + self.said())
        return self.main_pid()

    def said(self) -> str:
        return LOG.read_text(errors="replace")[-3000:] if LOG.exists() else "(no output)"

    def main_pid(self) -> int:
        return int(show(UNIT, "MainPID"))

    def gone(self) -> str:
        """ActiveState once the unit has ended for good or been started again."""
        return str(self.rig.until(lambda: _settled(show(UNIT, "ActiveState")), "the unit's end"))


class LifeTest(PackagedUnitCase):
    def test_it_is_ready_only_when_it_says_so_and_owns_a_private_state_folder(self) -> None:
        pid = self.start()
        self.assertEqual(
            (show(UNIT, "ActiveState"), show(UNIT, "Type"), show(UNIT, "NRestarts")), ("active", "notify", "0")
        )
        self.assertIn("nixfleet-agent", show(UNIT, "StatusText"))
        self.assertTrue(self.rig.logged("started"))
        status = STATE_DIR.stat()
        self.assertEqual((stat.S_IMODE(status.st_mode), status.st_uid), (0o700, 0))
        self.assertIn(b"nixfleet", Path(f"/proc/{pid}/cmdline").read_bytes())
        asked = subprocess.run(["nixfleet-agent", "status"], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(asked.returncode, 0, asked.stderr)

    def test_a_reload_waits_for_the_agent_which_stays_the_same_process(self) -> None:
        pid = self.start()
        done = subprocess.run(["systemctl", "reload", UNIT], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.rig.until(lambda: self.rig.logged("reloaded certificate"), "the reload")
        self.rig.until(lambda: show(UNIT, "ActiveState") == "active", "an end of reloading")
        self.assertEqual((self.main_pid(), show(UNIT, "NRestarts")), (pid, "0"))

    def test_it_stops_within_two_seconds_and_well(self) -> None:
        self.start()
        self.rig.until(lambda: self.rig.control_plane.control.store.hosts(), "a first contact")
        began = time.monotonic()
        systemctl("stop", UNIT)
        took = time.monotonic() - began
        self.assertEqual((show(UNIT, "Result"), show(UNIT, "ExecMainStatus")), ("success", "0"), self.said())
        self.assertLess(took, 2.5, "two seconds, and systemctl's own time")
        self.assertEqual(show(UNIT, "ActiveState"), "inactive")

    def test_a_fed_watchdog_stays_quiet_and_a_silent_agent_is_replaced(self) -> None:
        pid = self.start("WatchdogSec=2")
        first = int(show(UNIT, "WatchdogTimestampMonotonic"))
        self.rig.until(lambda: int(show(UNIT, "WatchdogTimestampMonotonic")) > first + 2_500_000, "three signs of life")
        self.assertEqual((self.main_pid(), show(UNIT, "NRestarts")), (pid, "0"))
        os.kill(pid, signal.SIGSTOP)
        self.rig.until(lambda: show(UNIT, "NRestarts") == "1", "the watchdog to bite")
        self.rig.until(lambda: self.main_pid() not in (0, pid), "a new agent")
        self.rig.until(lambda: show(UNIT, "ActiveState") == "active", "that it is ready")

    def test_what_trying_again_cannot_help_is_not_started_again(self) -> None:
        CONFIG.write_text("control_plane_url = 'http://x'\n")
        subprocess.run(["systemctl", "start", UNIT], capture_output=True, timeout=60, check=False)
        self.assertEqual(self.gone(), "failed")
        self.assertEqual((show(UNIT, "ExecMainStatus"), show(UNIT, "NRestarts")), ("78", "0"), self.said())
        systemctl("reset-failed", UNIT)
        self.configure()
        self.start()
        keep = "--property=RestartPreventExitStatus=75"
        again = ["systemd-run", "--unit=nixfleet-second", keep, "--", "nixfleet-agent", "run"]
        second = subprocess.run(again, capture_output=True, timeout=60, check=False)
        self.assertEqual(second.returncode, 0)
        self.rig.until(lambda: show("nixfleet-second.service", "ActiveState") == "failed", "the second one's end")
        self.assertEqual(show("nixfleet-second.service", "ExecMainStatus"), "75")

    def test_the_agent_knows_its_unit_and_sees_that_it_starts_something_else_now(self) -> None:
        pid = self.start()
        environ = Path(f"/proc/{pid}/environ").read_text().split("\0")
        variables = dict(entry.partition("=")[::2] for entry in environ if entry)
        self.assertEqual(own_unit(variables, pid, Path(f"/proc/{pid}/cgroup")), UNIT)
        unit = OwnUnit(UNIT, pid, SystemClock(), lambda: False)
        self.assertEqual(
            (str(unit.ask()), unit.changed(), unit.is_ready()), ("/usr/bin/nixfleet-agent run", None, True)
        )
        self.assertFalse(OwnUnit(UNIT, pid + 1, SystemClock(), lambda: False).is_ready())
        DROP_IN.write_text(
            "[Service]\nExecStart=\nExecStart=/usr/bin/nixfleet-agent run --debug\n"
            'Environment="WORDS=one two"\nEnvironmentFile=-/etc/none\n'
        )
        systemctl("daemon-reload")
        start = unit.changed()
        assert start is not None
        self.assertEqual(str(start), "/usr/bin/nixfleet-agent run --debug")
        self.assertIn(("WORDS", "one two"), start.environment)
        self.assertIn((Path("/etc/none"), True), start.files)

    def test_a_crash_is_followed_by_a_start(self) -> None:
        pid = self.start()
        os.kill(pid, signal.SIGKILL)
        self.rig.until(lambda: show(UNIT, "NRestarts") == "1" and self.main_pid() not in (0, pid), "a new agent")
        self.rig.until(lambda: show(UNIT, "ActiveState") == "active", "that it is ready")


class ReleaseTest(PackagedUnitCase):
    """The store is mounted read-only, as on NixOS, and Nix's cache is where root has it."""

    def setUp(self) -> None:
        super().setUp()
        store = str(self.rig.host.store_root / "nix/store")
        for options in ("bind", "remount,bind,ro"):
            subprocess.run(["mount", "-o", options, store, store], check=True, timeout=30)
        self.addCleanup(subprocess.run, ["umount", store], check=True, timeout=30)

    def test_a_release_converges_and_a_sick_one_is_taken_back(self) -> None:
        pid = self.start()
        self.rig.publish("good")
        self.rig.until_state("good", State.CONVERGED)
        self.assertEqual(self.rig.host.running(), self.world.closures["good"])
        methods = [e["switchMethod"] for e in self.rig.events("good") if e["kind"] == "ActivationStarted"]
        self.assertEqual(methods, ["systemd-run"])
        self.rig.publish("sick")
        self.rig.until_state("sick", State.REVERTED)
        self.rig.until_delivered()
        self.assertEqual(self.rig.host.running(), self.world.closures["good"])
        self.assertEqual((self.main_pid(), show(UNIT, "NRestarts")), (pid, "0"))
        # The switch's last word is on disk a moment before systemd has seen its process end.
        self.rig.until(lambda: [unit for unit in loaded() if unit != UNIT] == [], "that no unit is left behind")

    def test_a_switch_that_restarts_or_kills_the_agents_unit_is_seen_to_its_end(self) -> None:
        pid = self.start()
        for name in ("restarting", "killing"):
            self.rig.publish(name)
            self.rig.until_state(name, State.CONVERGED)
            self.rig.until_delivered()
            self.assertEqual(self.rig.host.running(), self.world.closures[name])
            self.assertNotEqual(self.main_pid(), pid, "the switch really took the agent away")
            pid = self.main_pid()
        calls = [call for call in self.rig.host.switches() if not call.startswith("boot")]
        self.assertEqual(calls, [f"switch {self.world.closures[name]}" for name in ("restarting", "killing")])
        self.assertEqual(systemctl("is-active", "nixfleet-guard.timer"), "inactive")

    def test_an_agent_that_a_release_took_away_is_no_obstacle_to_the_guard(self) -> None:
        gone = self.world._system("gone", 'systemctl stop --no-block nixfleet-agent.service; flip "$self"', {})
        self.world.closures["gone"] = gone
        self.start()
        self.rig.publish("gone")
        self.rig.until(lambda: self.rig.host.running() == gone, "the release")
        self.rig.until(lambda: show(UNIT, "ActiveState") == "inactive", "the agent's end")
        self.assertEqual(systemctl("is-active", "nixfleet-guard.timer"), "active")
        systemctl("start", "nixfleet-guard.service")  # what the timer would do, after at least five minutes
        self.rig.until(lambda: self.rig.host.running() == self.world.closures["v0"], "the guard to act")
        self.start()
        self.rig.until_state("gone", State.REVERTED)
        self.rig.until_delivered()


def _settled(state: str) -> str:
    return state if state in ("active", "failed", "inactive") else ""


if __name__ == "__main__":
    unittest.main()
