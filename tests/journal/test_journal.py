"""The journal: what was written is found again, whatever else lies in its folders, and no seq is ever used twice."""

from __future__ import annotations

import errno
import json
import os
import threading
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from nixfleet_agent import durable
from nixfleet_agent.errors import ProtoError, StorageError
from nixfleet_agent.journal.entries import Entry, Name, decode, entry_of, file_name, parse_name, read_raw
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.state_machine import ProbeStatus
from tests.runtime.harness import HOSTNAME, BadDisk, bad_disk, temporary
from tests.state_machine.machine import T0, at, event

R, S = "stable@aa", "my-edge_2@bb"
QUEUE, REJECTED, CORRUPT = "outbound-queue", "outbound-rejected", "outbound-corrupt"
DROPPED = "outbound-dropped"


def entry(seq: int, rollout_id: str = R, kind: str = "ProbeResult", **changes: Any) -> Entry:
    return entry_of(event(kind, seq, **changes), HOSTNAME, rollout_id, T0)


def seq_zero(rollout_id: str = R) -> Entry:
    return Entry(
        seq=0, hostname=HOSTNAME, rollout_id=rollout_id, kind="Dispatch", created_at=T0, event={"kind": "Dispatch"}
    )


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary(self)
        self.journal = self.opened()

    def opened(self) -> Journal:
        journal = Journal(self.folder, HOSTNAME)
        journal.open()
        return journal

    def fill(self, *seqs: int, rollout_id: str = R) -> None:
        self.journal.accept(seq_zero(rollout_id))
        for seq in seqs:
            self.journal.append(entry(seq, rollout_id))

    def deliver(self, rollout_id: str = R) -> int:
        path = self.journal.first(rollout_id)
        assert path is not None
        self.journal.delivered(rollout_id, path)
        return int(path.name[:20])

    def names(self, folder: str) -> list[str]:
        path = self.folder / folder
        return sorted(os.listdir(path)) if path.is_dir() else []

    def put_file(self, folder: str, name: str, content: bytes = b"x") -> Path:
        path = self.folder / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path


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


class TheQueue(Case):
    def test_is_drained_in_the_order_of_seq_and_the_log_keeps_everything(self) -> None:
        self.fill(1, 2, 3)
        self.assertEqual(self.journal.waiting(), {R: 3})
        self.assertEqual([self.deliver() for _ in range(3)], [1, 2, 3])
        self.assertIsNone(self.journal.first(R))
        self.assertEqual(self.journal.waiting(), {})
        self.assertEqual([e.seq for e in self.journal.read(R)], [0, 1, 2, 3])
        self.assertEqual(len(self.names(f"outbound-sent/{R}")), 4)
        self.assertEqual(self.names(QUEUE), [])

    def test_holds_each_rollout_apart(self) -> None:
        self.fill(1, 2)
        self.fill(1, rollout_id=S)
        self.assertEqual(self.deliver(S), 1)
        self.assertEqual(self.journal.waiting(), {R: 2})
        self.assertEqual([e.rollout_id for e in self.journal.read(S)], [S, S])

    def test_is_found_again_by_the_next_process(self) -> None:
        self.fill(*range(1, 13))
        self.deliver()
        again = self.opened()
        self.assertEqual(again.waiting(), {R: 11})
        self.assertEqual(again.last_seq(R), 12)
        self.assertEqual([e.seq for e in again.read(R)], list(range(13)))
        self.assertEqual(again.rollouts(), [R])

    def test_takes_the_same_entry_twice_without_harm(self) -> None:
        self.fill(1)
        self.journal.append(entry(1))
        self.assertEqual((self.journal.waiting(), self.names(QUEUE)), ({R: 1}, [entry(1).name]))
        self.assertEqual(self.deliver(), 1)
        self.assertEqual(self.journal.waiting(), {})

    def test_makes_the_folder_of_sent_events_when_somebody_tidied_it_away(self) -> None:
        self.fill(1)
        self.journal.append(entry(2, S))
        self.assertEqual(self.deliver(S), 2)
        self.assertEqual(len(self.names(f"outbound-sent/{S}")), 1)

    def test_knows_how_old_its_oldest_event_is(self) -> None:
        self.assertIsNone(self.journal.oldest_queued())
        self.fill(1)
        later = Entry(seq=1, hostname=HOSTNAME, rollout_id=S, kind="X", created_at=at(50), event={})
        self.journal.append(later)
        self.assertEqual(self.journal.oldest_queued(), T0)
        self.deliver()
        self.assertEqual(self.journal.oldest_queued(), at(50))
        (self.folder / QUEUE / later.name).write_bytes(b"garbage")
        self.assertIsNone(self.journal.oldest_queued())

    def test_goes_on_when_somebody_removed_a_file(self) -> None:
        self.fill(1, 2)
        path = self.journal.first(R)
        assert path is not None
        path.unlink()
        with self.assertLogs("nixfleet_agent.journal", "ERROR"):
            self.journal.vanished(R, path)
        self.assertEqual(self.deliver(), 2)
        self.assertEqual(self.journal.last_seq(R), 2)


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


