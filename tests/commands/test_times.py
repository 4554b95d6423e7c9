"""Times as people read them, at both ends of the calendar too."""

from __future__ import annotations

import os
import time
import unittest
from datetime import datetime, timezone
from unittest import mock

from nixfleet_agent.commands.times import local_time


class LocalTime(unittest.TestCase):
    def test_a_moment_that_local_time_does_not_have_is_shown_in_utc(self) -> None:
        first = datetime.min.replace(tzinfo=timezone.utc)
        last = datetime.max.replace(tzinfo=timezone.utc)
        for zone, at, shown in (
            ("Asia/Tokyo", last, "9999-12-31 23:59:59Z"),
            ("America/Los_Angeles", first, "1-01-01 00:00:00Z"),
        ):
            with self.subTest(zone=zone), mock.patch.dict(os.environ, {"TZ": zone}):
                self.addCleanup(time.tzset)
                time.tzset()
                self.assertTrue(local_time(at).endswith(shown), local_time(at))


if __name__ == "__main__":
    unittest.main()
