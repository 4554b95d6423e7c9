"""The window of long polls finds what a middlebox lets through, and a control plane that is down narrows nothing."""

from __future__ import annotations

import unittest

from hypothesis import given
from hypothesis import strategies as st

from nixfleet_agent.runtime.dispatch.window import PollWindow

HOUR = 3600.0
GRACE = 5.0


class Middlebox:
    """A way to the control plane that cuts what is quiet for ``after`` seconds, silently or with a reset."""

    def __init__(self, after: float, *, silently: bool, longest: float = 60.0) -> None:
        self.after, self.silently = after, silently
        self.window = PollWindow.of(longest)
        self.now = 0.0

    def poll(self) -> bool:
        """One poll that nobody has anything to say to; whether it was answered."""
        asked = self.window.ask
        if asked < self.after:
            self.now += asked
            self.window = self.window.answered(asked, self.now)
            return True
        lived = asked + GRACE if self.silently else self.after
        self.now += lived
        self.window = self.window.died(asked, lived, silently=self.silently)
        return False


class Adapting(unittest.TestCase):
    def settle(self, box: Middlebox, polls: int = 20) -> None:
        for _ in range(polls):
            box.poll()

    def test_a_nat_that_forgets_after_30_s_is_lived_with_within_two_minutes(self) -> None:
        box = Middlebox(30.0, silently=True)
        while box.window.ask >= 30 or box.window.suspect is not None:
            box.poll()
        self.assertLess(box.now, 120.0)
        self.assertEqual((box.window.wait, box.window.cut_after), (15.0, 30.0))

    def test_one_that_resets_is_kept_below_once_it_did_so_twice(self) -> None:
        box = Middlebox(50.0, silently=False)
        self.settle(box, 3)
        self.assertEqual(box.window.wait, 60.0, "once, it may be a restart")
        self.settle(box, 3)
        self.assertEqual((box.window.wait, box.window.cut_after), (37.5, 50.0))

    @given(st.floats(6.0, 120.0), st.booleans(), st.floats(10.0, 60.0))
    def test_whatever_lets_six_seconds_of_quiet_through_is_lived_with(
        self, after: float, silently: bool, longest: float
    ) -> None:
        box = Middlebox(after, silently=silently, longest=longest)
        self.settle(box)
        self.assertTrue(all(box.poll() for _ in range(20)))
        self.assertLess(box.window.wait, max(after, longest + 1))
        self.assertGreaterEqual(box.window.wait, min(longest, after / 3, 5.0))

    def test_a_control_plane_that_is_down_or_hangs_narrows_nothing(self) -> None:
        """All hosts of a fleet would ask it more often for having been slow."""
        window = PollWindow.of(60.0)
        for _ in range(50):
            asked = window.ask
            window = window.died(asked, asked + GRACE, silently=True)
        self.assertEqual(window.wait, 60.0)
        for lived in (0.0, 0.5, 1.9):
            window = window.died(60.0, lived, silently=False).answered(0.1, 1.0)
        self.assertEqual((window.wait, window.cut_after), (60.0, None))

    def test_restarts_at_any_time_narrow_nothing(self) -> None:
        window, now = PollWindow.of(60.0), 0.0
        for lived in (10.0, 50.0, 20.0, 33.0):
            window = window.died(60.0, lived, silently=False)
            for quiet in (0.2, 60.0, 60.0):
                now += quiet
                window = window.answered(quiet, now)
        self.assertEqual(window.wait, 60.0)

    def test_a_narrowed_window_is_tried_wider_each_time_less_soon(self) -> None:
        box = Middlebox(30.0, silently=True)
        self.settle(box)
        began, deaths = box.now, []
        while box.now - began < 24 * HOUR:
            if not box.poll() and box.window.suspect is not None:
                deaths.append((box.now - began) / HOUR)
        self.assertLessEqual(len(deaths), 6)
        self.assertGreaterEqual(len(deaths), 3)

    def test_it_is_wide_again_when_the_middlebox_is_gone(self) -> None:
        box = Middlebox(30.0, silently=True)
        self.settle(box)
        box.after = 1e9
        began = box.now
        while box.window.wait < 60.0:
            self.assertTrue(box.poll())
        self.assertLess(box.now - began, 4 * HOUR)


if __name__ == "__main__":
    unittest.main()
