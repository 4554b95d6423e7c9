"""The explicit proxy: CONNECT, TLS from end to end with the same checks, and a clear line for each way to fail."""

from __future__ import annotations

import socket
import threading
import unittest
import unittest.mock
from collections.abc import Callable

from nixfleet_agent.config.proxy import Proxy, ignored_variables, parse_proxy
from nixfleet_agent.errors import ConfigError
from nixfleet_agent.net import sockets
from nixfleet_agent.net.budget import CallBudget
from nixfleet_agent.net.proxy import open_tunnel
from nixfleet_agent.net.resolver import Resolver
from nixfleet_agent.net.sockets import Route
from nixfleet_agent.net.tls import TlsContext
from nixfleet_agent.threads.cancel import CancelToken
from nixfleet_agent.threads.clock import SystemClock
from tests.net.base import NetTestCase
from tests.support.behaviours import Reply
from tests.support.tls import Authority


class ConnectProxy:
    """A proxy in this process: one thread a connection; ``answer`` replaces its yes."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n") -> None:
        self.answer = answer
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for side in self._open:
            try:
                side.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join()
        for side in (self._listener, *self._open):
            side.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            self._start(lambda client=client: self._serve(client))

    def _start(self, body: Callable[[], None]) -> None:
        thread = threading.Thread(target=body)
        self._threads.append(thread)
        thread.start()

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = client.recv(1)
            if not piece:
                return
            head += piece
        self.asked.append(head)
        host, _, port = head.split()[1].decode().rpartition(":")
        client.sendall(self.answer)
        if b" 200 " not in self.answer:
            client.shutdown(socket.SHUT_RDWR)
            return
        server = socket.create_connection((host.strip("[]"), int(port)))
        self._open.append(server)
        self._start(lambda: self._pump(server, client))
        self._pump(client, server)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


class Tunnel(NetTestCase):
    def through(self, **options: bytes) -> tuple[ConnectProxy, Route]:
        proxy = ConnectProxy(**options)
        self.addCleanup(proxy.close)
        return proxy, Route(parse_proxy(f"http://127.0.0.1:{proxy.port}"))

    def test_requests_go_through_it_and_it_sees_the_address_alone(self) -> None:
        server = self.serve()
        server.route("POST", "/v1/y", Reply(204))
        proxy, route = self.through()
        client = self.connect(server, route=route)
        for _ in range(3):
            self.assertEqual(204, client.post("/v1/y", {"secret": 1}, deadline=5).status)
        self.assertEqual("web-01", server.requests[0].client_name)
        authority = f"127.0.0.1:{server.port}".encode()
        self.assertEqual([b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (authority, authority)], proxy.asked)

    def test_what_follows_its_answer_belongs_to_tls_however_the_answer_comes(self) -> None:
        for answer in (
            b"HTTP/1.1 200 OK\n\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nVia: " + b"x" * 9000 + b"\r\n\r\n",
        ):
            for size in (1, 3, 4096):
                ours, theirs = socket.socketpair()
                with self.subTest(answer[:20], size=size), ours, theirs:
                    ours.setblocking(False)
                    stream = answer + b"\x16\x03TLS"
                    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
                    sender = threading.Thread(
                        target=lambda out=theirs, them=pieces: [out.sendall(each) for each in them]
                    )
                    sender.start()
                    budget = CallBudget(SystemClock(), CancelToken())
                    budget.start(30, 1 << 20)
                    open_tunnel(ours, Proxy("proxy", 1), "cp", 443, budget)
                    sender.join()
                    self.assertEqual(ours.recv(100), b"\x16\x03TLS")

    def test_the_server_behind_it_is_checked_as_without(self) -> None:
        _, route = self.through()
        stranger = self.serve(authority=Authority("another CA"))
        self.assertIn("not in ca_cert", str(self.refused(self.connect(stranger, route=route), "/v1/x")))
        other = self.serve(cert={"addresses": (), "names": ("cp.example",)})
        self.assertIn("check control_plane_url", str(self.refused(self.connect(other, route=route), "/v1/x")))

    def test_the_name_that_is_checked_is_the_control_planes_and_not_the_proxys(self) -> None:
        server = self.serve(cert={"addresses": (), "names": ("localhost",)})
        server.route("GET", "/v1/x", Reply(204))
        _, route = self.through()
        client = self.connect(server, f"https://localhost:{server.port}", route=route)
        self.assertEqual(204, client.get("/v1/x", deadline=5).status)

    def test_each_way_to_fail_is_one_line_that_names_the_proxy(self) -> None:
        server = self.serve()
        cases = (
            (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "proxy", "password"),
            (b"HTTP/1.1 403 No\x1b[2J\r\n\r\n", "proxy", "allow CONNECT"),
            (b"HTTP/1.0 502 Bad Gateway\r\n\r\n", "proxy", "refuses to connect"),
            (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "proxy", "not answer as an HTTP proxy"),
            (b"HTTP/1.1 403 " + b"x" * 20_000 + b"\r\n\r\n", "proxy", "KiB of headers"),
            (b"", "reset", "closed the connection"),
        )
        for answer, kind, words in cases:
            with self.subTest(answer=answer[:30]):
                _, route = self.through(answer=answer)
                error = self.refused(self.connect(server, route=route), "/v1/x")
                self.assertEqual(kind, error.kind)
                self.assertIn(words, str(error))
                self.assertIn("proxy 127.0.0.1 port", str(error))
                self.assertNotIn("\x1b", str(error))
        self.assertEqual([], server.requests)

    def test_a_proxy_that_is_away_or_hangs_ends_with_the_call(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            route = Route(Proxy("127.0.0.1", deaf.getsockname()[1]))
            self.assertEqual(
                "timeout", self.refused(self.connect(self.serve(), route=route), "/v1/x", deadline=0.3).kind
            )
        self.assertEqual("refused", self.refused(self.connect(self.serve(), route=route), "/v1/x").kind)


class Configured(unittest.TestCase):
    def test_a_proxy_is_a_host_and_a_port_and_nothing_else(self) -> None:
        self.assertEqual(Proxy("proxy.example", 3128), parse_proxy("http://proxy.example:3128/"))
        self.assertEqual(Proxy("::1", 8080), parse_proxy("http://[::1]:8080"))
        for wrong in (
            "proxy:3128",
            "https://proxy:3128",
            "socks5://proxy:1080",
            "http://proxy",
            "http://proxy:0",
            "http://proxy:99999",
            "http://u:p@proxy:3128",
            "http://proxy:3128/pac",
            "http://:3128",
            "http://[::1:3128",
            "",
        ):
            with self.subTest(wrong=wrong), self.assertRaises(ConfigError) as caught:
                parse_proxy(wrong)
            self.assertNotIn(":p@", str(caught.exception))

    def test_variables_that_others_obey_are_named(self) -> None:
        self.assertEqual(
            ["HTTPS_PROXY"], ignored_variables({"HTTPS_PROXY": "http://x:1", "all_proxy": "", "HOME": "/"})
        )


class DeadConnections(unittest.TestCase):
    def test_the_kernel_is_asked_to_find_out(self) -> None:
        cancel = CancelToken()
        self.addCleanup(cancel.set)
        budget = CallBudget(SystemClock(), cancel)
        budget.start(5, 1000)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            where = sockets.Endpoint("127.0.0.1", port, lambda: TlsContext(None, None), Route(), Resolver())
            raw = sockets.connect(where, budget)
            self.addCleanup(raw.close)
            tcp = socket.IPPROTO_TCP
            self.assertEqual(1, raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            self.assertEqual(10, raw.getsockopt(tcp, socket.TCP_KEEPIDLE))
            self.assertEqual(5, raw.getsockopt(tcp, socket.TCP_KEEPINTVL))
            self.assertEqual(3, raw.getsockopt(tcp, socket.TCP_KEEPCNT))
            self.assertEqual(7000, raw.getsockopt(tcp, socket.TCP_USER_TIMEOUT))

    def test_where_there_is_no_such_option_a_connection_is_made_all_the_same(self) -> None:
        with socket.socket() as raw, unittest.mock.patch.object(socket, "TCP_USER_TIMEOUT", None, create=True):
            sockets._notice_death(raw)
            self.assertEqual(1, raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))


if __name__ == "__main__":
    unittest.main()
