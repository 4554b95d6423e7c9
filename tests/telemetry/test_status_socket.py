"""The commands' door to the running agent: private, stoppable, and not to be held open."""

from __future__ import annotations

import contextlib
import socket
import stat
import tempfile
import threading
import unittest
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from nixfleet_agent.errors import AgentError, ConfigError
from nixfleet_agent.telemetry import listener
from nixfleet_agent.telemetry.status_socket import SOCKET_NAME, AgentNotRunningError, StatusSocketWorker, ask
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.threads.shutdown import ShutdownToken


def refuse(_: object) -> object:
    raise ConfigError("not like this")


class StatusSocket(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.state_dir = Path(folder.name)

    @contextlib.contextmanager
    def serving(self) -> Iterator[ShutdownToken]:
        clock = SystemClock()
        shutdown = ShutdownToken(clock)
        handlers = {"status": lambda _: {"queue": 3}, "echo": lambda request: request["word"], "refuse": refuse}
        worker = StatusSocketWorker(shutdown, clock, self.state_dir, handlers)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            self.assertTrue(worker.listening.wait(30))
            yield shutdown
        finally:
            shutdown.set()
            thread.join(30)
            self.assertFalse(thread.is_alive())

    def test_an_answer_and_an_error(self) -> None:
        with self.serving():
            self.assertEqual(ask(self.state_dir, "status"), {"queue": 3})
            self.assertEqual(ask(self.state_dir, "echo", word="é\n"), "é\n")
            with self.assertRaisesRegex(AgentError, "not like this"):
                ask(self.state_dir, "refuse")
            with self.assertRaisesRegex(AgentError, "requests are: echo, refuse, status"):
                ask(self.state_dir, "reboot")

    def test_only_its_owner_can_open_it(self) -> None:
        with self.serving():
            mode = (self.state_dir / SOCKET_NAME).stat().st_mode
            self.assertTrue(stat.S_ISSOCK(mode))
            self.assertEqual(stat.S_IMODE(mode), 0o600)

    def test_a_stale_socket_is_replaced(self) -> None:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as dead:
            dead.bind(str(self.state_dir / SOCKET_NAME))
        with self.assertRaises(AgentNotRunningError):
            ask(self.state_dir, "status")
        with self.serving():
            self.assertEqual(ask(self.state_dir, "status"), {"queue": 3})
        self.assertEqual([path.name for path in self.state_dir.iterdir()], [SOCKET_NAME])

    def test_garbage_gets_the_list_of_requests(self) -> None:
        for garbage in (
            b"\n",
            b"{}\n",
            b"[1]\n",
            b"\xff\xfe\n",
            b'{"request": []}\n',
            b"[" * 4000 + b"\n",
            b"x" * 8192,
        ):
            with (
                self.subTest(garbage[:10]),
                self.serving(),
                contextlib.closing(socket.socket(socket.AF_UNIX)) as caller,
            ):
                caller.settimeout(5)
                caller.connect(str(self.state_dir / SOCKET_NAME))
                caller.sendall(garbage)
                self.assertIn(b"requests are", caller.recv(4096))

    def test_a_state_directory_with_a_path_longer_than_an_address(self) -> None:
        self.state_dir = self.state_dir / ("d" * 120)
        self.state_dir.mkdir()
        with self.serving():
            self.assertEqual(ask(self.state_dir, "status"), {"queue": 3})

    def test_nobody_answers(self) -> None:
        with self.assertRaisesRegex(
            AgentNotRunningError, f"no agent answers at {self.state_dir}/agent.sock: No such file"
        ):
            ask(self.state_dir, "status")
        with self.assertRaises(AgentNotRunningError):
            ask(self.state_dir / "missing", "status")

    def test_a_silent_caller_holds_the_door_only_for_the_deadline(self) -> None:
        with self.serving(), contextlib.closing(socket.socket(socket.AF_UNIX)) as silent:
            silent.settimeout(30)
            with mock.patch.object(listener, "CALL_DEADLINE", 0.1):
                silent.connect(str(self.state_dir / SOCKET_NAME))
                self.assertEqual(silent.recv(1), b"")
            # Not under the short deadline, within which a busy machine might not hear out an honest caller either.
            self.assertEqual(ask(self.state_dir, "status"), {"queue": 3})

    def test_shutdown_wakes_the_listener_though_nobody_calls(self) -> None:
        with self.serving() as shutdown:
            shutdown.set()


if __name__ == "__main__":
    unittest.main()
