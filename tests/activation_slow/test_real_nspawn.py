"""The pipeline inside a real systemd-nspawn, where the agent and its units see different boot ids."""

from __future__ import annotations

import re
import unittest

from tests.activation_slow.in_container import machine_with, mirror
from tests.support.real_systemd import RealNspawn

_BOOT_ID = "from nixfleet_agent.activation.host import read_boot_id; print(read_boot_id())"
#: As the packaged unit has it.
FRESH_PROC = ["unshare", "--mount", "/bin/sh", "-c", 'mount -t proc proc /proc && exec "$@"', "fresh-proc"]


class NspawnTest(mirror("tests.activation_slow.nspawn_pipeline", __name__, RealNspawn, FRESH_PROC)):  # type: ignore[misc]
    """Switches, rollback and guard."""


class BootTest(unittest.TestCase):
    def test_a_container_that_boots_anew_is_another_boot_of_the_same_machine(self) -> None:
        seen = []
        for _ in range(2):
            with machine_with({}, RealNspawn) as machine:
                done = machine.run(*FRESH_PROC, *machine.python("-c", _BOOT_ID))
                self.assertEqual(done.returncode, 0, done.stderr)
                seen.append(re.fullmatch(r"(.+)/(\d+)\n", done.stdout))
        assert seen[0] and seen[1]
        self.assertEqual(seen[0][1], seen[1][1])
        self.assertNotEqual(seen[0][2], seen[1][2])


if __name__ == "__main__":
    unittest.main()