class ARefusedEvent(Case):
    def test_is_kept_with_the_answer_and_out_of_the_way(self) -> None:
        self.fill(1, 2)
        path = self.journal.first(R)
        assert path is not None
        self.journal.reject(R, path, 422, b"not in \xff this state" + b"x" * 5000, at(9))
        self.assertEqual(self.names(REJECTED), [path.name])
        kept = decode((self.folder / REJECTED / path.name).read_bytes())
        assert kept.refusal is not None
        self.assertEqual((kept.refusal["status"], kept.refusal["at"]), (422, format_time(at(9))))
        self.assertLessEqual(len(kept.refusal["answer"].encode()), 2048)
        self.assertTrue(kept.refusal["answer"].startswith("not in"))
        self.assertEqual(kept.event, entry(1).event)
        self.assertEqual((self.journal.waiting(), self.journal.counts()), ({R: 1}, (1, 1)))
        self.assertEqual([e.seq for e in self.journal.read(R)], [0, 1, 2], "it is still part of the log")
        self.assertEqual(self.opened().last_seq(R), 2)

    def test_stays_queued_when_it_cant_be_moved(self) -> None:
        self.fill(1)
        path = self.journal.first(R)
        assert path is not None
        with bad_disk() as disk:
            disk.break_down(errno.EIO)
            with self.assertRaises(StorageError):
                self.journal.reject(R, path, 400, b"", T0)
        self.assertEqual((self.journal.first(R), self.journal.counts()), (path, (1, 0)))

    def test_that_an_operator_puts_back_is_sent_again(self) -> None:
        self.fill(1)
        path = self.journal.first(R)
        assert path is not None
        self.journal.reject(R, path, 400, b"", T0)
        os.replace(self.folder / REJECTED / path.name, path)
        self.assertEqual(self.journal.rescan_queue(), 1)
        self.assertEqual((self.journal.first(R), self.journal.counts()), (path, (1, 0)))
        self.assertEqual(self.journal.rescan_queue(), 0)


