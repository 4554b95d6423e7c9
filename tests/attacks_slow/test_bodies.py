"""Bodies, names and headers that are made to break their reader: refused where they are, and nothing else disturbed."""

from __future__ import annotations

import json
import unittest
from datetime import timedelta
from typing import Any
from unittest import mock

from nixfleet_agent.proto.times import parse_time
from tests.attacks.case import AttackCase
from tests.attacks.host import MACHINE
from tests.attacks.liar import DISPATCH, FLEET, HEARTBEAT
from tests.support.behaviours import Reply
from tests.support.signing import closure_name
from tests.support.tls import now

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


if __name__ == "__main__":
    unittest.main()
