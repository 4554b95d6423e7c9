"""The tcp runner against real sockets: open, closed, filtered, IPv6, names that hang."""

from __future__ import annotations

import socket
import threading
import time
import unittest
from unittest import mock

from nixfleet_agent.probes.declarations import TcpDecl
from nixfleet_agent.probes.runners import RunnerOutcome, run
from nixfleet_agent.probes.runners.sockets import PlainSocket
from tests.probes.support import ProbeCase, context, descriptors, stop_when


def probe(port: int, host: str = "127.0.0.1", timeout: float = 2.0) -> RunnerOutcome:
    return run(TcpDecl(name="p", host=host, port=port, connect_timeout=timeout), context())


class Connections(ProbeCase):
    def listen(self, family: socket.AddressFamily = socket.AF_INET, backlog: int = 8) -> int:
        listener = socket.socket(family)
        self.addCleanup(listener.close)
        listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listener.listen(backlog)
        port: int = listener.getsockname()[1]
        return port

    def full_backlog(self) -> int:
        """A port whose kernel drops every further attempt, as a firewall does."""
        port = self.listen(backlog=0)
        for _ in range(3):
            waiting = socket.socket()
            self.addCleanup(waiting.close)
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        return port

    def test_an_open_port_passes(self) -> None:
        self.assertTrue(probe(self.listen()).passed)

    def test_ipv6(self) -> None:
        port = self.listen(socket.AF_INET6)
        self.assertTrue(probe(port, "::1").passed)
        self.assertFalse(probe(port, "127.0.0.1").passed)

    def test_a_closed_port_fails(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        outcome = probe(port)
        self.assertEqual(outcome.failure_reason, f"can't connect to 127.0.0.1 port {port}: Connection refused")

    def test_a_connection_to_oneself_is_a_closed_port(self) -> None:
        """What the kernel does now and then, by giving a port of its own range to both ends."""
        real = PlainSocket.connect

        def from_the_same_port(sock: PlainSocket, address: tuple[str, int]) -> None:
            sock.bind(address)
            real(sock, address)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with mock.patch.object(PlainSocket, "connect", from_the_same_port):
            outcome = probe(port)
        self.assertEqual(outcome.failure_reason, f"can't connect to 127.0.0.1 port {port}: Connection refused")

    def test_a_filtered_port_fails_when_time_is_up(self) -> None:
        port = self.full_backlog()
        began = time.monotonic()
        outcome = probe(port, timeout=0.4)
        self.assert_quick(began, 0.8)
        self.assertEqual(outcome.failure_reason, f"no connection to 127.0.0.1 port {port} within 0.4 s")

    def test_an_address_that_swallows_everything_leaves_time_for_the_next(self) -> None:
        port, dead = self.listen(), self.full_backlog()
        tcp = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        both = [(*tcp, ("127.0.0.1", dead)), (*tcp, ("127.0.0.1", port))]
        with mock.patch("nixfleet_agent.net.resolver.Resolver.addresses", return_value=both):
            self.assertTrue(probe(port, "both.example", timeout=0.6).passed)

    def test_being_stopped_ends_a_connection_attempt_at_once(self) -> None:
        port = self.full_backlog()
        ctx = context()
        timer = threading.Timer(0.1, ctx.cancel.set)
        timer.start()
        began = time.monotonic()
        outcome = run(TcpDecl(name="p", port=port, connect_timeout=30), ctx)
        timer.join()
        self.assert_quick(began, 1.0)
        self.assertFalse(outcome.passed)

    def test_being_stopped_leaves_the_other_addresses_alone(self) -> None:
        dead = self.full_backlog()
        three = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", dead))] * 3
        ctx = context()
        timer = threading.Timer(0.1, ctx.cancel.set)
        timer.start()
        began = time.monotonic()
        with mock.patch("nixfleet_agent.net.resolver.Resolver.addresses", return_value=three):
            self.assertFalse(run(TcpDecl(name="p", host="three.example", port=1, connect_timeout=30), ctx).passed)
        timer.join()
        self.assert_quick(began, 1.0)

    def test_no_run_leaves_a_descriptor(self) -> None:
        open_port, filtered = self.listen(), self.full_backlog()
        probe(open_port)
        before = descriptors()
        for _ in range(5):
            probe(open_port)
            probe(1)
            probe(filtered, timeout=0.02)
        self.assertEqual(descriptors(), before)


class Names(ProbeCase):
    def test_localhost_is_looked_up(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.assertTrue(probe(listener.getsockname()[1], "localhost").passed)

    def test_names_that_can_not_be_looked_up_fail_with_the_reason(self) -> None:
        self.assertIn("can't look up no-such-host.invalid", probe(1, "no-such-host.invalid").failure_reason or "")
        self.assertIn("not a valid host name", probe(1, "a" * 70 + ".example").failure_reason or "")

    def test_a_lookup_that_could_not_begin_is_not_waited_for_by_the_next(self) -> None:
        ctx, listener = context(), socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        decl = TcpDecl(name="p", host="localhost", port=listener.getsockname()[1], connect_timeout=30)
        with mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
            outcome = run(decl, ctx)
        words = f"can't connect to localhost port {decl.port}: can't look up localhost: can't start new thread"
        self.assertEqual(outcome.failure_reason, words)
        self.assertTrue(run(decl, ctx).passed)

    def test_a_lookup_that_hangs_delays_nothing_and_is_not_started_twice(self) -> None:
        released, started = threading.Event(), []
        real = socket.getaddrinfo

        def hang(host: str, *args: object, **options: object) -> object:
            if host != "hanging.example" or options.get("flags"):
                return real(host, *args, **options)  # type: ignore[arg-type]
            started.append(host)
            released.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        ctx = context()
        with mock.patch("socket.getaddrinfo", hang):
            began = time.monotonic()
            for _ in range(3):
                outcome = run(TcpDecl(name="p", host="hanging.example", port=1, connect_timeout=0.1), ctx)
                self.assertEqual(outcome.failure_reason, "no connection to hanging.example port 1 within 0.1 s")
            self.assert_quick(began, 1.0)
            self.assertEqual(started, ["hanging.example"])

            thread = stop_when(lambda: True, ctx.cancel)
            began = time.monotonic()
            outcome = run(TcpDecl(name="p", host="hanging.example", port=1, connect_timeout=30), ctx)
            self.assert_quick(began, 1.0)
            self.assertFalse(outcome.passed)
            thread.join()
            released.set()
        for thread in threading.enumerate():
            if thread.name == "name-lookup":
                thread.join(30)
                self.assertTrue(thread.daemon)


if __name__ == "__main__":
    unittest.main()