class AReplay(Case):
    def test_queues_again_from_a_seq_on_and_never_the_dispatch(self) -> None:
        self.fill(*range(1, 6))
        for _ in range(4):
            self.deliver()
        self.assertEqual(self.journal.replay(R, 3), 2)
        self.assertEqual(self.journal.waiting(), {R: 3})
        self.assertEqual([self.deliver() for _ in range(3)], [3, 4, 5])
        self.assertEqual(self.journal.replay(R, 0), 5)
        self.assertEqual([self.deliver() for _ in range(5)], [1, 2, 3, 4, 5])
        self.assertEqual(self.journal.replay("stable@99", 1), 0)

    def test_brings_back_what_was_refused_without_the_refusal_and_in_its_place(self) -> None:
        self.fill(*range(1, 5))
        self.deliver()
        self.refuse()
        self.deliver()
        self.assertEqual(self.journal.replay(R, 2), 2)
        self.assertEqual((self.journal.counts(), list((self.folder / REJECTED).iterdir())), ((3, 0), []))
        path = self.journal.first(R)
        assert path is not None
        self.assertIsNone(decode(read_raw(path)).refusal)
        self.assertEqual([self.deliver() for _ in range(3)], [2, 3, 4])

    def test_leaves_a_refused_event_that_can_not_be_read_where_it_is(self) -> None:
        self.fill(1, 2)
        self.refuse()
        [damaged] = (self.folder / REJECTED).iterdir()
        damaged.write_bytes(b"{")
        with self.assertLogs("nixfleet_agent.journal", "WARNING"):
            self.assertEqual(self.journal.replay(R, 1), 0)
        self.assertEqual((damaged.exists(), self.journal.counts()), (True, (1, 1)))

    def refuse(self) -> None:
        path = self.journal.first(R)
        assert path is not None
        self.journal.reject(R, path, 422, b"no", T0)

    def test_that_takes_an_event_back_while_it_is_being_filed_loses_nothing(self) -> None:
        self.fill(1)
        path = self.journal.first(R)
        assert path is not None
        real, replayed = durable.move, []

        def move(source: Path, destination: Path, *, sync: bool) -> None:
            real(source, destination, sync=sync)
            if not replayed:
                replayed.append(1)
                self.journal.replay(R, 1)  # the reducer's thread, at the worst moment

        with mock.patch.object(durable, "move", move):
            self.journal.delivered(R, path)
        self.assertEqual((self.journal.first(R), path.exists()), (path, True))

    def test_and_a_drain_at_the_same_time_end_with_every_event_in_one_place(self) -> None:
        self.fill(*range(1, 31))
        stop = threading.Event()

        def drain() -> None:
            while not (stop.is_set() and not self.journal.waiting()):
                path = self.journal.first(R)
                if path is not None:
                    self.journal.delivered(R, path)

        thread = threading.Thread(target=drain)
        thread.start()
        for _ in range(30):
            self.journal.replay(R, 10)
        stop.set()
        thread.join(20)
        self.assertFalse(thread.is_alive())
        self.assertEqual((self.names(QUEUE), len(self.names(f"outbound-sent/{R}"))), ([], 31))


