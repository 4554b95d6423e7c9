"""Bodies, names and headers that are made to break their reader: refused where they are, and nothing else disturbed."""

from __future__ import annotations

import gzip
import json
import unittest
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from unittest import mock

from nixfleet_agent.artifacts import fetch
from nixfleet_agent.proto.times import parse_time
from nixfleet_agent.runtime.workers import heartbeat, longpoll
from tests.attacks.case import AttackCase
from tests.attacks.host import MACHINE
from tests.attacks.liar import DISPATCH, EVENTS, FLEET, HEARTBEAT
from tests.support.https_server import (
    Behaviour,
    CloseSilently,
    Drip,
    Endless,
    GzipBomb,
    HalfBody,
    HttpsServer,
    Raw,
    Reply,
    Reset,
)
from tests.support.signing import closure_name
from tests.support.tls import now

MIB = 1024 * 1024
#: What two parsers may read differently, and what breaks one: each as the text of a member's value.
STRANGE_JSON = {
    "duplicate keys": b'{"a": 1, "a": 2}',
    "deep nesting": b"[" * 65 + b"]" * 65,
    "nesting that ends a recursive parser": b"[" * 100_000 + b"]" * 100_000,
    "an integer of a million digits": b"1" * 1_000_000,
    "an integer beyond a double": b"9007199254740993",
    "a number beyond every double": b"1e999",
    "NaN": b"NaN",
    "minus infinity": b"-Infinity",
    "half a surrogate pair": b'"\\ud800"',
    "bytes that are not UTF-8": b'"\xff\xfe"',
    "an overlong slash": b'"\xc0\xaf"',
    "a byte that ends C strings": b'"\x00"',
    "two values": b"{} {}",
    "nothing": b"",
}


class Json(AttackCase):
    def test_an_order_that_is_no_strict_json(self) -> None:
        self.start()
        self.publish()
        order = json.dumps(self.liar.order(self.rollout_id, self.closure)).encode()
        for name, value in STRANGE_JSON.items():
            with self.attempt(name):
                body = order[:-1] + b', "extra": ' + value + b"}"
                self.assert_refused("pattern", lambda b=body: self.liar.offer(b))
        repeated = order[:-1] + b', "target_closure": "' + closure_name("evil").encode() + b'"}'
        for name, body in {
            "a second closure": repeated,
            "a list": b"[" + order + b"]",
            "a string": json.dumps(order.decode()).encode(),
            "cut short": order[:-1],
        }.items():
            with self.attempt(name):
                self.assert_refused("pattern", lambda b=body: self.liar.offer(b))
        for name, body in {
            "a byte order mark": b"\xef\xbb\xbf" + order,
            "UTF-16": order.decode().encode("utf-16"),
            "words": b"it is your turn",
        }.items():
            with self.attempt(name):
                counts = (self.foreign(), self.life.counted("dispatches", outcome="received"))
                self.liar.offer(body)
                self.until(lambda n=counts[0]: self.foreign() > n, "it is nobody's that speaks JSON")
                self.assertEqual(self.life.counted("dispatches", outcome="received"), counts[1])
        self.assert_only_delayed()

    def foreign(self) -> int:
        return self.life.counted("requests", endpoint=DISPATCH, outcome="foreign")

    def test_artifacts_that_are_no_strict_json(self) -> None:
        """Signed by CI even: a signature over bytes that two readers understand differently binds nobody."""
        self.start()
        for name, value in STRANGE_JSON.items():
            with self.attempt(f"manifest: {name}"):
                self.publish()
                raw = self.release.rollout("stable").raw[:-1] + b',"extra":' + value + b"}"
                self.liar.serve(self.rollout, raw, self.ci.signature(raw))
                self.assert_kept("malformed", lambda: self.liar.dispatch(self.rollout_id, self.closure))
        for name in ("duplicate keys", "deep nesting", "an integer beyond a double", "bytes that are not UTF-8"):
            with self.attempt(f"fleet: {name}"):
                self.publish()
                raw = self.release.fleet.raw[:-1] + b',"extra":' + STRANGE_JSON[name] + b"}"
                self.liar.serve(FLEET, raw, self.ci.signature(raw))
                self.assert_kept("malformed", lambda: self.liar.dispatch(self.rollout_id, self.closure))
        self.assert_only_delayed()

    def test_a_heartbeat_answer_that_is_no_strict_json(self) -> None:
        life = self.start()
        self.publish()
        for name, value in STRANGE_JSON.items():
            with self.attempt(name):
                before = len(self.liar.asked(HEARTBEAT))
                self.liar.lies["POST", HEARTBEAT] = Reply(200, b'{"bootstrap_rollouts": [' + value + b', {"a": 1}]}')
                self.until(lambda n=before: len(self.liar.asked(HEARTBEAT)) > n + 1, "two more heartbeats")
        self.assertTrue(life.said("the heartbeat's answer"))
        self.assert_only_delayed()


