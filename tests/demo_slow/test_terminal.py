"""The demo on a terminal: a picture at once, one that stays, and a cursor that comes back whatever happens."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
import unittest

from tests.demo_slow.case import COMMAND, PATIENCE, DemoCase, marked

COLUMNS, ROWS = 100, 30
HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"
CTRL_C = b"\x03"


class Terminal(DemoCase):
    def open(self, *arguments: str) -> None:
        """Start a demo whose terminal is ``self.screen``."""
        self.screen, inner = pty.openpty()
        self.addCleanup(os.close, self.screen)
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            [*COMMAND, "--dir", str(self.folder), *arguments],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**os.environ, "TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(inner)
        self.addCleanup(self.process.wait)
        self.addCleanup(self.process.kill)
        self.seen = b""

    def read(self, until: bytes | None = None) -> None:
        """Until these bytes have come, or the demo has closed its terminal."""
        deadline = time.monotonic() + PATIENCE
        while until is None or until not in self.seen:
            self.assertTrue(select.select([self.screen], [], [], max(0.0, deadline - time.monotonic()))[0], self.seen)
            try:
                piece = os.read(self.screen, 65536)
            except OSError:  # the other side is closed
                piece = b""
            if not piece:
                self.assertIsNone(until, self.seen.decode(errors="replace"))
                return
            self.seen += piece

    def text(self) -> str:
        """What was written, without the terminal's orders."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen.decode())

    def test_the_picture_comes_at_once_and_the_last_one_stays(self) -> None:
        self.open("--scenario", "bad-canary", "--agents", "3")
        self.read(until=b"making keys")
        self.read()
        self.assertEqual(self.process.wait(PATIENCE), 0)
        text = self.text()
        last = text[text.rindex("nixfleet demo") :].replace("\r", "").splitlines()
        self.assertTrue(
            any(re.search(r"web-01\s+v3\s+✓ Converged\s+↩ Reverted\s+✓ Converged", line) for line in last), last
        )
        self.assertTrue(any(re.search(r"web-02\s+v3\s+✓ Converged\s+✓ Converged", line) for line in last), last)
        self.assertTrue(any("v3 wave 2  2/2 ✓✓" in line for line in last), last)
        self.assertIn("v2 halted: failed on web-01", text)
        self.assertTrue(any("every host ended where it should" in line for line in last), last)
        self.assertEqual(self.seen.count(HIDE), self.seen.count(SHOW))

    def test_ctrl_c_gives_the_terminal_back_and_removes_everything(self) -> None:
        self.open("--agents", "1")
        self.read(until=b"Activating")
        os.write(self.screen, CTRL_C)
        self.read()
        self.assertEqual(self.process.wait(PATIENCE), 130)
        self.assertIn("interrupted: every process is ended, and every file removed", self.text())
        self.assertNotIn("Traceback", self.text())
        self.assertGreater(self.seen.rindex(SHOW), self.seen.rindex(HIDE))
        self.assertEqual(marked(self.folder), [])
        self.assertFalse(self.folder.exists())


if __name__ == "__main__":
    unittest.main()