class WhateverLiesAround(Case):
    def test_a_corrupt_file_is_set_aside_and_its_seq_stays_taken(self) -> None:
        self.fill(1, 2, 3)
        (self.folder / QUEUE / entry(3).name).write_bytes(b'{"seq": 3')
        (self.folder / QUEUE / entry(2).name).write_bytes(entry(9).encode())
        journal = self.opened()
        with self.assertLogs("nixfleet_agent.journal", "ERROR") as logs:
            self.assertEqual([e.seq for e in journal.read(R)], [0, 1])
        self.assertEqual(len(logs.output), 2)
        self.assertEqual(self.names(CORRUPT), sorted([entry(2).name, entry(3).name]))
        self.assertEqual(journal.waiting(), {R: 1})
        self.assertEqual(journal.last_seq(R), 3)
        self.assertEqual(self.opened().last_seq(R), 3, "and so it does for the next process")

    def test_a_foreign_file_is_set_aside_at_start(self) -> None:
        foreign = ["README", "00000000000000000001-db-01-stable@aa-DispatchAck.json", "x.json"]
        for name in foreign:
            self.put_file(QUEUE, name, name.encode())
        (self.folder / QUEUE / "folder").mkdir()
        with self.assertLogs("nixfleet_agent.journal", "ERROR"):
            self.opened()
        self.assertEqual(self.names(QUEUE), [])
        self.assertEqual(self.names(CORRUPT), sorted([*foreign, "folder"]))
        self.assertEqual((self.folder / CORRUPT / "README").read_bytes(), b"README")

    def test_nothing_that_was_set_aside_is_ever_overwritten(self) -> None:
        for content in (b"first", b"second", b"third"):
            self.put_file(QUEUE, "README", content)
            self.opened()
        kept = [(self.folder / CORRUPT / name).read_bytes() for name in self.names(CORRUPT)]
        self.assertEqual(sorted(kept), [b"first", b"second", b"third"])

    def test_what_interrupted_writes_left_is_removed(self) -> None:
        self.fill(1)
        for folder in (QUEUE, "outbound-sent", f"outbound-sent/{R}", REJECTED, CORRUPT):
            self.put_file(folder, f".half.77{durable.TEMPORARY_SUFFIX}")
        journal = self.opened()
        left = [path.name for path in self.folder.rglob("*") if path.name.endswith(durable.TEMPORARY_SUFFIX)]
        self.assertEqual((left, journal.waiting()), ([], {R: 1}))

    def test_files_and_folders_in_odd_places_stop_nobody(self) -> None:
        self.fill(1)
        self.put_file("outbound-sent", "a-plain-file")
        self.put_file(REJECTED, "README")
        self.put_file(f"outbound-sent/{R}", "README")
        (self.folder / "outbound-sent" / f"odd{durable.TEMPORARY_SUFFIX}").mkdir()
        (self.folder / QUEUE / entry(2).name).mkdir()
        (self.folder / REJECTED / entry(3).name).symlink_to("/nowhere")
        journal = self.opened()
        with self.assertLogs("nixfleet_agent.journal", "ERROR"):
            self.assertEqual([e.seq for e in journal.read(R)], [0, 1])
        self.assertEqual(journal.last_seq(R), 3)

    def test_a_name_with_a_number_that_no_event_can_have_counts_for_nothing(self) -> None:
        self.fill(1)
        self.put_file(QUEUE, "9" * 20 + entry(1).name[20:])
        journal = self.opened()
        self.assertEqual(journal.last_seq(R), 1)
        self.assertEqual(len(self.names(CORRUPT)), 1)

    def test_a_command_that_only_reads_changes_nothing(self) -> None:
        self.fill(1)
        self.put_file(QUEUE, "README")
        self.put_file(QUEUE, f".half{durable.TEMPORARY_SUFFIX}")
        before = sorted(str(path) for path in self.folder.rglob("*"))
        reader = Journal(self.folder, HOSTNAME)
        reader.learn()
        self.assertEqual(reader.waiting(), {R: 1})
        self.assertEqual(sorted(str(path) for path in self.folder.rglob("*")), before)

    def test_of_a_folder_that_is_missing_nothing_is_learnt(self) -> None:
        reader = Journal(self.folder / "nowhere", HOSTNAME)
        reader.learn()
        self.assertEqual((reader.rollouts(), reader.counts()), ([], (0, 0)))

    def test_what_an_operator_has_given_up_is_not_brought_up_again(self) -> None:
        self.fill(1)
        self.put_file(DROPPED, entry(2).name, b"torn")
        journal = self.opened()
        with self.assertNoLogs("nixfleet_agent.journal"):
            self.assertEqual([e.seq for e in journal.read(R)], [0, 1])
        self.assertEqual((self.names(CORRUPT), self.names(DROPPED)), ([], [entry(2).name]))
        self.assertEqual(journal.last_seq(R), 2)

    def test_a_machine_that_is_short_of_something_makes_no_event_a_corrupt_one(self) -> None:
        self.fill(1, 2)
        journal = self.opened()
        short = mock.patch.object(os, "open", side_effect=OSError(errno.EMFILE, "Too many open files"))
        with short, self.assertRaisesRegex(StorageError, "can't read .*Too many open files"):
            journal.read(R)
        self.assertEqual([e.seq for e in journal.read(R)], [0, 1, 2])


class WhatAKillLeft(Case):
    """Names that are there, but that no fsync has seen yet: the next process acts on them, so they must stay."""

    def test_the_queue_is_made_durable_before_anything_acts_on_it(self) -> None:
        self.fill(1)
        self.assertEqual(self.made_durable(), {QUEUE, "outbound-sent"})

    def test_and_a_dispatch_that_nothing_followed(self) -> None:
        self.fill()
        self.assertEqual(self.made_durable(), {QUEUE, "outbound-sent", R})

    def made_durable(self) -> set[str]:
        with bad_disk() as disk:
            self.opened()
        return {name for step, name in disk.steps if step == "fsync-dir"}

    def test_a_disk_that_refuses_that_stops_no_start(self) -> None:
        self.fill(1)
        with bad_disk() as disk, self.assertLogs("nixfleet_agent.journal", "WARNING") as logs:
            disk.break_down(errno.EIO, lambda step, path: step == "fsync-dir")
            self.assertEqual(self.opened().waiting(), {R: 1})
        self.assertIn("may not survive a power cut", logs.output[0])

    def test_a_dispatch_that_was_not_accepted_is_not_found_by_the_next_process(self) -> None:
        with bad_disk() as disk:
            disk.break_down(errno.EIO, lambda step, path: (step, path.name) == ("fsync-dir", R) and not disk.refusals)
            with self.assertRaises(StorageError):
                self.journal.accept(seq_zero())
        self.assertEqual(self.opened().rollouts(), [])
        self.journal.accept(seq_zero())
        self.assertEqual(self.opened().rollouts(), [R])


