"""An operator's word about a rollback: it names one rollout, survives a restart, and nonsense on disk is no word."""

from __future__ import annotations

import errno
import unittest

from nixfleet_agent.errors import StorageError
from nixfleet_agent.operator.rollback_control import RollbackControl
from tests.runtime.harness import bad_disk, temporary

R, S = "stable@aa", "stable@bb"


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary(self)
        self.command, self.worker = RollbackControl(self.folder), RollbackControl(self.folder)

    def test_nothing_said_is_neither(self) -> None:
        self.assertFalse(self.worker.given_up(R))
        self.assertFalse(self.worker.take_retry(R))
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_giving_up_is_about_one_rollout_and_outlives_the_process(self) -> None:
        self.command.give_up(R)
        self.assertTrue(RollbackControl(self.folder).given_up(R))
        self.assertFalse(self.worker.given_up(S))

    def test_a_retry_is_granted_once_and_to_its_own_rollout(self) -> None:
        self.command.ask_retry(R)
        self.assertFalse(self.worker.take_retry(S))
        self.assertEqual([self.worker.take_retry(R) for _ in range(2)], [True, False])

    def test_a_retry_takes_back_a_giving_up_and_a_giving_up_may_follow(self) -> None:
        self.command.give_up(R)
        self.command.ask_retry(R)
        self.assertFalse(self.worker.given_up(R))
        self.command.give_up(R)
        self.assertTrue(self.worker.given_up(R))

    def test_a_damaged_file_says_nothing_so_that_the_agent_goes_on_trying(self) -> None:
        for damage in (b"", b"{", b"[]", b"\xff", b'{"rolloutId": 7}', b'{"other": 1}'):
            with self.subTest(damage):
                for name in ("rollback-given-up.json", "rollback-retry.json"):
                    (self.folder / name).write_bytes(damage)
                self.assertFalse(self.worker.given_up(R))
                self.assertFalse(self.worker.take_retry(R))

    def test_a_retry_that_can_not_be_taken_off_the_disk_is_not_granted_for_ever(self) -> None:
        self.command.ask_retry(R)
        with bad_disk() as disk:
            disk.break_down(errno.EROFS)
            self.assertFalse(self.worker.take_retry(R))
            disk.mend()
            self.assertTrue(self.worker.take_retry(R))

    def test_a_word_that_can_not_be_kept_is_an_error_for_the_one_who_said_it(self) -> None:
        with bad_disk() as disk:
            disk.break_down(errno.ENOSPC)
            for say in (self.command.give_up, self.command.ask_retry):
                with self.assertRaises(StorageError):
                    say(R)
        self.assertFalse(self.worker.given_up(R))
        self.assertFalse(self.worker.take_retry(R))


if __name__ == "__main__":
    unittest.main()
