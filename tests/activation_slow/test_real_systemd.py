"""The systemd backend under a systemd that really runs, and the container that is made for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import unittest
from pathlib import Path

from tests.activation.case import until
from tests.activation_slow.in_container import machine_with, mirror
from tests.support.real_systemd import TOP, remove_cgroup

#: Makes a container, says where it is, and waits to be killed.
VICTIM = """
import sys
from tests.support.real_systemd import RealSystemd
machine = RealSystemd()
print(machine.pid, machine.root, machine.cgroup, flush=True)
sys.stdin.read()
"""


class ContainerTest(unittest.TestCase):
    def test_it_can_change_nothing_of_the_host_and_leaves_nothing(self) -> None:
        with machine_with({"usr/bin/only-inside": "#!/bin/sh\n"}) as machine:
            self.assertEqual(machine.run("only-inside").returncode, 0)
            self.assertEqual(machine.run("systemctl", "is-system-running").stdout.strip(), "running")
            machine.run("touch", "/usr/bin/touched-inside", "/etc/touched-inside", "/nix/touched-inside")
            for place in ("/proc/sys/kernel/core_uses_pid", f"{TOP}/touched-inside"):
                self.assertNotEqual(machine.run("sh", "-c", f"echo 1 >{place}").returncode, 0, place)
            pid = machine.pid
        self.assertFalse(any(place.exists() for place in (Path(f"/proc/{pid}"), machine.root, machine.cgroup)))
        self.assertNotIn(str(machine.root), Path("/proc/self/mounts").read_text())
        for name in ("/usr/bin/only-inside", "/usr/bin/touched-inside", "/etc/touched-inside", "/nix/touched-inside"):
            self.assertFalse(Path(name).exists(), name)

    def test_it_ends_with_whoever_made_it(self) -> None:
        machine_with({}).close()
        command = [sys.executable, "-c", VICTIM]
        with subprocess.Popen(command, cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            pid, root, cgroup = victim.stdout.readline().split()
            victim.kill()
        until(lambda: not Path(f"/proc/{pid}").exists(), "the end of its systemd")
        until(lambda: not Path(cgroup, "cgroup.procs").read_text(), "the end of all processes inside")
        remove_cgroup(Path(cgroup))
        shutil.rmtree(root)


class PipelineTest(mirror("tests.activation_slow.systemd_pipeline", __name__)):  # type: ignore[misc]
    """The pipeline with real units and a real timer."""


if __name__ == "__main__":
    unittest.main()
