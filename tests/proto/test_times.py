"""Timestamps: one form is written, every RFC 3339 form is read, and nothing else is."""

from __future__ import annotations

import unittest
from datetime import datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.times import format_time, parse_time

UTC = timezone.utc


class Written(unittest.TestCase):
    def test_in_utc_with_z_and_six_digits(self) -> None:
        at = datetime(2026, 5, 16, 3, 30, tzinfo=timezone(timedelta(hours=2)))
        self.assertEqual(format_time(at), "2026-05-16T01:30:00.000000Z")
        self.assertEqual(format_time(at.replace(microsecond=7)), "2026-05-16T01:30:00.000007Z")

    def test_a_naive_time_is_an_error_of_ours(self) -> None:
        with self.assertRaises(RuntimeError):
            format_time(datetime(2026, 5, 16))

    @given(st.datetimes(timezones=st.just(UTC)))
    def test_and_read_back_the_same_in_every_year(self, at: datetime) -> None:
        text = format_time(at)
        self.assertEqual(len(text), 27)
        self.assertEqual(parse_time(text), at)
        self.assertEqual(parse_time(text).tzinfo, UTC)


class Read(unittest.TestCase):
    def test_any_offset_and_any_number_of_digits(self) -> None:
        expected = datetime(2026, 5, 16, 1, 30, tzinfo=UTC)
        for text, micros in (
            ("2026-05-16T01:30:00Z", 0),
            ("2026-05-16t01:30:00z", 0),
            ("2026-05-16 01:30:00+00:00", 0),
            ("2026-05-16T03:30:00+02:00", 0),
            ("2026-05-15T20:00:00-05:30", 0),
            ("2026-05-16T01:30:00-00:00", 0),
            ("2026-05-16T01:30:00.5Z", 500_000),
            ("2026-05-16T01:30:00.123456789Z", 123_456),
            ("2026-05-16T01:30:00." + "9" * 32 + "Z", 999_999),
        ):
            with self.subTest(text=text):
                self.assertEqual(parse_time(text), expected + timedelta(microseconds=micros))

    def test_a_leap_second_is_the_next_second(self) -> None:
        self.assertEqual(parse_time("2016-12-31T23:59:60Z"), datetime(2017, 1, 1, tzinfo=UTC))

    def test_nothing_else(self) -> None:
        for value in (
            None,
            0,
            1747358999.5,
            True,
            "",
            "now",
            "2026-05-16",
            "2026-05-16T01:30:00",
            "2026-05-16T01:30Z",
            "2026-05-16T01:30:00.Z",
            "2026-05-16T01:30:00." + "9" * 33 + "Z",
            "2026-13-16T01:30:00Z",
            "2026-02-30T01:30:00Z",
            "2026-05-16T24:00:00Z",
            "2026-05-16T01:60:00Z",
            "2026-05-16T01:30:61Z",
            "2026-05-16T01:30:00+24:00",
            "2026-05-16T01:30:00+01:60",
            "2026-05-16T01:30:00+0100",
            "0000-01-01T00:00:00Z",
            "0001-01-01T00:00:00+01:00",
            "9999-12-31T23:59:60Z",
            "9999-12-31T23:59:59-01:00",
            "12026-05-16T01:30:00Z",
            " 2026-05-16T01:30:00Z",
            "2026-05-16T01:30:00Z\n",
            "٢٠٢٦-05-16T01:30:00Z",
            "2026-05-16T01:30:00Z" + "x" * 5000,
        ):
            with self.subTest(value=value), self.assertRaises(ProtoError) as caught:
                parse_time(value)
            self.assertLess(len(str(caught.exception)), 200)


if __name__ == "__main__":
    unittest.main()
