"""Requests that no agent sends: each gets an answer in one line, on its own connection, and nothing else happens."""

from __future__ import annotations

import json
import logging
import unittest

from nixfleet_agent.local_cp.server import BODY_LIMIT
from tests.local_cp.scripted import ControlPlaneCase

LOGGER = "nixfleet_agent.local_cp"


class BadRequests(ControlPlaneCase):
    def setUp(self) -> None:
        super().setUp()
        self.publish("aaa1", ("web-02",))
        self.web = self.agent("web-01")
        logged = self.enterContext(self.assertLogs(LOGGER, logging.DEBUG))
        # An error here is a traceback in the control plane's log.
        self.addCleanup(lambda: self.assertEqual([r.msg for r in logged.records if r.levelno >= logging.ERROR], []))
        logging.getLogger(LOGGER).debug("the test begins")

    def raw(self, head: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a request whose bytes are these."""
        connection = self.web.connect()
        self.addCleanup(connection.close)
        connection.connect()
        connection.send(f"{head}\r\nHost: x\r\n\r\n".encode() + body)
        answer = connection.response_class(connection.sock)
        answer.begin()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def assert_refused(self, status: int, head: str, body: bytes = b"") -> None:
        found, headers, answer = self.raw(head, body)
        self.assertEqual(found, status, answer)
        self.assertEqual(headers["connection"], "close")
        self.assertEqual(list(json.loads(answer)), ["error"])

    def test_a_wait_that_is_not_a_number_would_never_end(self) -> None:
        for wait in ("nan", "-nan", "soon"):
            with self.subTest(wait):
                self.assertEqual(self.web.call("GET", f"/v1/agent/dispatch?wait={wait}").status, 400)
        self.assertEqual(self.web.call("GET", "/v1/agent/dispatch?wait=-inf").status, 204)

    def test_a_body_without_a_length_that_can_be_read(self) -> None:
        for line in ("Accept: */*", "Content-Length: -1", "Content-Length: 1e3", "Transfer-Encoding: chunked"):
            with self.subTest(line):
                self.assert_refused(411, f"POST /v1/enroll HTTP/1.1\r\nConnection: close\r\n{line}")

    def test_a_length_beyond_all_bounds(self) -> None:
        for length in (f"{BODY_LIMIT + 1}", "9" * 19, "9" * 5000):
            with self.subTest(length[:20]):
                body = bytes(min(int(length[:9]), 2 * BODY_LIMIT))
                self.assert_refused(413, f"POST /v1/agent/events HTTP/1.1\r\nContent-Length: {length}", body)

    def test_a_client_that_sends_too_much_still_reads_why_it_is_refused(self) -> None:
        reply = self.web.call("POST", "/v1/agent/events", b" " * (8 * BODY_LIMIT))
        self.assertEqual(reply.status, 413)
        self.assertIn("1 MiB", reply.json()["error"])

    def test_the_body_of_a_get_is_not_the_next_request(self) -> None:
        hidden = b"GET /v1/fleet.resolved HTTP/1.1\r\n\r\n"
        for line in (f"Content-Length: {len(hidden)}", "Transfer-Encoding: chunked"):
            with self.subTest(line):
                status, headers, _ = self.raw(f"GET /v1/fleet.resolved/sig HTTP/1.1\r\n{line}", hidden)
                self.assertEqual((status, headers["connection"]), (200, "close"))

    def test_an_address_that_can_not_be_read(self) -> None:
        self.assert_refused(400, "GET http://[ HTTP/1.1")

    def test_a_method_that_the_protocol_does_not_have(self) -> None:
        for method in ("PUT", "DELETE", "OPTIONS"):
            with self.subTest(method):
                self.assert_refused(501, f"{method} /v1/fleet.resolved HTTP/1.1")

    def test_what_is_no_http(self) -> None:
        self.assert_refused(400, "\x16\x03\x01 \x00 \x00")
        self.assert_refused(505, "GET / HTTP/9.9")


if __name__ == "__main__":
    unittest.main()
