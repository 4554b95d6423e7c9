"""What a journal finds that it did not expect: foreign files, halves, and too many."""

from __future__ import annotations

import errno
import json
import os
import unittest
from unittest import mock

from nixfleet_agent import durable
from nixfleet_agent.errors import StorageError
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.proto.times import format_time
from tests.journal.journal_case import CORRUPT, QUEUE, REJECTED, Case, R, entry, seq_zero
from tests.runtime.harness import HOSTNAME, bad_disk
from tests.state_machine.machine import T0, at

DROPPED = "outbound-dropped"


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
