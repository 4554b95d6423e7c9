"""Slow, endless, inflated, broken and silent servers: each call ends in time, within its memory, with its reason."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
import tracemalloc
import unittest
import zlib
from unittest import mock

from nixfleet_agent.errors import TransportError
from nixfleet_agent.net.sockets import Route
from nixfleet_agent.proto.strict_json import BODY_LIMIT
from tests.net.base import NetTestCase
from tests.support.behaviours import Drip, Endless, Flood, GzipBomb, HalfBody, Hang, Raw, Reply, Reset
from tests.support.https_server import HttpsServer

MIB = 1024 * 1024
#: Seconds after which a call that should have ended long ago was not ended by what should end it: without that it would
#: take half a minute, or for ever.
LATE = 10.0


class Deadlines(NetTestCase):
    def test_a_slow_drip_does_not_stretch_the_deadline(self) -> None:
        server = self.serve()
        client = self.connect(server)
        for where in ("status", "headers", "body"):
            server.route("GET", "/v1/x", Drip(every=0.02, where=where))
            began = time.monotonic()
            with self.subTest(where=where):
                self.assertEqual("timeout", self.refused(client, "/v1/x", deadline=0.4).kind)
                self.assertLess(time.monotonic() - began, LATE)

    def test_a_silent_server_ends_with_the_deadline(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", Hang())
        began = time.monotonic()
        self.assertEqual("timeout", self.refused(self.connect(server), "/v1/x", deadline=0.3).kind)
        self.assertLess(time.monotonic() - began, LATE)

    def test_a_server_that_never_finishes_the_handshake_ends_with_the_connect_timeout(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            client = self.connect(None, f"https://127.0.0.1:{deaf.getsockname()[1]}", route=Route(connect_timeout=0.2))
            began = time.monotonic()
            self.assertEqual("timeout", self.refused(client, "/v1/x", deadline=30).kind)
            self.assertLess(time.monotonic() - began, LATE)

    def test_a_handshake_that_drips_is_ended_by_the_deadline(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            stop = threading.Event()

            def drip() -> None:
                peer, _ = deaf.accept()
                with peer:
                    # The header of a handshake record of 16 KiB, and then its content byte by byte.
                    peer.sendall(b"\x16\x03\x03\x40\x00")
                    while not stop.wait(0.02):
                        try:
                            peer.sendall(b"\x02")
                        except OSError:
                            return

            thread = threading.Thread(target=drip)
            thread.start()
            client = self.connect(None, f"https://127.0.0.1:{deaf.getsockname()[1]}", route=Route(connect_timeout=0.4))
            began = time.monotonic()
            self.assertEqual("timeout", self.refused(client, "/v1/x", deadline=30).kind)
            self.assertLess(time.monotonic() - began, LATE)
            stop.set()
            thread.join()

    def test_a_server_that_does_not_read_ends_with_the_deadline(self) -> None:
        server = self.serve()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=lambda: peers.append(self._secured(server, listener)))
            peers: list[ssl.SSLSocket] = []
            thread.start()
            client = self.connect(None, f"https://127.0.0.1:{listener.getsockname()[1]}")
            with self.assertRaises(TransportError) as caught:
                client.post_bytes("/v1/y", bytes(32 * MIB), deadline=0.5)
            thread.join()
            peers[0].close()
        self.assertEqual("timeout", caught.exception.kind)

    def test_a_large_request_to_a_slow_reader_goes_out_whole(self) -> None:
        server = self.serve()
        server.route("POST", "/v1/y", Reply(204))
        body = bytes(range(256)) * (32 * MIB // 256)
        self.assertEqual(204, self.connect(server).post_bytes("/v1/y", body, deadline=20).status)
        self.assertEqual(body, server.requests[0].body)

    def test_a_connection_that_nobody_accepts_ends_with_the_connect_timeout_or_the_abort(self) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            waiting = [socket.socket() for _ in range(4)]
            try:
                for each in waiting:
                    each.setblocking(False)
                    each.connect_ex(full.getsockname())
                client = self.connect(
                    None, f"https://127.0.0.1:{full.getsockname()[1]}", route=Route(connect_timeout=0.2)
                )
                began = time.monotonic()
                self.assertEqual("timeout", self.refused(client, "/v1/x", deadline=30).kind)
                self.assertLess(time.monotonic() - began, LATE)
                patient = self.connect(None, f"https://127.0.0.1:{full.getsockname()[1]}")
                timer = threading.Timer(0.1, patient.abort)
                timer.start()
                self.assertEqual("aborted", self.refused(patient, "/v1/x", deadline=30).kind)
                self.assertLess(time.monotonic() - began, LATE)
                timer.join()
            finally:
                for each in waiting:
                    each.close()

    def test_a_dead_first_address_leaves_time_for_the_next(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", Reply(200))
        with socket.create_server(("127.0.0.1", 0)) as closed:
            dead = closed.getsockname()
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in (dead, ("127.0.0.1", server.port))]
        with mock.patch("socket.getaddrinfo", return_value=found):
            self.assertEqual(200, self.connect(server).get("/v1/x", deadline=5).status)
        with mock.patch("socket.getaddrinfo", return_value=[]):
            self.assertEqual("dns", self.refused(self.connect(server), "/v1/x").kind)

    def _secured(self, server: HttpsServer, listener: socket.socket) -> ssl.SSLSocket:
        """One accepted connection after its handshake, never read."""
        peer, _ = listener.accept()
        return server.context.wrap_socket(peer, server_side=True)

    def test_a_connection_after_a_timeout_is_not_used_again(self) -> None:
        """The late answer to the first request would be taken for the answer to the second."""
        server = self.serve()
        server.route("GET", "/v1/slow", Reply(200, b'"late"', delay=0.3))
        server.route("GET", "/v1/x", Reply(200, b'"right"'))
        client = self.connect(server)
        self.refused(client, "/v1/slow", deadline=0.1)
        time.sleep(0.3)
        self.assertEqual(b'"right"', client.get("/v1/x", deadline=5).body)
        self.assertEqual(2, server.connections)


class Sizes(NetTestCase):
    def test_a_body_at_the_limit_passes_and_one_byte_more_does_not(self) -> None:
        server = self.serve()
        client = self.connect(server)
        for compressed in (False, True):
            server.route("GET", "/v1/x", Reply(200, b"[" * 5000, compressed=compressed))
            self.assertEqual(5000, len(client.get("/v1/x", deadline=5, limit=5000).body))
            self.assertEqual("too_large", self.refused(client, "/v1/x", limit=4999).kind)

    def test_an_endless_body_ends_at_the_limit(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", Endless())
        client = self.connect(server)
        peak = self._peak(lambda: self.assertEqual("too_large", self.refused(client, "/v1/x").kind))
        self.assertLess(peak, 4 * BODY_LIMIT)

    def test_a_gzip_bomb_ends_at_the_limit_within_four_times_its_memory(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", GzipBomb(100 * MIB))
        client = self.connect(server)
        self.assertEqual("too_large", self.refused(client, "/v1/x", limit=10).kind)  # compresses once, unmeasured
        peak = self._peak(lambda: self.assertEqual("too_large", self.refused(client, "/v1/x").kind))
        self.assertLess(peak, 4 * BODY_LIMIT)

    def test_an_announced_length_over_the_limit_is_not_even_read(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"))
        self.assertEqual("too_large", self.refused(self.connect(server), "/v1/x").kind)

    def test_the_next_call_after_a_refused_body_is_not_disturbed(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", Endless())
        server.route("GET", "/v1/y", Reply(200, b'"fine"'))
        client = self.connect(server)
        self.refused(client, "/v1/x")
        self.assertEqual(b'"fine"', client.get("/v1/y", deadline=5).body)

    def test_gzip_that_hardly_inflates_is_limited_as_it_comes(self) -> None:
        """Empty deflate blocks decompress to nothing: the received bytes have to count too."""
        packer = zlib.compressobj(0, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        body = packer.compress(b"") + b"".join(packer.flush(zlib.Z_FULL_FLUSH) + b"\0\0\0\xff\xff" * 2000 for _ in "ab")
        server = self.serve()
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
        server.route("GET", "/v1/x", Raw(head + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"))
        self.assertEqual("too_large", self.refused(self.connect(server), "/v1/x", limit=4096).kind)

    def test_gzip_of_every_size_around_a_piece_comes_out_whole(self) -> None:
        server = self.serve()
        client = self.connect(server)
        piece = 64 * 1024
        for size in (0, 1, piece - 1, piece, piece + 1, piece + 258, 2 * piece, 3 * piece + 7, 16 * piece):
            server.route("GET", "/v1/x", Reply(200, bytes(size), compressed=True))
            with self.subTest(size=size):
                self.assertEqual(bytes(size), client.get("/v1/x", deadline=5, signed=True).body)

    def test_headers_without_end_are_refused(self) -> None:
        server = self.serve()
        client = self.connect(server)
        many = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n"
        long = b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000 + b"\r\n\r\n"
        for data in (many, long):
            server.route("GET", "/v1/x", Raw(data))
            self.assertEqual("protocol", self.refused(client, "/v1/x").kind)

    def test_interim_answers_and_chunk_sizes_without_end_are_cut_off(self) -> None:
        server = self.serve()
        interim = Flood(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
        chunks = Flood(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;%s\r\nx\r\n" % (b"x" * 30_000))
        for flood, kinds in ((interim, ("too_large", "protocol")), (chunks, ("too_large",))):
            server.route("GET", "/v1/x", flood)
            # Later Pythons count interim answers themselves, and end the call sooner.
            self.assertIn(self.refused(self.connect(server), "/v1/x").kind, kinds)

    def test_session_tickets_without_end_end_the_connection(self) -> None:
        """OpenSSL deals with all that are there in one call, and looks at neither deadline nor shutdown meanwhile."""
        server = self.serve()
        server.context.num_tickets = 3_000
        server.route("GET", "/v1/x", Reply(200, b'"after the tickets"'))
        self.assertEqual("reset", self.refused(self.connect(server), "/v1/x").kind)
        server.context.num_tickets = 100
        self.assertEqual(b'"after the tickets"', self.connect(server).get("/v1/x", deadline=30).body)

    def _peak(self, call: object) -> int:
        """Most memory that Python had allocated at once during the call, beyond what it had before."""
        assert callable(call)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            call()
            return tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()


class BrokenAnswers(NetTestCase):
    def test_each_kind_of_broken_answer_has_its_reason(self) -> None:
        whole = gzip.compress(b"x" * 1000)
        gz = {"Content-Encoding": "gzip"}
        cases = (
            ("reset", Reset()),
            ("reset", HalfBody()),
            ("protocol", Raw(b"SSH-2.0-OpenSSH_9.6\r\n")),
            ("protocol", Raw(b"HTTP/1.1 two hundred\r\n\r\n")),
            ("protocol", Reply(200, b"not gzip at all", gz)),
            ("protocol", Reply(200, whole[:-12], gz)),
            ("protocol", Reply(200, whole + b"more", gz)),
            ("protocol", Reply(200, b"x", {"Content-Encoding": "br"})),
            ("protocol", Reply(200, b"x", {"Content-Encoding": "gzip, gzip"})),
            ("reset", Raw(b"HTTP/1.1 200 OK\r\n\r\nno length, and no proper end")),
            ("reset", Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")),
            ("reset", Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")),
        )
        server = self.serve()
        client = self.connect(server)
        for kind, behaviour in cases:
            server.route("GET", "/v1/x", behaviour)
            with self.subTest(behaviour=behaviour):
                self.assertEqual(kind, self.refused(client, "/v1/x").kind)

    def test_text_of_the_server_is_escaped_in_messages(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", Raw(b"\x1b[31mHTTP\x07\r\n\r\n"))
        message = str(self.refused(self.connect(server), "/v1/x"))
        self.assertNotIn("\x1b", message)
        self.assertNotIn("\r", message)

    def test_nobody_listening_is_told_as_refused_and_an_unknown_name_as_dns(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        self.assertEqual("refused", self.refused(self.connect(None, f"https://127.0.0.1:{port}"), "/v1/x").kind)
        self.assertEqual("dns", self.refused(self.connect(None, "https://nobody.invalid"), "/v1/x").kind)


class Abort(NetTestCase):
    def test_abort_wakes_the_calls_of_all_threads_within_a_second(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/agent/dispatch", Hang())
        server.route("GET", "/v1/drip", Drip(every=0.02))
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            client = self.connect(server)
            stuck = self.connect(None, f"https://127.0.0.1:{deaf.getsockname()[1]}")
            ends: list[tuple[str, float]] = []

            def call(one: object, path: str) -> None:
                try:
                    one.get(path, deadline=65)  # type: ignore[attr-defined]
                except TransportError as error:
                    ends.append((error.kind, time.monotonic()))

            jobs = ((client, "/v1/agent/dispatch"), (client, "/v1/agent/dispatch"), (client, "/v1/drip"), (stuck, "/"))
            threads = [threading.Thread(target=call, args=job) for job in jobs]
            for thread in threads:
                thread.start()
            while len(server.requests) < 3:
                time.sleep(0.005)
            began = time.monotonic()
            client.abort()
            stuck.abort()
            for thread in threads:
                thread.join()
        self.assertEqual(["aborted"] * 4, [kind for kind, _ in ends])
        self.assertLess(max(at for _, at in ends) - began, LATE)

    def test_calls_after_the_abort_fail_at_once(self) -> None:
        server = self.serve()
        server.route("GET", "/v1/x", json={})
        client = self.connect(server)
        client.get("/v1/x", deadline=5)
        client.abort()
        client.abort()
        self.assertEqual("aborted", self.refused(client, "/v1/x").kind)
        self.assertEqual(1, len(server.requests))


if __name__ == "__main__":
    unittest.main()
