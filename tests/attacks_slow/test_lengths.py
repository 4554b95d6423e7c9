"""Answers of the wrong size, with strange headers, and that lead elsewhere."""

from __future__ import annotations

import gzip
import unittest
from typing import Any
from unittest import mock

from nixfleet_agent.artifacts import fetch
from nixfleet_agent.runtime.workers import heartbeat, longpoll
from tests.attacks.case import AttackCase
from tests.attacks.liar import DISPATCH, EVENTS, FLEET, HEARTBEAT
from tests.support.behaviours import Behaviour, CloseSilently, Drip, Endless, GzipBomb, HalfBody, Raw, Reply, Reset
from tests.support.https_server import HttpsServer

MIB = 1024 * 1024


class Sizes(AttackCase):
    def setUp(self) -> None:
        super().setUp()
        # The real deadlines are minutes; what is shown is that there is one, and what comes after it.
        # Short only where slowness is the attack: a busy machine takes a second for an honest answer.
        seconds = 0.5 if "slow" in self._testMethodName else 20.0
        self.enterContext(mock.patch.object(fetch, "BODY_DEADLINE", seconds))
        self.enterContext(mock.patch.object(fetch, "SIGNATURE_DEADLINE", seconds))
        self.enterContext(mock.patch.object(longpoll, "GRACE", seconds))
        self.enterContext(mock.patch.object(heartbeat, "DEADLINE", seconds))
        self.enterContext(mock.patch.object(heartbeat, "HANDSHAKE_DEADLINE", seconds))

    def order(self) -> None:
        self.liar.dispatch(self.rollout_id, self.closure)

    def test_decompression_bombs(self) -> None:
        self.start()
        for path, size in ((self.rollout_of("sig"), 8 * MIB), (self.rollout_of(""), 40 * MIB)):
            with self.attempt(f"{size // MIB} MiB of {path}"):
                self.publish()
                place = self.rollout + path
                self.liar.lies["GET", place] = GzipBomb(size)
                with mock.patch.object(fetch, "BODY_DEADLINE", 20.0):
                    self.assert_kept("too_large", self.order)
        nested = gzip.compress(gzip.compress(bytes(20 * MIB)))
        for name, headers in {
            "nested": {"Content-Encoding": "gzip, gzip"},
            "another": {"Content-Encoding": "br"},
        }.items():
            with self.attempt(f"{name} encoding"):
                self.publish()
                self.liar.lies["GET", self.rollout] = Reply(200, nested, headers)
                self.assert_kept("protocol", self.order)
        for path, method in ((DISPATCH, "GET"), (HEARTBEAT, "POST")):
            with self.attempt(path):
                self.liar.lies[method, path] = GzipBomb(8 * MIB)
                self.until_outcome(path, "too_large")
        self.assert_only_delayed()

    def test_endless_bodies(self) -> None:
        self.start()
        with self.attempt("a signature without end"):
            self.publish()
            self.liar.lies["GET", self.rollout + "/sig"] = Endless()
            self.assert_kept("too_large", self.order)
        for path, method in ((DISPATCH, "GET"), (HEARTBEAT, "POST")):
            with self.attempt(path):
                self.liar.lies[method, path] = Endless()
                self.until_outcome(path, "too_large")
        self.assert_only_delayed()

    def test_slow_bodies(self) -> None:
        self.start()
        for where in ("body", "headers", "status"):
            with self.attempt(f"a manifest, drop by drop: its {where}"):
                self.publish()
                self.liar.lies["GET", self.rollout] = Drip(0.05, where)
                self.assert_kept("timeout", self.order)
        with self.attempt("a heartbeat's answer"):
            self.liar.lies["POST", HEARTBEAT] = Drip(0.05)
            self.until_outcome(HEARTBEAT, "timeout")
        self.start(tuning=quick(self.host.config.tuning))
        with self.attempt("a long poll"):
            self.liar.lies["GET", DISPATCH] = Drip(0.05)
            self.until_outcome(DISPATCH, "timeout")
        self.assert_only_delayed()

    def test_broken_answers(self) -> None:
        self.start()
        broken: dict[str, Behaviour] = {
            "half a body": HalfBody(),
            "a reset": Reset(),
            "no answer": CloseSilently(),
            "no HTTP": Raw(b"220 smtp ready\r\n"),
            "headers without end": Raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000),
            "a length below zero": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}"),
            "two lengths": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x"),
            "a chunk without end": Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx"),
            "a chunk of no size": Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nx\r\n0\r\n\r\n"),
            "gzip that is none": Reply(200, b"not gzip", {"Content-Encoding": "gzip"}),
            "only 100 Continue": Raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        }
        for name, behaviour in broken.items():
            with self.attempt(f"a manifest: {name}"):
                self.publish()
                self.liar.lies["GET", self.rollout] = behaviour
                self.assertIn(self.keep(self.order), ("reset", "protocol", "timeout", "malformed"))
                self.assert_untouched()
        with self.attempt("all of them as answers to a poll and a heartbeat"):
            for behaviour in broken.values():
                self.liar.offer(behaviour)
                self.liar.lies["POST", HEARTBEAT] = behaviour
                before = len(self.liar.asked(HEARTBEAT))
                self.until(lambda n=before: len(self.liar.asked(HEARTBEAT)) > n, "the next heartbeat")
        self.assert_only_delayed()

    def rollout_of(self, part: str) -> str:
        return f"/{part}" if part else ""

    def until_outcome(self, path: str, outcome: str) -> None:
        before = self.life.counted("requests", endpoint=path, outcome=outcome)
        self.until(lambda: self.life.counted("requests", endpoint=path, outcome=outcome) > before, f"{path}: {outcome}")