class LookingAgain(Case):
    """An operator has put entries back while events are appended and delivered."""

    def test_finds_what_was_put_back_and_nothing_else(self) -> None:
        self.fill(1, 2)
        path = self.journal.first(R)
        assert path is not None
        self.journal.reject(R, path, 422, b"", T0)
        self.put_file(QUEUE, path.name, entry(1).encode())
        (self.folder / REJECTED / path.name).unlink()
        self.assertEqual((self.journal.rescan_queue(), self.journal.rescan_queue()), (1, 0))
        self.assertEqual((self.journal.waiting(), self.journal.counts()), ({R: 2}, (2, 0)))

    def test_does_not_send_an_event_before_it_is_durable(self) -> None:
        self.fill(1)
        self.put_file(QUEUE, entry(2).name, entry(2).encode())  # renamed by the reducer, the folder's fsync to come
        self.assertEqual((self.journal.rescan_queue(), self.journal.waiting()), (0, {R: 1}))

    def test_takes_nothing_that_is_delivered_meanwhile_for_lost(self) -> None:
        self.fill(1, 2)
        path = self.journal.first(R)
        assert path is not None
        listed = self.journal._folders.names(self.folder / QUEUE)
        with mock.patch.object(self.journal._folders, "names", side_effect=[iter(list(listed)), iter(())]):
            self.journal.delivered(R, path)
            self.assertEqual(self.journal.rescan_queue(), 0)
        self.assertEqual(self.journal.waiting(), {R: 1})


class Pruning(Case):
    def test_leaves_one_line_by_which_the_rollout_stays_known(self) -> None:
        self.fill(1, 2)
        self.deliver()
        self.deliver()
        self.journal.prune(R, at(5))
        self.assertEqual(self.names("outbound-sent"), [f"{R}.tombstone"])
        line = (self.folder / "outbound-sent" / f"{R}.tombstone").read_text()
        self.assertEqual(json.loads(line), {"rolloutId": R, "lastEventSeq": 2, "prunedAt": format_time(at(5))})
        self.assertEqual(line.count("\n"), 1)
        for journal in (self.journal, self.opened()):
            self.assertTrue(journal.knows(R))
            self.assertEqual((journal.rollouts(), journal.read(R)), ([], []))

    def test_that_was_interrupted_is_finished_by_the_next_process(self) -> None:
        self.fill(1, 2)
        self.deliver()
        self.deliver()
        with bad_disk() as disk:
            disk.break_down(errno.EIO, lambda step, path: step == "remove" and path.name.startswith("0" * 20))
            with self.assertRaises(StorageError):
                self.journal.prune(R, T0)
        self.assertEqual(self.names(f"outbound-sent/{R}"), [seq_zero().name])
        again = self.opened()
        self.assertEqual(self.names("outbound-sent"), [f"{R}.tombstone"])
        self.assertTrue(again.knows(R))

    def test_keeps_what_was_refused_and_does_not_take_it_for_a_rollout(self) -> None:
        self.fill(1)
        path = self.journal.first(R)
        assert path is not None
        self.journal.reject(R, path, 422, b"", T0)
        self.journal.prune(R, T0)
        again = self.opened()
        self.assertEqual((again.rollouts(), self.names(REJECTED)), ([], [path.name]))


if __name__ == "__main__":
    unittest.main()