class Names(AttackCase):
    def test_path_traversal_in_ids_and_closures(self) -> None:
        before = self.host.tree()
        self.start()
        self.publish()
        evil = (
            "../../../evil",
            "/etc/passwd",
            "..",
            ".",
            "",
            "a/b",
            "a\\b",
            "a\x00b",
            "a\nb",
            "a%2fb",
            "~",
            "-rf",
            "a" * 5000,
        )
        for name in evil:
            closures = {name, f"{self.closure}/../{name}", f"{self.closure[:33]}{name}"} - {self.closure[:33] + "-rf"}
            for closure in sorted(closures - {f"{self.closure[:33]}~", self.closure[:33] + "a" * 5000}):
                with self.attempt(f"closure {closure[:40]!r}"):
                    self.assert_refused("pattern", lambda c=closure: self.liar.dispatch(self.rollout_id, c))
            for rollout_id in {name, f"stable@{name}", f"{name}@def", f"{self.rollout_id}/../{name}"} - {"-rf@def"}:
                with self.attempt(f"rollout {rollout_id[:40]!r}"):
                    self.assert_refused("pattern", lambda r=rollout_id: self.liar.dispatch(r, self.closure))
            with self.attempt(f"host {name[:40]!r}"):
                self.liar.dispatch(self.rollout_id, self.closure, hostname=f"{name}/{MACHINE}")
        strange: list[Any] = [None, 7, True, [], {}, ["stable@def"], 1e3]
        for value in strange:
            with self.attempt(f"closure {value!r}"):
                self.assert_refused("pattern", lambda v=value: self.liar.dispatch(self.rollout_id, v))
        # A manifest that CI signed may name anything: what is a file name here is rebuilt from checked parts.
        with self.attempt("signed by CI"):
            value = self.release.rollout("stable").value | {"channelRef": "../../evil"}
            signed = self.ci.sign(value)
            self.liar.serve(self.rollout, signed.raw, signed.signature)
            self.assert_refused("schema", lambda: self.liar.dispatch(self.rollout_id, self.closure))
        self.assertEqual(
            self.host.tree() | {"server.pem": b"", "server.key": b""}, before | {"server.pem": b"", "server.key": b""}
        )
        names = {path.name for path in self.host.state_dir.rglob("*")}
        self.assertFalse([name for name in names if "evil" in name or "passwd" in name])
        self.assert_only_delayed()

    def test_times_at_both_ends_of_the_calendar(self) -> None:
        """A soak that ends in the year 9999 delays for ever, which a control plane can do anyway; it breaks nothing."""
        self.start()
        for at in ("9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z"):
            with self.attempt(at):
                self.publish()
                self.liar.dispatch(self.rollout_id, self.closure, soak_due_at=at, enqueued_at=at)
                self.until(lambda: "DispatchAck" in self.liar.kinds(self.rollout_id), "it is taken")
                for zone in ("Asia/Tokyo", "America/Los_Angeles"):
                    for command in ("status", "why", "history"):
                        self.assertEqual(self.command_in(zone, command)[0], 0, f"{command} in {zone}")
        wrong: list[Any] = ["99999-01-01T00:00:00Z", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "1e9", 17e8, None]
        for at in wrong:
            with self.attempt(at):
                self.publish()
                refused = self.life.counted("dispatches_refused", reason="pattern")
                self.liar.dispatch(self.rollout_id, self.closure, soak_due_at=at)
                self.until(
                    lambda n=refused: self.life.counted("dispatches_refused", reason="pattern") > n, "it is refused"
                )
        self.assert_honest_order_is_taken()

    def test_a_soak_until_the_end_of_the_calendar(self) -> None:
        """It ends a day after the signed one, and what is shown of it is right in every zone."""
        self.publish()
        self.host.run_system(self.closure)
        last = "9999-12-31T23:59:59.999999Z"
        self.liar.snapshots = [self.liar.snapshot(self.rollout_id, self.closure, soakDueAt=last)]
        self.start()
        self.until(lambda: "ProbeTopologyDeclared" in self.liar.kinds(self.rollout_id), "it soaks")
        for zone in ("Asia/Tokyo", "America/Los_Angeles", "UTC"):
            for command in ("status", "why", "history", "history --list"):
                with self.attempt(f"{command} in {zone}"):
                    code, text = self.command_in(zone, command)
                    self.assertEqual(code, 0, text)
        [record] = json.loads(self.host.command("status", "--json")[1])["rollouts"]
        self.assertLess(parse_time(record["soak_due_at"]), now() + timedelta(days=1, minutes=5))
        self.assertEqual(self.life.switches, [])

    def command_in(self, zone: str, command: str) -> tuple[int, str]:
        import os
        import time

        with mock.patch.dict(os.environ, {"TZ": zone}):
            time.tzset()
            try:
                return self.host.command(*command.split())
            finally:
                os.environ.pop("TZ")
                time.tzset()


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


@dataclass(frozen=True)
class Redirect:
    """Sends the caller elsewhere."""

    status: int
    location: str


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
