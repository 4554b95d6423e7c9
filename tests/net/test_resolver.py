"""A name server that does not answer holds up nobody: not past the deadline of a call, and not past its abort."""

from __future__ import annotations

import socket
import threading
import unittest
from unittest import mock

from nixfleet_agent.errors import TransportError
from nixfleet_agent.net.client import ControlPlane

URL = "https://control-plane.invalid"
_REAL = socket.getaddrinfo


class NameServerHangs(unittest.TestCase):
    """``getaddrinfo`` of the control plane's name blocks until the test ends."""

    def setUp(self) -> None:
        self.asked, self.released = threading.Event(), threading.Event()
        self.lookups = 0

        def hang(host: str, *arguments: object, **options: object) -> object:
            if options.get("flags") or host != "control-plane.invalid":
                return _REAL(host, *arguments, **options)  # type: ignore[arg-type]
            self.lookups += 1
            self.asked.set()
            self.released.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        self.enterContext(mock.patch("socket.getaddrinfo", hang))
        self.addCleanup(self._join)
        self.addCleanup(self.released.set)
        self.control_plane = ControlPlane(URL)
        self.addCleanup(self.control_plane.close)

    def _join(self) -> None:
        for thread in threading.enumerate():
            if thread.name == "name-lookup":
                thread.join(30)

    def failure(self, deadline: float) -> TransportError:
        with self.assertRaises(TransportError) as caught:
            self.control_plane.get("/v1/x", deadline=deadline)
        return caught.exception

    def test_a_call_ends_with_its_deadline_and_the_next_starts_no_second_lookup(self) -> None:
        for _ in range(2):
            failure = self.failure(1.0)
            self.assertEqual(failure.kind, "timeout")
            self.assertIn("can't look up control-plane.invalid", str(failure))
        self.assertEqual(self.lookups, 1)

    def test_a_call_ends_with_the_abort(self) -> None:
        def abort() -> None:
            self.asked.wait(30)
            self.control_plane.abort()

        aborter = threading.Thread(target=abort)
        aborter.start()
        self.assertEqual(self.failure(30.0).kind, "aborted")
        aborter.join(30)
        self.assertFalse(self.released.is_set(), "the lookup still hangs")

    def test_what_the_name_server_says_in_the_end_is_the_reason(self) -> None:
        def answer() -> None:
            self.asked.wait(30)
            self.released.set()

        answerer = threading.Thread(target=answer)
        answerer.start()
        failure = self.failure(30.0)
        answerer.join(30)
        self.assertEqual(failure.kind, "dns")
        self.assertIn("Temporary failure in name resolution", str(failure))


if __name__ == "__main__":
    unittest.main()
