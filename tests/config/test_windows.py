"""Maintenance windows against a slow reference: a clock on the wall, looked at every minute."""

from __future__ import annotations

import unittest
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from nixfleet_agent.config.windows import HORIZON, WindowError, Windows, overlapping, parse_window, parse_windows

#: Zones that change their clocks: by an hour in the night, by half an hour, and in the other hemisphere.
ZONES = ("Europe/Berlin", "Australia/Lord_Howe", "America/New_York")
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MINUTE = timedelta(minutes=1)
#: Every change of the clocks in 2026 in the zones above lies in one of these months.
CHANGES = (
    *(datetime(2026, 3, 7, tzinfo=timezone.utc), datetime(2026, 3, 28, tzinfo=timezone.utc)),
    *(datetime(2026, 4, 3, tzinfo=timezone.utc), datetime(2026, 10, 2, tzinfo=timezone.utc)),
    *(datetime(2026, 10, 24, tzinfo=timezone.utc), datetime(2026, 10, 31, tzinfo=timezone.utc)),
)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


def reference(window: tuple[str, int, int], zone: str, now: datetime) -> bool:
    """Whether the wall clock's minute of the week is one of the window's minutes: counted one by one."""
    day, start, length = window
    wall = now.astimezone(ZoneInfo(zone))
    minute_of_week = wall.weekday() * 1440 + wall.hour * 60 + wall.minute
    begin = DAYS.index(day) * 1440 + start
    return any((begin + minute) % 10080 == minute_of_week for minute in range(length))


def written(window: tuple[str, int, int]) -> str:
    day, start, length = window
    end = (start + length) % 1440
    return f"{day} {start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"


WINDOW = st.tuples(st.sampled_from(DAYS), st.integers(0, 1439), st.integers(1, 1439))


class AgainstTheReference(unittest.TestCase):
    @settings(max_examples=300, deadline=None)
    @given(WINDOW, st.sampled_from(ZONES), st.sampled_from(CHANGES), st.integers(0, 4 * 1440))
    def test_a_window_is_open_exactly_when_the_wall_clock_reads_a_time_inside_it(
        self, window: tuple[str, int, int], zone: str, change: datetime, offset: int
    ) -> None:
        now = change + offset * MINUTE
        self.assertEqual(parse_windows([written(window)], zone).is_open(now), reference(window, zone, now))

    @settings(max_examples=40, deadline=None)
    @given(WINDOW, st.sampled_from(ZONES), st.sampled_from(CHANGES), st.integers(0, 2 * 1440))
    def test_the_next_change_is_the_first_minute_that_differs(
        self, window: tuple[str, int, int], zone: str, change: datetime, offset: int
    ) -> None:
        now = change + offset * MINUTE
        found = parse_windows([written(window)], zone).next_change(now)
        is_open = reference(window, zone, now)
        slow = now + MINUTE
        while reference(window, zone, slow) == is_open:
            slow += MINUTE
            self.assertLess(slow - now, HORIZON)
        self.assertEqual(found, slow)


class Words(unittest.TestCase):
    def test_the_forms_of_the_guide_are_read(self) -> None:
        night = parse_window("Mon..Fri 22:00-05:00")
        self.assertEqual(
            (night.days, night.start, night.end), ({0, 1, 2, 3, 4}, timedelta(hours=22), timedelta(hours=29))
        )
        self.assertEqual(parse_window("Sat,Sun").days, {5, 6})
        self.assertEqual(parse_window("Sat..Mon").days, {5, 6, 0})
        self.assertEqual(len(parse_window("03:00-04:30").days), 7)
        self.assertEqual(parse_window("daily 20:00-24:00").end, timedelta(hours=24))
        self.assertEqual(parse_window("saturday 06:00:30-07:00").start, timedelta(hours=6, seconds=30))

    def test_what_can_not_be_read_is_one_line_that_says_how_to_write_it(self) -> None:
        for text in ("", "Mon", "Mon 05:00-05:00", "Mon 5-6", "Foo 01:00-02:00", "01:00", "25:00-26:00", "24:30-01:00",
                     "Mon Tue 01:00-02:00", "24:00-01:00", "Mon..", "Mon,,Tue"):  # fmt: skip
            with self.subTest(text):
                if text == "Mon":
                    self.assertEqual(parse_window(text).days, {0})
                    continue
                with self.assertRaises(WindowError) as caught:
                    parse_window(text)
                self.assertRegex(str(caught.exception), r"^the window .* can't be read: .*: write it like")
                self.assertNotIn("\n", str(caught.exception))

    def test_a_zone_that_does_not_exist_is_named(self) -> None:
        for name in ("Europe/Nowhere", "../../etc/passwd", "/etc/localtime"):
            with self.subTest(name), self.assertRaisesRegex(WindowError, "there is no time zone .*Europe/Berlin"):
                parse_windows(["Sat"], name)

    def test_windows_that_overlap_are_named_in_pairs(self) -> None:
        windows = parse_windows(["Mon..Fri 22:00-05:00", "Sat 04:00-06:00", "Sun"], "UTC")
        self.assertEqual(overlapping(windows), [("Sat 04:00-06:00", "Mon..Fri 22:00-05:00")])


class Moments(unittest.TestCase):
    def test_without_windows_it_is_always_open(self) -> None:
        always = Windows((), timezone.utc)
        self.assertTrue(always.is_open(utc("2026-01-01")))
        self.assertIsNone(always.next_change(utc("2026-01-01")))

    def test_a_window_that_is_never_closed_has_no_next_change(self) -> None:
        self.assertIsNone(parse_windows(["daily"], "UTC").next_change(utc("2026-01-01")))

    def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins(self) -> None:
        windows = parse_windows(["Fri 22:00-05:00"], "UTC")
        self.assertTrue(windows.is_open(utc("2026-11-28T04:59:59")))  # a Saturday
        self.assertFalse(windows.is_open(utc("2026-11-27T04:59:59")))
        self.assertEqual(windows.next_change(utc("2026-11-28T05:00:00")), utc("2026-12-04T22:00:00"))

    def test_times_that_the_change_to_summer_time_skips_never_come(self) -> None:
        """02:00 is 03:00 in Berlin on 2026-03-29: of this window, the half hour after three is left."""
        windows = parse_windows(["02:10-03:30"], "Europe/Berlin")
        self.assertEqual(windows.next_change(utc("2026-03-29T00:30:00")), utc("2026-03-29T01:00:00"))
        self.assertEqual(windows.next_change(utc("2026-03-29T01:10:00")), utc("2026-03-29T01:30:00"))
        self.assertEqual(
            parse_windows(["02:10-02:50"], "Europe/Berlin").next_change(utc("2026-03-28T23:00:00")),
            utc("2026-03-30T00:10:00"),
        )

    def test_the_hour_that_autumn_repeats_opens_its_windows_twice(self) -> None:
        windows = parse_windows(["02:10-02:20"], "Europe/Berlin")
        moment, opened = utc("2026-10-24T23:00:00"), []
        for _ in range(4):
            change = windows.next_change(moment)
            assert change is not None
            opened.append(change)
            moment = change
        self.assertEqual(opened, [utc(f"2026-10-25T0{h}:{m}:00") for h in (0, 1) for m in (10, 20)])


if __name__ == "__main__":
    unittest.main()
