"""What people read of the story, and how the story waits."""

from __future__ import annotations

import errno
import io
import unittest
from datetime import datetime, timezone
from typing import Any

from nixfleet_agent.demo.timeline import BREACHES_KEPT, Timeline
from nixfleet_agent.demo.view import Lines
from nixfleet_agent.local_cp.happenings import BREACH, Notification
from nixfleet_agent.state_machine import State
from nixfleet_agent.threads.clock import SystemClock

NOW = datetime(2026, 5, 16, 1, 30, tzinfo=timezone.utc)
ID = "stable@aaa1"


def happened(what: str, state: State | None = None, hostname: str = "web-01", **detail: Any) -> Notification:
    return Notification(NOW, hostname, ID, what, state, detail)


class Words(unittest.TestCase):
    def setUp(self) -> None:
        self.timeline = Timeline(SystemClock())
        self.timeline.open_rollout(ID, "v1", [["web-01"]])

    def told(self) -> list[str]:
        return [entry.text for entry in self.timeline.entries]

    def test_only_changes_are_told(self) -> None:
        for happening in (
            happened("Queued", State.PENDING),
            happened("Dispatched", State.PENDING),
            happened("DispatchAck", State.ACTIVATING),
            happened("ActivationStarted", State.ACTIVATING),
            happened("ActivationCompleted", State.SOAKING),
            happened("ProbeResult", State.SOAKING),
            happened("ProbeFailureFirst", State.SOAKING, probeName="app"),
            happened("Failed", State.FAILED, failingProbes=["app", "disk"]),
            happened("Halted", None, "", reason="halted: failed on web-01"),
            happened("RollbackComplete", State.REVERTED, revertedToClosure="0" * 32 + "-before"),
        ):
            self.timeline.watch(happening)
        self.assertEqual(
            self.told(),
            [
                "its turn: dispatched",
                "Activating",
                "Soaking",
                "probe app fails",
                "Failed: app, disk failed for too long",
                "v1 gets no more turns, halted: failed on web-01",
                "Reverted: back on before",
            ],
        )
        self.assertEqual(self.timeline.states, {("v1", "web-01"): State.REVERTED})
        self.assertTrue(self.timeline.seen("web-01", "v1", "ActivationStarted"))
        self.assertFalse(self.timeline.seen("web-02", "v1", "ActivationStarted"))

    def test_how_a_request_breaks_the_contract_is_told_once(self) -> None:
        for _ in range(3):
            self.timeline.watch(happened(BREACH, hostname="web-01", how="POST /v1/agent/heartbeat: at is missing"))
        self.timeline.watch(happened(BREACH, hostname="", how="GET /: headers"))
        expected = (
            "web-01 breaks the contract of the wire: POST /v1/agent/heartbeat: at is missing",
            "somebody breaks the contract of the wire: GET /: headers",
        )
        self.assertEqual(self.timeline.breaches, expected)
        self.assertEqual(self.told(), list(expected))
        for number in range(100):
            self.timeline.watch(happened(BREACH, how=f"{number}"))
        self.assertEqual(len(self.timeline.breaches), BREACHES_KEPT)

    def test_what_an_agent_says_can_not_drive_the_terminal(self) -> None:
        self.timeline.watch(happened("ActivationFailed", State.FAILED, stderrTail="\x1b[2Jgone\nfake line"))
        (text,) = self.told()
        self.assertTrue(text.isprintable(), text)

    def test_a_wait_ends_when_it_is_true_and_looks_after_the_fleet_meanwhile(self) -> None:
        looks: list[int] = []

        def look() -> None:
            looks.append(1)
            self.timeline.watch(happened("DispatchAck", State.ACTIVATING))

        self.assertTrue(self.timeline.wait(lambda: self.timeline.seen("web-01", "v1", "DispatchAck"), 30, look))
        self.assertEqual(len(looks), 1)
        self.assertFalse(self.timeline.wait(lambda: False, 0, lambda: None))


class DeadEnd(io.StringIO):
    """`demo | head` after head has read enough, or a file on a disk that is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.tries = 0
        self._error = error

    def write(self, text: str) -> int:
        self.tries += 1
        raise self._error


class PlainLines(unittest.TestCase):
    def test_a_line_says_when_where_and_what(self) -> None:
        out = io.StringIO()
        timeline = Timeline(SystemClock(), Lines(out).show)
        timeline.open_rollout(ID, "v1", [["web-01"]])
        timeline.note("it begins")
        timeline.watch(happened("DispatchAck", State.ACTIVATING))
        self.assertRegex(out.getvalue(), r"^ +0\.\d s  it begins\n +0\.\d s  web-01   v1  Activating\n$")

    def test_lines_that_can_not_be_written_do_not_end_the_story(self) -> None:
        for error in (BrokenPipeError(), OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "gone")):
            with self.subTest(error):
                out = DeadEnd(error)
                timeline = Timeline(SystemClock(), Lines(out).show)
                timeline.note("one")
                timeline.note("two")
                self.assertEqual(len(timeline.entries), 2)
                self.assertEqual(out.tries, 1)


if __name__ == "__main__":
    unittest.main()
