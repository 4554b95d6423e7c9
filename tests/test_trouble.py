"""What fails again and again is said once for each reason, and that it is over."""

from __future__ import annotations

import logging
import unittest

from nixfleet_agent.trouble import Trouble

LOG = logging.getLogger("nixfleet_agent.test_trouble")


class SaidWhenItChanges(unittest.TestCase):
    def said(self, *steps: object) -> list[tuple[int, str]]:
        trouble = Trouble(LOG, "100% of /x is not read", "/x is read again")
        with self.assertLogs(LOG, logging.DEBUG) as logs:
            LOG.debug("start")
            for step in steps:
                if step is None:
                    trouble.over()
                elif isinstance(step, tuple):
                    trouble.failed(*step)
                else:
                    trouble.failed(step)
        return [(record.levelno, record.getMessage()) for record in logs.records[1:]]

    def test_the_first_failure_and_each_change_of_reason_are_warnings_and_repeats_are_not(self) -> None:
        self.assertEqual(
            self.said("no disk", "no disk", "full"),
            [
                (logging.WARNING, "100% of /x is not read: no disk"),
                (logging.DEBUG, "100% of /x is not read, still: no disk"),
                (logging.WARNING, "100% of /x is not read: full"),
            ],
        )

    def test_the_end_is_said_once_and_what_never_failed_says_nothing(self) -> None:
        self.assertEqual(self.said(None), [])
        ended = self.said("no disk", None, None)
        self.assertEqual(ended[1:], [(logging.INFO, "/x is read again")])

    def test_a_failure_after_the_end_is_news_though_its_reason_is_the_same(self) -> None:
        levels = [level for level, _ in self.said("no disk", None, "no disk")]
        self.assertEqual(levels, [logging.WARNING, logging.INFO, logging.WARNING])

    def test_a_reason_whose_words_change_with_time_is_one_reason_by_its_kind(self) -> None:
        levels = [level for level, _ in self.said(("61 s old", "stale"), ("62 s old", "stale"), ("no key", "key"))]
        self.assertEqual(levels, [logging.WARNING, logging.DEBUG, logging.WARNING])


if __name__ == "__main__":
    unittest.main()
