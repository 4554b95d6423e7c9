"""The init system hears what it must, and nothing breaks without one."""

from __future__ import annotations

import os
import socket
import tempfile
import unittest
from pathlib import Path

from nixfleet_agent.telemetry.notify import Notifier
from tests.support.clock import FakeClock


class Notify(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "notify"
        self.clock = FakeClock()

    def listen(self, address: str | bytes) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(listening.close)
        listening.bind(address)
        listening.settimeout(5)
        return listening

    def test_the_messages_of_a_life(self) -> None:
        listening = self.listen(str(self.path))
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": str(self.path)}, self.clock)
        notifier.ready("waiting for work")
        notifier.watchdog()
        notifier.reloading()
        notifier.status("bad\nREADY=1")
        notifier.stopping()
        heard = [listening.recv(4096).decode() for _ in range(5)]
        self.assertEqual(
            heard,
            [
                "READY=1\nSTATUS=waiting for work",
                "WATCHDOG=1",
                "RELOADING=1\nMONOTONIC_USEC=1000000000",
                "STATUS=bad\\nREADY=1",
                "STOPPING=1",
            ],
        )

    def test_an_abstract_address(self) -> None:
        name = f"nixfleet-agent-test-{os.getpid()}"
        listening = self.listen(b"\0" + name.encode())
        Notifier(f"@{name}", None, self.clock).watchdog()
        self.assertEqual(listening.recv(100), b"WATCHDOG=1")

    def test_children_cannot_speak_for_the_agent(self) -> None:
        environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "PATH": "/bin"}
        notifier = Notifier.from_environment(environ, self.clock)
        self.assertEqual(environ, {"PATH": "/bin"})
        self.assertEqual(notifier.watchdog_secs, 30.0)

    def test_a_watchdog_meant_for_another_process_or_written_wrong_is_none_of_ours(self) -> None:
        for variables in (
            {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"},
            {"WATCHDOG_USEC": "soon"},
            {"WATCHDOG_USEC": "0"},
            {},
        ):
            with self.subTest(variables):
                self.assertIsNone(Notifier.from_environment(dict(variables), self.clock).watchdog_secs)

    def test_without_an_init_system_nothing_happens(self) -> None:
        Notifier.from_environment({}, self.clock).ready()

    def test_an_init_system_that_went_away_is_said_once(self) -> None:
        notifier = Notifier(str(self.path), None, self.clock)
        with self.assertLogs("nixfleet_agent.notify", "WARNING") as heard:
            notifier.watchdog()
            notifier.watchdog()
        self.assertEqual(len(heard.records), 1)
        self.assertTrue(heard.records[0].getMessage().endswith(": No such file or directory"))


if __name__ == "__main__":
    unittest.main()
