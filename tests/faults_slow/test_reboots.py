"""Whole agents that reboot their host by themselves: once forward, once back, and never in a loop.

The host's systemctl is a stand-in that notes what it is asked for; the test then boots the host, as the machine would.
"""

from __future__ import annotations

import unittest
from typing import Any, ClassVar

from nixfleet_agent.state_machine import State
from nixfleet_agent.telemetry.status_socket import AgentNotRunningError, ask
from tests.faults.rig import Rig
from tests.faults.world import World

_NOTES = '#!/bin/sh\necho "$*" >>"$0.calls"\n'
_SILENT = "#!/bin/sh\nexit 1\n"


class RebootTest(unittest.TestCase):
    world: ClassVar[World]

    @classmethod
    def setUpClass(cls) -> None:
        cls.world = World()
        cls.addClassCleanup(cls.world.close)

    def setUp(self) -> None:
        self.rig = Rig(self.world, self.id().rpartition(".")[2][:24], reboot={"after_deferred": "now"})
        self.addCleanup(self.rig.close)
        tools = self.rig.folder / "host-tools"
        tools.mkdir()
        for name, script in {"systemctl": _NOTES, "busctl": _SILENT, "loginctl": _SILENT, "who": _SILENT}.items():
            (tools / name).write_text(script)
            (tools / name).chmod(0o755)
        self.rig.host.environment["PATH"] = f"{tools}:{self.rig.host.environment['PATH']}"
        self.calls = tools / "systemctl.calls"
        self.required = self.rig.folder / "reboot-required"
        self.before = self.rig.host.running()

    def asked(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def section(self) -> Any:
        """The section ``reboot`` of the running agent's status; False while it does not answer."""
        try:
            return ask(self.rig.host.state_dir, "status").get("reboot", False)
        except AgentNotRunningError:
            return False

    def until_asked(self, times: int) -> None:
        self.rig.until(lambda: len(self.asked()) >= times, f"the agent asks for reboot {times}")
        self.rig.until_delivered()

    def boot_into(self, closure: str) -> None:
        """The machine comes up with this one, whatever was to boot next."""
        self.rig.host.bootloader.write_text(f"{closure}\n")
        self.rig.reboot()

    def test_a_deferred_release_is_booted_and_converges(self) -> None:
        self.rig.publish("kernel")
        self.rig.start()
        self.until_asked(1)
        self.assertEqual(self.required.with_name("reboot-required.pkgs").read_text(), "kernel\n")
        self.rig.reboot()
        self.rig.until_state("kernel", State.CONVERGED)
        self.rig.until(lambda: not self.required.exists(), "nothing is required any more")
        self.assertEqual(self.asked(), ["reboot"])

    def test_a_sick_one_takes_a_reboot_there_and_one_back(self) -> None:
        self.rig.publish("sick-kernel")
        self.rig.start()
        self.until_asked(1)
        self.rig.reboot()
        self.until_asked(2)
        self.assertEqual(self.rig.state("sick-kernel"), State.FAILED)
        self.rig.reboot()
        self.rig.until_state("sick-kernel", State.REVERTED)
        self.assertEqual((self.rig.host.running(), self.asked()), (self.before, ["reboot"] * 2))

    def test_a_boot_into_the_wrong_system_is_a_failure_and_not_tried_again(self) -> None:
        self.rig.publish("kernel")
        self.rig.start()
        self.until_asked(1)
        self.boot_into(self.before)
        self.rig.until_state("kernel", State.REVERTED)
        (failed,) = [event for event in self.rig.events("kernel") if event["kind"] == "ActivationFailed"]
        self.assertTrue(failed["stderrTail"].startswith("boot-fallback: "), failed)
        self.rig.until(lambda: self.section() is None, "no reboot is due")
        self.assertEqual(self.rig.host.bootloader.read_text().strip(), self.before)
        self.assertEqual(self.asked(), ["reboot"])

    def test_a_way_back_that_the_boot_did_not_bring_is_left_to_an_operator(self) -> None:
        self.rig.publish("sick-kernel")
        self.rig.start()
        self.until_asked(1)
        self.rig.reboot()
        self.until_asked(2)
        self.boot_into(self.world.closures["sick-kernel"])
        waits = self.rig.until(lambda: self.section(), "a reboot is due still")
        self.assertEqual((waits["direction"], waits["waits_for"]), ("rollback", "operator"))
        self.assertIn("once already", waits["reason"])
        self.assertEqual(self.asked(), ["reboot"] * 2)


if __name__ == "__main__":
    unittest.main()
