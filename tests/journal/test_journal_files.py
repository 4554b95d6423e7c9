"""Names and files of the journal: what they say, and that each is written once and whole."""

from __future__ import annotations

import errno
import json
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from nixfleet_agent import durable
from nixfleet_agent.errors import ProtoError, StorageError
from nixfleet_agent.journal.entries import Name, decode, file_name, parse_name
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.state_machine import ProbeStatus
from tests.journal.journal_case import QUEUE, Case, R, entry, seq_zero
from tests.runtime.harness import HOSTNAME, BadDisk, bad_disk
from tests.state_machine.machine import T0


class Names(unittest.TestCase):
    def test_are_as_operators_know_them(self) -> None:
        self.assertEqual(
            file_name(7, "web-01", "stable@def4567abc", "DispatchAck"),
            "00000000000000000007-web-01-stable@def4567abc-DispatchAck.json",
        )

    def test_are_read_back_whatever_hyphens_and_underscores_are_in_them(self) -> None:
        for hostname in ("web-01", "a", "a-b-c-", "web_01.example.org", "h" * 253):
            for rollout in ("stable@aa", "my-edge_2@bb", "-@0", "web-01@aa", "c" * 64 + "@" + "f" * 64):
                with self.subTest(hostname=hostname, rollout=rollout):
                    name = file_name(12, hostname, rollout, "ProbeResult")
                    self.assertLessEqual(len(name), 255)
                    self.assertEqual(parse_name(name, hostname), Name(12, rollout, "ProbeResult"))

    def test_of_something_else_are_not_read(self) -> None:
        good = "00000000000000000007-web-01-stable@aa-DispatchAck.json"
        self.assertIsNotNone(parse_name(good, "web-01"))
        for name in (
            "",
            "README",
            good[1:],
            good + ".1",
            good.replace("web-01", "web-02"),
            good.replace("stable@aa", "Stable@aa"),
            good.replace("stable@aa", "stable"),
            good.replace("stable@aa", "a/../b@aa"),
            good.replace("0000000000000", "٠" * 13),
            "9" * 20 + good[20:],
            "." + good + ".123.tmp~",
            good + "\n",
        ):
            with self.subTest(name=name):
                self.assertIsNone(parse_name(name, "web-01"))

    def test_sort_by_seq(self) -> None:
        names = [file_name(seq, HOSTNAME, R, kind) for seq, kind in ((2, "A"), (10, "A"), (9, "Z"), (2**53 - 1, "A"))]
        self.assertEqual([int(name[:20]) for name in sorted(names)], [2, 9, 10, 2**53 - 1])


class Files(unittest.TestCase):
    def test_hold_what_the_protocol_calls_an_entry(self) -> None:
        body = json.loads(entry(7).encode())
        self.assertEqual(set(body), {"seq", "hostname", "rolloutId", "eventKind", "createdAt", "event"})
        self.assertEqual(body["createdAt"], format_time(T0))
        self.assertEqual((body["seq"], body["rolloutId"], body["eventKind"]), (7, R, "ProbeResult"))

    def test_are_read_back_with_their_local_part(self) -> None:
        for kind in ("ActivationFailed", "ActivationDeferred", "ProbeResult"):
            written = entry(7, kind=kind)
            self.assertEqual(decode(written.encode()), written)
        failed: Any = decode(entry(7, kind="ActivationFailed").encode()).remote_event()
        self.assertTrue(failed.switch_fired)

    def test_of_a_newer_version_stay_readable(self) -> None:
        body = json.loads(entry(7).encode())
        body |= {"priority": 3, "trace": {"a": [1]}}
        body["event"] |= {"severity": "high"}
        newer = decode(json.dumps(body).encode())
        self.assertEqual(newer.remote_event(), entry(7).remote_event())
        self.assertEqual(newer.event["severity"], "high")

    def test_that_are_damaged_raise_only_what_is_expected(self) -> None:
        whole = entry(7).encode()
        body = json.loads(whole)
        damaged: list[bytes] = [whole[:cut] for cut in range(0, len(whole), 7)]
        damaged += [b"\x00" * 4096, b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b'{"seq": ' + b"9" * 5000 + b"}"]
        damaged += [whole.replace(b'"web"', b'"\\ud800"')]
        for name, value in (
            ("seq", -1),
            ("seq", "7"),
            ("hostname", "../x"),
            ("rolloutId", "x"),
            ("createdAt", "now"),
            ("event", []),
        ):
            damaged.append(json.dumps({**body, name: value}).encode())
        for raw in damaged:
            with self.subTest(raw=raw[:60]), self.assertRaises(ProtoError):
                decode(raw)

    def test_hold_text_that_has_no_utf8_form_as_a_question_mark(self) -> None:
        odd = entry(7, status=ProbeStatus.FAIL, failure_reason="caf\udce9 is missing")
        self.assertEqual(decode(odd.encode()).event["failureReason"], "caf? is missing")


class EveryWrite(Case):
    def test_is_durable_when_it_returns(self) -> None:
        with mock.patch.object(durable, "boundary", BadDisk()) as disk:
            self.journal.append(entry(1))
        name = entry(1).name
        self.assertEqual(disk.steps, [("create", name), ("fsync", name), ("rename", name), ("fsync-dir", QUEUE)])

    def test_that_fails_at_any_step_queues_nothing(self) -> None:
        for step in ("create", "fsync", "rename", "fsync-dir"):
            with self.subTest(step=step), bad_disk() as disk:
                disk.break_down(errno.EIO, lambda at_step, path, s=step: at_step == s)
                with self.assertRaises(StorageError) as caught:
                    self.journal.append(entry(5))
                self.assertEqual(caught.exception.errno, errno.EIO)
                self.assertIsNone(self.journal.first(R))
                self.assertEqual(self.journal.last_seq(R), 0)
        self.assertFalse([name for name in self.names(QUEUE) if name.endswith("~")])

    def test_that_fails_on_a_disk_that_became_read_only_is_an_expected_error(self) -> None:
        with bad_disk() as disk, mock.patch.object(Path, "unlink", side_effect=OSError(errno.EROFS, "read-only")):
            disk.break_down(errno.EROFS, lambda step, path: step == "rename")
            with self.assertRaises(StorageError):
                self.journal.append(entry(5))

    def test_of_seq_zero_that_fails_leaves_the_rollout_unknown(self) -> None:
        with bad_disk() as disk:
            disk.break_down(errno.ENOSPC)
            with self.assertRaises(StorageError):
                self.journal.accept(seq_zero())
        self.assertFalse(self.journal.knows(R))
        self.assertFalse(self.opened().knows("stable@other"))


if __name__ == "__main__":
    unittest.main()
