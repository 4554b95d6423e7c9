"""Machines that really go down: a systemd that is killed with all below it, and boots anew from the same disk."""

from __future__ import annotations

import json
import subprocess
import unittest
from typing import Any

from tests.activation.case import until
from tests.activation_slow.in_container import machine_with
from tests.activation_slow.reboot_steps import IN_BOOTLOADER
from tests.support.real_systemd import PATH, TOP

#: What `systemctl reboot` starts; without the units around it, which there are none of in the container.
_REBOOT = {
    "etc/systemd/system/reboot.target": (
        "[Unit]\nDefaultDependencies=no\nRequires=systemd-reboot.service\nAfter=systemd-reboot.service\nAllowIsolate=yes\n"
    ),
    "etc/systemd/system/systemd-reboot.service": (
        "[Unit]\nDefaultDependencies=no\nRequires=shutdown.target\nAfter=shutdown.target\nSuccessAction=reboot-force\n"
    ),
}
#: What the packaged unit takes from the agent, and with it the right to reboot by a system call.
_SANDBOX = [
    f"--property={line}"
    for line in (TOP / "packaging/nixfleet-agent.service").read_text().splitlines()
    if line.startswith(("NoNewPrivileges=", "SystemCall", "CapabilityBoundingSet=", "RestrictAddressFamilies="))
]
_STEPS = "tests.activation_slow.reboot_steps"


class RebootTest(unittest.TestCase):
    def setUp(self) -> None:
        self.machine = machine_with(_REBOOT)
        self.addCleanup(self.machine.close)

    def command(self, *step: str) -> list[str]:
        return ["sh", "-c", f'cd {TOP} && exec "$@"', "step", *self.machine.python("-m", _STEPS, *step)]

    def step(self, *step: str) -> Any:
        done = self.machine.run(*self.command(*step), timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        return json.loads(done.stdout) if done.stdout else None

    def where(self, told: Any) -> tuple[str, str, str]:
        return told["runs"], told["boots"], told["profile"]

    def reboot(self) -> Any:
        self.machine.reboot()
        return self.step("boot")

    def pull_the_plug_in_the_bootloader_step(self) -> None:
        """The machine goes down while the forward switch writes its boot entry."""
        place = self.machine.root / str(IN_BOOTLOADER).lstrip("/")
        command = ["nsenter", f"--target={self.machine.pid}", "--all", "--", *self.command("forward")]
        agent = subprocess.Popen(
            command, env={"PATH": PATH, "LC_ALL": "C.UTF-8"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.addCleanup(agent.communicate)
        until(lambda: place.exists() or agent.poll() is not None, "the bootloader step")
        self.assertIsNone(agent.poll(), "the agent waits for the step")
        self.assertEqual(self.where(self.reboot())[:2], ("old", "old"))

    def test_a_new_bus_is_booted_into_and_gone_back_from_by_another_boot(self) -> None:
        self.step("prepare", "bus")
        told = self.step("forward")
        self.assertEqual((told["outcome"], told["fields"]["component"]), ("Deferred", "dbus-implementation"))
        self.assertEqual(self.where(told), ("old", "new", "new"))
        self.assertEqual(self.reboot()["runs"], "new")
        told = self.step("rollback")
        self.assertEqual((told["outcome"], told["fields"]["component"]), ("RollbackDeferred", "dbus-implementation"))
        self.assertEqual(self.where(told), ("new", "old", "old"))
        self.assertEqual(self.reboot()["runs"], "old")
        told = self.step("rollback")
        self.assertEqual((told["outcome"], self.where(told)), ("RolledBack", ("old", "old", "old")))
        self.assertEqual(told["switches"], ["boot new", "boot old"])

    def test_the_agent_reboots_into_a_new_bus_by_itself_and_only_once(self) -> None:
        self.step("prepare", "bus")
        self.step("forward")
        begun = self.machine.run("systemd-run", *_SANDBOX, *self.command("deferred"))
        self.assertEqual(begun.returncode, 0, begun.stderr)
        self.assertTrue(self.machine.until_down(60), "the machine goes down by itself")
        self.machine.reboot()
        self.assertEqual(self.step("boot")["runs"], "new")
        told = self.step("deferred")
        self.assertEqual(told["waits_for"], "operator")
        self.assertIn("once already", told["reason"])
        self.assertFalse(self.machine.until_down(3), "it stays up")
        self.assertEqual(self.machine.run("cat", "/run/reboot-required.pkgs").stdout, "dbus-implementation\n")

    def test_a_deferral_that_is_cut_short_in_the_bootloader_step_is_made_again(self) -> None:
        self.step("prepare", "bus-pulled")
        self.pull_the_plug_in_the_bootloader_step()
        told = self.step("resume")
        self.assertEqual((told["outcome"], self.where(told)), ("Deferred", ("old", "new", "new")))
        self.assertEqual(self.reboot()["runs"], "new")

    def test_a_live_switch_that_is_cut_short_in_the_bootloader_step_is_fired_again(self) -> None:
        self.step("prepare", "live-pulled")
        self.pull_the_plug_in_the_bootloader_step()
        told = self.step("resume")
        self.assertEqual((told["outcome"], self.where(told)), ("Completed", ("new", "new", "new")))
        self.assertEqual(told["switches"], ["switch new", "switch new"])


if __name__ == "__main__":
    unittest.main()
