"""What the headers of an answer ask for, however they are written."""

from __future__ import annotations

import unittest
from datetime import datetime, timezone

from requests.structures import CaseInsensitiveDict

from nixfleet_agent.net.answers import Answer, replay_from, retry_after

NOW = datetime(2026, 5, 16, 1, 30, tzinfo=timezone.utc)


def answer(name: str, value: str) -> Answer:
    return Answer(503, CaseInsensitiveDict({name: value}), b"")


class RetryAfter(unittest.TestCase):
    def test_seconds_and_dates_are_read_and_capped_at_ten_minutes(self) -> None:
        cases = (
            ("0", 0.0),
            ("7", 7.0),
            (" 30 ", 30.0),
            ("600", 600.0),
            ("601", 600.0),
            ("9" * 400, 600.0),
            ("Sat, 16 May 2026 01:31:00 GMT", 60.0),
            ("Sat, 16 May 2026 03:31:00 +0200", 60.0),
            ("Sat, 16 May 2026 01:00:00 GMT", 0.0),
            ("Sat, 16 May 2099 01:00:00 GMT", 600.0),
            ("Sat, 16 May 2026 01:31:00 -0000", 60.0),
        )
        for value, seconds in cases:
            with self.subTest(value=value[:40]):
                self.assertEqual(seconds, retry_after(answer("retry-after", value), NOW))

    def test_anything_else_counts_as_absent(self) -> None:
        for value in ("", "soon", "-5", "1.5", "٣", "Sat, 99 May 2026 01:31:00 GMT", "\x00"):
            with self.subTest(value=value):
                self.assertIsNone(retry_after(answer("Retry-After", value), NOW))
        self.assertIsNone(retry_after(answer("X", "1"), NOW))


class ReplayFrom(unittest.TestCase):
    def test_only_an_unsigned_integer_counts(self) -> None:
        self.assertEqual(14, replay_from(answer("x-nixfleet-replay-from", " 14 ")))
        for value in ("", "-1", "1.0", "1e3", "٣", "9" * 30, "x"):
            self.assertIsNone(replay_from(answer("X-Nixfleet-Replay-From", value)))


class Excerpts(unittest.TestCase):
    def test_a_body_is_shown_escaped_and_cut(self) -> None:
        shown = Answer(400, {}, b"\x1b[2J\nbad\xff" + b"x" * 5000).excerpt(100)
        self.assertLessEqual(len(shown), 103)
        self.assertTrue(shown.startswith("\\x1b[2J\\nbad"))


if __name__ == "__main__":
    unittest.main()
