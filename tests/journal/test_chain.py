"""The chain of events: written with each, the same after restarts and replays, begun in the middle of an old log."""

from __future__ import annotations

import json
import unittest
from pathlib import Path
from unittest import mock

from nixfleet_agent.errors import StorageError
from nixfleet_agent.journal import chain
from nixfleet_agent.journal.entries import Entry, decode, entry_of
from nixfleet_agent.journal.journal import QUEUE, Journal
from nixfleet_agent.proto.events import to_wire
from nixfleet_agent.state_machine import KINDS
from nixfleet_agent.trust.canonical import canonical
from tests.runtime.harness import HOSTNAME, temporary
from tests.state_machine.machine import T0, event

ROLLOUT, OTHER = "stable@aa", "stable@bb"


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary(self)
        self.journal = self.opened()

    def opened(self) -> Journal:
        """The next process's journal on the same folder."""
        journal = Journal(self.folder, HOSTNAME)
        journal.open()
        return journal

    def append(self, seq: int, rollout_id: str = ROLLOUT) -> None:
        self.journal.append(entry_of(event("ProbeResult", seq), HOSTNAME, rollout_id, T0))

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.rglob("*.json")}

    def chain(self, rollout_id: str = ROLLOUT) -> list[str | None]:
        return [entry.previous for entry in self.journal.read(rollout_id)]

    def expected(self, entries: list[Entry]) -> list[str]:
        follows, found = chain.beginning(HOSTNAME, ROLLOUT), []
        for entry in entries:
            found.append(follows)
            follows = chain.link(HOSTNAME, ROLLOUT, entry.event, follows)
        return found

    def test_each_event_names_what_it_follows_and_the_first_the_rollouts_beginning(self) -> None:
        for seq in (1, 2, 3):
            self.append(seq)
        self.append(1, OTHER)
        entries = self.journal.read(ROLLOUT)
        self.assertEqual([entry.previous for entry in entries], self.expected(entries))
        self.assertEqual(self.chain(OTHER), [chain.beginning(HOSTNAME, OTHER)])
        self.assertEqual(len({*self.chain(), *self.chain(OTHER)}), 4)

    def test_it_goes_on_in_the_next_process_and_over_a_seq_that_was_raised(self) -> None:
        self.append(1)
        self.journal = self.opened()
        self.append(2)
        self.journal = self.opened()
        self.append(1002)
        entries = self.journal.read(ROLLOUT)
        self.assertEqual([entry.previous for entry in entries], self.expected(entries))

    def test_delivering_and_replaying_change_no_byte(self) -> None:
        for seq in (1, 2):
            self.append(seq)
        before = self.files()
        for _ in (1, 2):
            first = self.journal.first(ROLLOUT)
            assert first is not None
            self.journal.delivered(ROLLOUT, first)
        self.journal = self.opened()
        self.journal.replay(ROLLOUT, 1)
        self.assertEqual(self.files(), before)

    def test_an_event_is_written_again_with_the_same_link_after_the_disk_refused_it(self) -> None:
        self.append(1)
        with mock.patch("nixfleet_agent.journal.journal.durable.write", side_effect=StorageError("full", 28)):
            for _ in range(2):
                self.assertRaises(StorageError, self.append, 2)
        self.append(2)
        entries = self.journal.read(ROLLOUT)
        self.assertEqual([entry.previous for entry in entries], self.expected(entries))

    def test_a_log_of_an_older_version_stays_as_it_is_and_what_comes_next_follows_all_of_it(self) -> None:
        for seq in (1, 2):
            self.unchained(seq)
        before = self.files()
        self.journal = self.opened()
        self.append(3)
        entries = self.journal.read(ROLLOUT)
        self.assertEqual([entry.previous for entry in entries], [None, None, self.expected(entries)[2]])
        self.assertLessEqual(before.items(), self.files().items())

    def test_nor_is_it_lost_where_an_older_version_wrote_in_between(self) -> None:
        self.append(1)
        self.unchained(2)
        self.journal = self.opened()
        self.append(3)
        entries = self.journal.read(ROLLOUT)
        self.assertEqual(entries[2].previous, self.expected(entries)[2])

    def test_a_log_that_can_not_be_read_stops_no_event(self) -> None:
        self.unchained(1)
        self.journal = self.opened()
        with (
            mock.patch.object(Journal, "read", side_effect=StorageError("too many open files", 24)),
            self.assertLogs("nixfleet_agent.journal", "WARNING"),
        ):
            self.append(2)
        self.assertEqual(self.chain(), [None, None])
        self.append(3)
        entries = self.journal.read(ROLLOUT)
        self.assertEqual(entries[2].previous, self.expected(entries)[2])

    def test_words_that_have_no_canonical_form_are_linked_as_they_are_on_disk(self) -> None:
        failed = event("ActivationFailed", 1, stderr_tail="half \ud800")
        self.journal.append(entry_of(failed, HOSTNAME, ROLLOUT, T0))
        self.append(2)
        entries = self.journal.read(ROLLOUT)
        self.assertEqual([entry.previous for entry in entries], self.expected(entries))

    def test_the_short_way_to_the_canonical_form_is_the_same_form(self) -> None:
        for kind in KINDS:
            said = chain.statement(HOSTNAME, ROLLOUT, to_wire(event(kind, 7)), "0" * 64)
            self.assertEqual(chain._plain_form(said), canonical(said), kind)
        for value in ('\x00\x1f\x7f\u2028"\\/\n\t', "\U0001f600", ["", True, None, -1, 2**53 - 1], {"b": 1, "a": {}}):
            said = chain.statement(HOSTNAME, ROLLOUT, {"value": value}, "")
            self.assertEqual(chain._plain_form(said), canonical(said), value)
        for strange in (1.5, 1e22, 2**53, {"\U0001f600": 1, "\ufb33": 2}, "\ud800", {1: 2}):
            self.assertIsNone(chain._plain_form(chain.statement(HOSTNAME, ROLLOUT, {"value": strange}, "")), strange)

    def test_a_link_that_is_no_hash_is_as_good_as_none(self) -> None:
        self.append(1)
        (path,) = (self.folder / QUEUE).iterdir()
        for strange in (7, "x", "A" * 64, None):
            path.write_text(json.dumps({**json.loads(path.read_bytes()), "previous": strange}))
            self.assertIsNone(decode(path.read_bytes()).previous)

    def unchained(self, seq: int) -> Path:
        """An event as an older version wrote it."""
        entry = entry_of(event("ProbeResult", seq), HOSTNAME, ROLLOUT, T0)
        path = self.folder / QUEUE / entry.name
        path.write_bytes(entry.encode())
        return path


if __name__ == "__main__":
    unittest.main()
