"""Answers that are hardly HTTP any more: an answer or a TransportError, within the deadline and the limit."""

from __future__ import annotations

import gzip
import time
import unittest

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nixfleet_agent.errors import TransportError
from nixfleet_agent.net.answers import replay_from, retry_after
from tests.net.base import NetTestCase
from tests.support.behaviours import Raw
from tests.support.tls import now

LIMIT = 4096
DEADLINE = 2.0

PACKED = gzip.compress(b"x" * 3000)
STATUS = st.sampled_from(
    [
        b"200 OK",
        b"204 No",
        b"304 Not",
        b"302 Found",
        b"100 Continue",
        b"101 Switch",
        b"999 ?",
        b"1 x",
        b"abc",
        b"",
        b"-200",
    ]
)
NUMBER = st.sampled_from(
    [b"0", b"2", b"-1", b"-5", b"+2", b"0x2", b"1e3", b"2, 2", b"2, 3", b"9" * 30, b"\xb2", b" ", b"", b"4097", b"1_0"]
)
HEADER = st.one_of(
    st.builds(lambda n: b"Content-Length: " + n, NUMBER),
    st.sampled_from(
        [
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: identity",
            b"Content-Encoding: gzip",
            b"Content-Encoding: \xff",
            b"Connection: close",
            b"Connection: upgrade",
            b'ETag: "a"\r\n folded',
            b"Retry-After: Mon, 1 Jan 99999999999999999999 00:00:00 GMT",
            b"X-Nixfleet-Replay-From: " + b"9" * 5000,
            b"Location: http://[",
            b"Set-Cookie: a=b; Max-Age=1e999; Expires=\xff",
            b"no colon",
            b": no name",
            b"\xff\xfe: x",
            b"\x00: \x00",
            b"X: " + b"y" * 70_000,
        ]
    ),
)
CHUNK = st.builds(lambda size, data: size + b"\r\n" + data + b"\r\n", NUMBER, st.binary(max_size=10))
BODY = st.one_of(
    st.binary(max_size=60),
    st.lists(CHUNK, max_size=4).map(b"".join),
    st.sampled_from(
        [b"", b"{}", PACKED, PACKED[:-4], PACKED * 2, b"0\r\n\r\n", b"x" * (LIMIT + 1), b"2\r\n{}\r\n0\r\n\r\n"]
    ),
)
VERSION = st.sampled_from([b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/2 ", b"HTTP/9.9 ", b"ICY ", b""])


class Http(NetTestCase):
    EXAMPLES = 120

    def test_answers_made_strange(self) -> None:
        server = self.serve()
        control_plane = self.connect(server)
        moment = now()

        @settings(max_examples=self.EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(VERSION, STATUS, st.lists(HEADER, max_size=5), BODY)
        def read(version: bytes, status: bytes, headers: list[bytes], body: bytes) -> None:
            head = b"".join(line + b"\r\n" for line in (version + status, *headers))
            server.route("GET", "/x", Raw(head + b"\r\n" + body))
            began = time.monotonic()
            try:
                answer = control_plane.get("/x", deadline=DEADLINE, limit=LIMIT)
            except TransportError as error:
                self.assertTrue(str(error).isprintable(), error)
                self.assertLess(len(str(error)), 4096)
            else:
                self.assertLessEqual(len(answer.body), LIMIT)
                self.assertTrue(answer.excerpt().isprintable())
                retry_after(answer, moment)
                replay_from(answer)
            self.assertLess(time.monotonic() - began, DEADLINE + 10)

        read()


if __name__ == "__main__":
    unittest.main()
