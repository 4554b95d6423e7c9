"""The stand-in for switch-to-configuration does what the real one is documented and seen to do."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import tempfile
import unittest
from pathlib import Path

from nixfleet_agent.demo.nixos_switch import Switch, inhibitors, units
from tests.support.nix import SUCCEED

OLD, NEW = "old-system", "new-system"
APP = "app.service"


class StandInTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.units = self.root / "units"
        self.units.mkdir()
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "SWITCH_LOG": str(self.root / "log"),
            "SWITCH_LOCK": str(self.root / "lock"),
            "SWITCH_CURRENT_SYSTEM": str(self.root / "current"),
            "SWITCH_BOOTLOADER": str(self.root / "bootloader"),
            "SWITCH_UNITS": str(self.units),
        }
        self.system(OLD)
        (self.root / "current").symlink_to(f"/nix/store/{OLD}")

    def system(
        self, name: str, files: dict[str, str] | None = None, switch: Switch | None = None, activate: str = SUCCEED
    ) -> None:
        script = {"bin/switch-to-configuration": (switch or Switch()).script(activate)}
        for inner, text in {**(files or {}), **script}.items():
            place = self.root / "nix/store" / name / inner
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
            place.chmod(0o755)

    def call(self, action: str, name: str = NEW, **environment: str) -> tuple[int, str]:
        """Exit code and words."""
        script = self.root / "nix/store" / name / "bin/switch-to-configuration"
        done = subprocess.run(
            [script, action],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        return done.returncode, done.stderr

    def runs(self) -> str:
        return (self.root / "current").readlink().name

    def boots(self) -> str:
        return (self.root / "bootloader").read_text().strip() if (self.root / "bootloader").exists() else ""

    def active(self) -> dict[str, str]:
        return {place.name: place.read_text().strip() for place in self.units.iterdir()}

    def test_switch_writes_the_boot_entry_and_flips_boot_only_the_entry_test_only_flips(self) -> None:
        for action, ran, booted in (("switch", NEW, NEW), ("boot", OLD, NEW), ("test", NEW, ""), ("check", OLD, "")):
            with self.subTest(action):
                self.setUp()
                self.system(NEW)
                self.assertEqual(self.call(action)[0], 0)
                self.assertEqual((self.runs(), self.boots()), (ran, booted))

    def test_an_action_that_does_not_exist_is_1(self) -> None:
        self.system(NEW)
        self.assertEqual(self.call("swich")[0], 1)

    def test_units_are_stopped_before_the_flip_and_started_after_it_or_left_alone(self) -> None:
        old = {APP: "1", "gone.service": "1", "same.service": "1", "agent.service": "1\nX-RestartIfChanged=false"}
        new = {APP: "2", "same.service": "1", "agent.service": "2\nX-RestartIfChanged=false", "fresh.service": "1"}
        self.system(OLD, units(old))
        self.call("switch", OLD)
        self.assertEqual(self.active(), old)
        self.system(NEW, units(new), activate=f'ls {self.units} >{self.root}/seen; flip "$self"')
        code, said = self.call("switch")
        self.assertEqual(code, 0)
        self.assertEqual((self.root / "seen").read_text().split(), ["agent.service", "same.service"])
        self.assertEqual(self.active(), new | {"agent.service": old["agent.service"]})
        self.assertIn("NOT restarting the following changed units: agent.service\n", said)
        self.assertIn("stopping the following units: app.service, gone.service\n", said)

    def test_dry_activate_tells_and_does_nothing(self) -> None:
        self.system(NEW, units({APP: "1"}))
        code, said = self.call("dry-activate")
        self.assertEqual((code, self.runs(), self.boots(), self.active()), (0, OLD, "", {}))
        self.assertIn("would start the following units: app.service", said)

    def test_inhibitors_that_both_systems_have_and_that_differ_refuse_a_live_switch_alone(self) -> None:
        self.system(OLD, inhibitors(dbus_implementation="broker", systemd_version="258", only_old="1"))
        self.system(NEW, inhibitors(dbus_implementation="dbus", systemd_version="258", only_new="1"))
        for action in ("switch", "test"):
            code, said = self.call(action)
            self.assertEqual((code, self.runs(), self.boots()), (1, OLD, ""), "before the bootloader step")
            self.assertIn("dbus-implementation : broker -> dbus\n", said)
            self.assertNotIn("only", said)
            self.assertTrue(said.endswith("Pre-switch check 'switchInhibitors' failed\nPre-switch checks failed\n"))
        self.assertEqual((self.call("boot")[0], self.boots()), (0, NEW))
        self.assertEqual(self.call("switch", NIXOS_NO_CHECK="1")[0], 0)
        self.assertEqual(self.runs(), NEW)

    def test_a_pre_switch_check_refuses_in_the_words_of_each_script(self) -> None:
        for flavour, last in (("ng", "Pre-switch checks failed"), ("perl", "Pre-switch check 'disk' failed")):
            self.system(NEW, switch=Switch(flavour, checks={"memory": "true", "disk": "false"}))
            code, said = self.call("switch")
            self.assertEqual((code, said.splitlines()[-1], self.boots()), (1, last, ""))

    def test_the_lock_turns_away_with_11_in_the_words_of_each_script_and_is_not_inherited(self) -> None:
        self.system(NEW, activate=f'sleep 60 >/dev/null 2>&1 & echo $! >{self.root}/daemon; flip "$self"')
        self.assertEqual(self.call("switch")[0], 0)
        self.assertEqual(self.call("switch")[0], 0, "the process that was left running does not hold it")
        os.kill(int((self.root / "daemon").read_text()), signal.SIGKILL)
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for flavour, pattern in (
                ("ng", "Could not acquire lock\n"),
                ("perl", "lock - Resource"),
            ):
                self.system(NEW, switch=Switch(flavour))
                code, said = self.call("switch")
                self.assertEqual(code, 11)
                self.assertIn(pattern, said)

    def test_a_bootloader_step_that_fails_comes_before_any_unit_is_touched(self) -> None:
        self.system(NEW, units({APP: "1"}))
        code, said = self.call("switch", SWITCH_BOOT_EXIT="1")
        self.assertEqual((code, self.runs(), self.active(), self.boots()), (1, OLD, {}, ""))
        self.assertIn("Failed to install bootloader", said)

    def test_another_init_interface_is_100_with_the_boot_entry_written(self) -> None:
        self.system(NEW, {"init-interface-version": "systemd 2\n"})
        self.assertEqual((self.call("switch")[0], self.runs(), self.boots()), (100, OLD, NEW))

    def test_an_activation_that_fails_is_2_and_a_reload_3_with_the_link_flipped(self) -> None:
        self.system(NEW, activate='flip "$self"; false')
        self.assertEqual((self.call("switch")[0], self.runs()), (2, NEW))
        self.system(NEW, switch=Switch(reload="false"))
        self.assertEqual(self.call("switch")[0], 3)

    def test_units_that_fail_are_4_in_the_words_of_each_script(self) -> None:
        words = {
            ("ng", "start"): "Failed to start app.service\nwarning: the following units failed: app.service\n",
            ("ng", "dependency"): "Failed to start app.service\n",
            ("perl", "dependency"): "A dependency job for app.service failed. See 'journalctl -xe' for details.\n",
            ("ng", "user"): "warning: the following user units failed: app.service\nwarning: user activation for alice",
            ("perl", "systemctl"): "Too few arguments.\n",
        }
        for (flavour, kind), expected in words.items():
            with self.subTest(kind, flavour=flavour):
                self.system(NEW, units({APP: f"1\nFails={kind}"}), Switch(flavour))
                code, said = self.call("switch")
                self.assertEqual((code, self.runs(), self.active()), (4, NEW, {}))
                self.assertIn(expected, said)


if __name__ == "__main__":
    unittest.main()
