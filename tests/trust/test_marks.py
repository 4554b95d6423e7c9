"""High-water marks only rise, whatever they are raised with, and come back from their JSON as they were."""

from __future__ import annotations

import unittest
from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.trust.marks import ManifestMark, Marks

NOW = datetime(2026, 5, 16, 1, 27, tzinfo=timezone.utc)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(timezone.utc))
MANIFESTS = st.builds(ManifestMark, TIMES, st.sampled_from(["", "a" * 64, "b" * 64]))
MARKS: Any = st.builds(
    Marks, st.none() | TIMES, st.dictionaries(st.sampled_from(["stable", "edge", "x"]), TIMES), st.none() | MANIFESTS
)


class MarksTests(unittest.TestCase):
    def test_no_mark_has_no_newest(self) -> None:
        self.assertIsNone(Marks().newest)

    def test_the_newest_is_over_fleet_and_channels(self) -> None:
        marks = Marks(NOW, {"edge": NOW + timedelta(1), "stable": NOW - timedelta(1)})
        self.assertEqual(marks.newest, NOW + timedelta(1))
        self.assertEqual(Marks(NOW).newest, NOW)
        self.assertEqual(Marks(None, {"edge": NOW}).newest, NOW)

    @given(MARKS, MARKS)
    def test_merging_is_the_higher_of_each_and_never_falls(self, one: Marks, other: Marks) -> None:
        merged = one.merged(other)
        self.assertEqual(merged, other.merged(one))
        self.assertEqual(merged.merged(one), merged)
        for marks in (one, other):
            self.assertTrue(marks.fleet is None or (merged.fleet is not None and merged.fleet >= marks.fleet))
            assert marks.manifest is None or (merged.manifest is not None and merged.manifest >= marks.manifest)
            for channel, at in marks.channels.items():
                self.assertGreaterEqual(merged.channels[channel], at)

    @given(MARKS)
    def test_marks_come_back_from_their_json(self, marks: Marks) -> None:
        self.assertEqual(Marks.parse(marks.to_json()), marks)

    def test_marks_of_an_agent_before_the_host_wide_one_are_read(self) -> None:
        old = Marks(NOW, {"stable": NOW}).to_json()
        del old["manifest"]
        self.assertEqual(Marks.parse(old), Marks(NOW, {"stable": NOW}))

    def test_what_is_no_marks_is_refused(self) -> None:
        for value in (
            None,
            [],
            {"channels": []},
            {"fleet": 1},
            {"channels": {"stable": None}},
            {"fleet": "never"},
            {"manifest": 1},
        ):
            with self.subTest(value=value):
                self.assertRaises(ProtoError, Marks.parse, value)


if __name__ == "__main__":
    unittest.main()
