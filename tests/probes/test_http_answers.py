"""What an http probe takes for a pass: where redirects lead, and the body."""

from __future__ import annotations

import gzip
import time
import tracemalloc
import unittest
from typing import Any

from tests.probes.http_case import HttpCase, probe
from tests.probes.support import answer, say

GZIP = "Content-Encoding: gzip"


class Redirects(HttpCase):
    def redirector(self, hops: int) -> Any:
        def handler(connection: Any, request: str) -> None:
            hop = int(request.split(" ")[1].lstrip("/") or 0)
            if hop < hops:
                connection.sendall(answer("302 Found", b"x", f"Location: /{hop + 1}"))
            else:
                connection.sendall(answer())

        return handler

    def test_ten_are_followed_and_the_eleventh_is_not(self) -> None:
        server = self.serve(self.redirector(10))
        self.assertTrue(probe(server.url()).passed)
        self.assertEqual(len(server.requests), 11)
        server = self.serve(self.redirector(11))
        self.assert_fails(probe(server.url()), "more than 10 redirects")
        self.assertEqual(len(server.requests), 11)

    def test_a_loop_ends(self) -> None:
        self.assert_fails(probe(self.serve(self.redirector(10**9)).url()), "more than 10 redirects")

    def test_an_expected_redirect_is_not_followed(self) -> None:
        server = self.serve(self.redirector(10**9))
        self.assertTrue(probe(server.url(), expect_status=302).passed)
        self.assertEqual(len(server.requests), 1)

    def test_only_http_and_https_are_followed(self) -> None:
        for location in ("file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1/"):
            server = self.serve(say(answer("302 Found", b"", f"Location: {location}")))
            self.assert_fails(probe(server.url()), "not http or https")

    def test_the_body_of_a_redirect_is_not_read(self) -> None:
        def handler(connection: Any, request: str) -> None:
            if request.startswith("GET /next"):
                connection.sendall(answer())
                return
            connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 1000000000000\r\n\r\n")
            connection.recv(1)  # the probe must not wait for a body that never comes

        began = time.monotonic()
        self.assertTrue(probe(self.serve(handler).url()).passed)
        self.assert_quick(began, 2.0)

    def test_a_place_in_letters_that_are_not_ascii_is_utf8(self) -> None:
        server = self.serve(
            lambda connection, request: connection.sendall(
                answer() if " /gr%C3%BCn " in request else answer("302 Found", b"", "Location: /grÃ¼n")
            )
        )
        self.assertTrue(probe(server.url()).passed)

    def test_a_cookie_is_kept_on_the_way(self) -> None:
        def login(connection: Any, request: str) -> None:
            if "Cookie: session=1" in request:
                connection.sendall(answer())
            else:
                connection.sendall(answer("302 Found", b"", "Location: /", "Set-Cookie: session=1"))

        server = self.serve(login)
        self.assertTrue(probe(server.url()).passed)
        self.assertTrue(probe(server.url()).passed)
        self.assertEqual(len(server.requests), 4, "and forgotten after it")

    def test_credentials_do_not_travel_to_where_a_redirect_points(self) -> None:
        target = self.serve(say(answer()))
        server = self.serve(say(answer("302 Found", b"", f"Location: {target.url()}")))
        self.assertTrue(probe(f"http://user:secret@127.0.0.1:{server.port}/").passed)
        self.assertIn("Authorization", server.requests[0])
        self.assertNotIn("Authorization", target.requests[0])


class Body(HttpCase):
    def test_the_text_is_found_also_across_two_reads(self) -> None:
        body = b"x" * 8189 + "grün".encode() + b"y" * 100
        self.assertTrue(probe(self.serve(say(answer(body=body))).url(), body_contains="grün").passed)

    def test_a_body_without_it_fails(self) -> None:
        outcome = probe(self.serve(say(answer(body=b"down"))).url(), body_contains="up")
        self.assert_fails(outcome, "'up' is not in the first 4 bytes")

    def test_only_the_first_64_kib_count(self) -> None:
        at_the_end = b"x" * (65536 - 2) + b"up"
        self.assertTrue(probe(self.serve(say(answer(body=at_the_end))).url(), body_contains="up").passed)
        one_too_far = b"x" * (65536 - 1) + b"up"
        self.assert_fails(probe(self.serve(say(answer(body=one_too_far))).url(), body_contains="up"), "65536 bytes")

    def test_the_body_is_not_read_unless_it_is_asked_for(self) -> None:
        def headers_only(connection: Any, request: str) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
            connection.recv(1)

        self.assertTrue(probe(self.serve(headers_only).url()).passed)

    def test_the_text_is_found_also_across_two_chunks(self) -> None:
        raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nu\r\n1\r\np\r\n0\r\n\r\n"
        self.assertTrue(probe(self.serve(say(raw)).url(), body_contains="up").passed)

    def test_a_packed_body_is_unpacked_within_the_limit(self) -> None:
        packed = gzip.compress(b"all is up")
        self.assertTrue(probe(self.serve(say(answer("200 OK", packed, GZIP))).url(), body_contains="up").passed)
        self.assert_fails(
            probe(self.serve(say(answer("200 OK", b"all is up", GZIP))).url(), body_contains="up"), "damaged"
        )
        self.assert_fails(
            probe(self.serve(say(answer("200 OK", packed[:-9], GZIP))).url(), body_contains="up"), "cut short"
        )
        twice = gzip.compress(packed)
        self.assert_fails(
            probe(self.serve(say(answer("200 OK", twice, f"{GZIP}, gzip"))).url(), body_contains="up"), "encoding"
        )
        server = self.serve(say(answer("200 OK", gzip.compress(b"\0" * (16 << 20)), GZIP)))
        tracemalloc.start()
        try:
            self.assert_fails(probe(server.url(), body_contains="up"), "65536 bytes")
            self.assertLess(tracemalloc.get_traced_memory()[1], 4_000_000)
        finally:
            tracemalloc.stop()

    def test_a_body_cut_short_fails_whether_or_not_the_text_has_come(self) -> None:
        for what_came in (b"half", b"half of it is up"):
            raw = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + what_came
            self.assert_fails(probe(self.serve(say(raw)).url(), body_contains="up"), "IncompleteRead")

    def test_a_server_that_hangs_behind_the_text_has_not_passed(self) -> None:
        def hang(connection: Any, request: str) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + b"all is up" + b"x" * 9000)
            connection.recv(1)

        outcome = probe(self.serve(hang).url(), body_contains="up", timeout=0.3)
        self.assert_fails(outcome, "no full answer within 0.3 s")

    def test_a_negative_chunk_size_is_no_way_past_the_limit(self) -> None:
        def flood(connection: Any, request: str) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
            for _ in range(500):
                connection.sendall(b"x" * 65536)

        server = self.serve(flood)
        tracemalloc.start()
        try:
            self.assert_fails(probe(server.url(), body_contains="up"), "IncompleteRead")
            self.assertLess(tracemalloc.get_traced_memory()[1], 2_000_000)
        finally:
            tracemalloc.stop()

    def test_an_endless_body_costs_no_memory(self) -> None:
        def endless(connection: Any, request: str) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                connection.sendall(b"x" * 65536)

        server = self.serve(endless)
        probe(server.url(), body_contains="up")
        tracemalloc.start()
        try:
            began = time.monotonic()
            self.assert_fails(probe(server.url(), body_contains="up"), "65536 bytes")
            self.assertLess(tracemalloc.get_traced_memory()[1], 2_000_000)
            self.assert_quick(began, 2.0)
        finally:
            tracemalloc.stop()


if __name__ == "__main__":
    unittest.main()
