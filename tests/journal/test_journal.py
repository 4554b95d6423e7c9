"""The journal: what was written is found again, whatever else lies in its folders, and no seq is ever used twice."""

from __future__ import annotations

import errno
import os
import threading
import unittest
from pathlib import Path
from unittest import mock

from nixfleet_agent import durable
from nixfleet_agent.errors import StorageError
from nixfleet_agent.journal.entries import Entry, decode, read_raw
from nixfleet_agent.proto.times import format_time
from tests.journal.journal_case import QUEUE, REJECTED, Case, R, S, entry
from tests.runtime.harness import HOSTNAME, bad_disk
from tests.state_machine.machine import T0, at


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


if __name__ == "__main__":
    unittest.main()