class Headers(AttackCase):
    #: Values that libraries choke on; each was the end of a thread in some program.
    AFTER = (
        "Mon, 1 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 01 Jan 2020 00:00:00 +9999999999999999999999",
        "Sat, 31 Dec 9999 23:59:59 -2359",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "9" * 400,
        "-1",
        "1e999",
        "\u00b2",
        "nan",
    )

    def test_retry_after_that_is_no_time(self) -> None:
        self.start()
        for value in self.AFTER:
            for path in (self.path_of_manifest(), DISPATCH, HEARTBEAT):
                with self.attempt(f"{path}: {value[:40]}"):
                    before = self.life.counted("requests", outcome="503")
                    unavailable = Reply(503, b"", {"Retry-After": value})
                    if path == DISPATCH:
                        self.liar.offer(unavailable)
                    else:
                        self.liar.lies["POST" if path == HEARTBEAT else "GET", path] = unavailable
                    if path == self.rollout:
                        self.assertEqual(self.keep(self.order), "status_503")
                    self.until(lambda n=before: self.life.counted("requests", outcome="503") > n, f"{path} was asked")
                    self.assert_alive()
                    # Ten minutes of silence are what some of these answers rightly get.
                    self.restart()
        self.assert_only_delayed()

    def test_events_are_kept_whatever_retry_after_says(self) -> None:
        self.start()
        for value in self.AFTER:
            with self.attempt(value[:40]):
                self.publish()
                self.liar.lies["POST", EVENTS] = Reply(503, b"", {"Retry-After": value})
                before = self.life.counted("requests", endpoint=EVENTS, outcome="503")
                self.order()
                self.until(
                    lambda n=before: self.life.counted("requests", endpoint=EVENTS, outcome="503") > n, "it is posted"
                )
                self.assert_alive()
                self.restart()
                self.until(lambda: "DispatchAck" in self.liar.kinds(self.rollout_id), "and arrives in the end")

    def order(self) -> None:
        self.liar.dispatch(self.rollout_id, self.closure)

    def restart(self) -> None:
        """The next process, without what was kept: it would rightly be taken now."""
        self.host.stop()
        (self.host.state_dir / "pending-dispatch.json").unlink(missing_ok=True)
        self.liar.lies.clear()
        self.start()

    def path_of_manifest(self) -> str:
        self.publish()
        return self.rollout

    def test_an_etag_that_can_not_be_sent_back(self) -> None:
        self.start()
        for tag in ('"a\r\n b"', '"a" , "b"', "\u00e9", '"' + "a" * 60_000 + '"', "'a'", '"\x01"', "a\x7fb", "*"):
            with self.attempt(repr(tag[:20])):
                self.publish()
                for path in (FLEET, self.rollout):
                    for part, body in (
                        ("", self.liar.artifacts[path].raw),
                        ("/sig", self.liar.artifacts[path].signature),
                    ):
                        self.liar.lies["GET", path + part] = tagged(tag, body)
                polled = len(self.liar.asked(self.rollout))
                self.until(lambda n=polled: len(self.liar.asked(self.rollout)) > n + 1, "it is polled again")
                self.assert_untouched()
        self.assert_only_delayed()


class Redirects(AttackCase):
    def test_redirects(self) -> None:
        certificate, key = self.authority.write_server(self.folder)
        trap = HttpsServer(certificate, key)
        self.addCleanup(trap.close)
        self.start()
        for status in (301, 302, 303, 307, 308, 300, 305):
            with self.attempt(f"a manifest: {status}"):
                self.publish()
                place = {"Location": f"{trap.url}{self.rollout}"}
                self.liar.lies["GET", self.rollout] = Reply(status, b"", place)
                self.assert_kept("foreign", lambda: self.liar.dispatch(self.rollout_id, self.closure))
            with self.attempt(f"poll and heartbeat: {status}"):
                place = {"Location": f"{trap.url}/elsewhere"}
                self.liar.offer(Reply(status, b"", place))
                self.liar.lies["POST", HEARTBEAT] = Reply(status, b"", place)
                before = len(self.liar.asked(HEARTBEAT))
                self.until(lambda n=before: len(self.liar.asked(HEARTBEAT)) > n, "the next heartbeat")
        self.assert_only_delayed()
        self.assertEqual((trap.requests, trap.connections), ([], 0))


def tagged(tag: str, body: bytes) -> Behaviour:
    """The body with a raw ETag header, folded lines included."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nETag: {tag}\r\n\r\n".encode("latin-1")
    return Raw(head + body)


def quick(tuning: Any) -> Any:
    from dataclasses import replace

    return replace(tuning, dispatch_wait=1)


if __name__ == "__main__":
    unittest.main()
