"""`watch`: lines for what changes where nobody draws, and a terminal that is given back."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
import unittest

from nixfleet_agent.commands.watch import changes
from tests.commands.host_case import HostCase

SOAKING = {
    "running": True,
    "current_closure": "b-nixos",
    "host": {"active_id": "stable@aa"},
    "rollouts": [{"rollout_id": "stable@aa", "state": "Soaking", "probes": {"web": {"status": "pass"}}}],
    "queue": {"queued": 0},
}


class Changes(unittest.TestCase):
    def test_the_first_look_tells_everything_and_the_same_again_nothing(self) -> None:
        self.assertEqual(
            list(changes(None, SOAKING)),
            ["agent: running", "runs: b-nixos", "stable@aa: Soaking", "probe web: pass", "queue: 0 events"],
        )
        self.assertEqual(list(changes(SOAKING, SOAKING)), [])

    def test_what_changes_is_a_line_and_what_ends_is_one_too(self) -> None:
        failing = {"status": "fail", "failure_reason": "status 500"}
        failed = {"rollout_id": "stable@aa", "state": "Failed", "probes": {"web": failing}}
        after = {**SOAKING, "rollouts": [failed], "hold": {"reason": "swap"}}
        self.assertEqual(
            list(changes(SOAKING, after)), ["stable@aa: Failed", "probe web: fail (status 500)", "hold: swap"]
        )
        self.assertEqual(list(changes({**SOAKING, "hold": {"reason": "swap"}}, SOAKING)), ["hold: over"])


class Command(HostCase):
    def test_without_a_terminal_it_prints_plain_lines(self) -> None:
        ran = self.call("watch", "--turns", "1")
        self.assertEqual((ran.code, ran.err), (0, ""))
        self.assertRegex(ran.out, r"(?m)^\S+Z agent: not running")
        self.assertNotIn("\x1b", ran.out)

    def test_ctrl_c_gives_the_terminal_back_as_it_was(self) -> None:
        primary, secondary = pty.openpty()
        self.addCleanup(os.close, primary)
        process = subprocess.Popen(
            [sys.executable, "-m", "nixfleet_agent", "watch", "--config", str(self.write_config())],
            stdin=secondary,
            stdout=secondary,
            stderr=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(secondary)
        self.addCleanup(process.kill)
        drawn = self.read_until(primary, b"Ctrl-C ends")
        self.assertTrue(drawn.startswith(b"\x1b[?1049h\x1b[?25l"), drawn[:40])
        process.send_signal(signal.SIGINT)
        self.assertTrue(self.read_until(primary, b"\x1b[?1049l").endswith(b"\x1b[?25h\x1b[?1049l"))
        self.assertEqual(process.wait(30), 130)
        assert process.stderr is not None
        self.assertEqual(process.stderr.read(), b"nixfleet-agent: interrupted\n")
        process.stderr.close()

    def read_until(self, descriptor: int, words: bytes) -> bytes:
        read, deadline = b"", time.monotonic() + 60
        while words not in read:
            self.assertTrue(select.select([descriptor], [], [], deadline - time.monotonic())[0], read)
            read += os.read(descriptor, 65536)
        return read


if __name__ == "__main__":
    unittest.main()
