"""The live picture: it fits every terminal, shows what matters, and lets nobody drive the terminal through it."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import threading
import unittest
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, cast
from unittest import mock

from rich.console import Console

from nixfleet_agent.demo.closures import Release
from nixfleet_agent.demo.fleet import DemoFleet
from nixfleet_agent.demo.live import Live
from nixfleet_agent.demo.logs import LoggedRefusal
from nixfleet_agent.demo.timeline import Timeline
from nixfleet_agent.demo.view import Lines, view_on
from nixfleet_agent.local_cp.happenings import Notification
from nixfleet_agent.state_machine import State
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.threads.interrupts import terminable

#: As terminals are told (ECMA-48 with DEC's private modes).
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
NOW = datetime(2026, 5, 16, 1, 30, tzinfo=timezone.utc)


@dataclass
class ShownHost:
    """A host as the picture reads it."""

    closure: str = "c1"
    queue: list[str] = field(default_factory=list)

    def running_closure(self) -> str:
        return self.closure

    def undelivered(self) -> list[str]:
        return self.queue


@dataclass
class ShownFleet:
    hosts: dict[str, ShownHost]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.hosts)

    @property
    def releases(self) -> dict[str, Release]:
        return {"v1": Release("v1", "c1"), "v2": Release("v2", "c2")}


class Interrupted(unittest.TestCase):
    def test_while_it_is_opened_it_gives_the_terminal_back_and_keeps_no_thread(self) -> None:
        class Terminal(io.StringIO):
            """A user presses Ctrl-C when the first of the picture comes."""

            pressed = False

            def isatty(self) -> bool:
                return True

            def write(self, text: str) -> int:
                if not self.pressed:
                    self.pressed = True
                    signal.raise_signal(signal.SIGINT)
                return super().write(text)

        out, before = Terminal(), set(threading.enumerate())
        with mock.patch.dict(os.environ, TERM="xterm"), terminable(), self.assertRaises(KeyboardInterrupt), Live(out):
            self.fail("it was opened")
        self.assertTrue(out.pressed)
        self.assertGreater(out.getvalue().rfind(SHOW_CURSOR), out.getvalue().rfind(HIDE_CURSOR))
        for thread in set(threading.enumerate()) - before:
            thread.join(10)  # told to end, it looks up from its pause
            self.assertFalse(thread.is_alive(), thread)


class Picture(unittest.TestCase):
    def setUp(self) -> None:
        self.timeline = Timeline(SystemClock())
        self.title = "what is told"

    def fleet(self, count: int) -> ShownFleet:
        fleet = ShownFleet({f"web-{number:03}": ShownHost() for number in range(1, count + 1)})
        first, *rest = fleet.names
        self.timeline.open_rollout("stable@a", "v1", [fleet.names])
        self.timeline.open_rollout("stable@b", "v2", [[first], rest])
        return fleet

    def happened(
        self, hostname: str, state: State | None, what: str = "Known", rollout_id: str = "stable@b", **detail: Any
    ) -> None:
        self.timeline.watch(Notification(NOW, hostname, rollout_id, what, state, detail))

    def draw(self, fleet: ShownFleet | None, width: int = 100, height: int = 30) -> list[str]:
        live = Live(io.StringIO())
        out = io.StringIO()
        console = Console(file=out, width=width, height=height, color_system=None)
        live._console = console
        live.follow(self.title, self.timeline)
        live.watch(cast(DemoFleet, fleet))
        console.print(live._render())
        return out.getvalue().splitlines()

    def test_before_there_is_a_fleet_it_says_what_is_going_on(self) -> None:
        self.timeline.note("making keys")
        drawn = "\n".join(self.draw(None))
        self.assertIn("what is told", drawn)
        self.assertIn("making keys", drawn)

    def test_hosts_states_waves_queues_refusals_and_the_halt_are_there(self) -> None:
        fleet = self.fleet(3)
        fleet.hosts["web-001"] = ShownHost("c2", ["1.json", "2.json"])
        self.happened("web-001", State.FAILED)
        self.happened("", None, "Halted", reason="halted: failed on web-001")
        self.timeline.refuse(LoggedRefusal("web-002", "stale", "a Dispatch was refused: too old"))
        self.timeline.refuse(LoggedRefusal("web-003", "stale", "a Dispatch was refused: too old"))
        drawn = self.draw(fleet)
        self.assertTrue(
            any("web-001" in line and "v2" in line and "✗ Failed" in line and "2" in line for line in drawn)
        )
        self.assertIn("v2 wave 1  0/1 ✗", [line.rstrip() for line in drawn])
        self.assertIn("v2 wave 2  0/2 ··", [line.rstrip() for line in drawn])
        self.assertIn("v2 halted: failed on web-001", [line.rstrip() for line in drawn])
        self.assertIn("2 hosts refused: stale  too old", [line.rstrip() for line in drawn])

    def test_it_fits_the_terminal(self) -> None:
        for agents in (1, 3, 20, 100):
            for width, height in ((80, 24), (120, 50), (60, 20), (40, 15)):
                with self.subTest(agents=agents, width=width, height=height):
                    self.timeline = Timeline(SystemClock())
                    fleet = self.fleet(agents)
                    for letter in "cde":
                        self.timeline.open_rollout(f"stable@{letter}", f"v{letter}", [fleet.names])
                    for name in fleet.names:
                        for letter in "abcde":
                            self.happened(name, State.ACTIVATING, rollout_id=f"stable@{letter}")
                        self.timeline.refuse(LoggedRefusal(name, "bad_signature", "long words " * 30))
                    self.timeline.note("it goes on")
                    drawn = self.draw(fleet, width, height)
                    self.assertLess(len(drawn), height, "\n".join(drawn))
                    self.assertLessEqual(max(map(len, drawn)), width)
                    # The newest release is in the table, and the timeline's last line is on the screen.
                    self.assertTrue(any(re.match(r"host .* ve\b|ve +\d", line) for line in drawn), "\n".join(drawn))
                    self.assertIn("it goes on", drawn[-1])

    def test_a_title_that_is_longer_than_the_terminal_is_told_to_its_end(self) -> None:
        self.title = "two good releases, and a bad one that every host takes back"
        for width, height in ((80, 24), (40, 15)):
            with self.subTest(width=width):
                drawn = self.draw(self.fleet(3), width, height)
                self.assertIn(self.title, " ".join(" ".join(drawn[:3]).split()))
                self.assertLess(len(drawn), height)

    def test_many_hosts_are_counted(self) -> None:
        fleet = self.fleet(100)
        for name in fleet.names[:60]:
            self.happened(name, State.CONVERGED)
        drawn = "\n".join(self.draw(fleet))
        self.assertRegex(drawn, r"v2 .* 60\b")
        self.assertIn("v2 wave 2  59/99", drawn)

    def test_what_agents_say_can_not_drive_the_terminal(self) -> None:
        fleet = self.fleet(1)
        self.timeline.refuse(LoggedRefusal("web-001", "stale", "\x1b[2Jgone\n[bold]not markup[/bold]"))
        drawn = "\n".join(self.draw(fleet))
        self.assertNotIn("\x1b", drawn)
        self.assertIn("[bold]not markup[/bold]", drawn)


class Choice(unittest.TestCase):
    def test_only_a_terminal_that_can_draw_gets_a_picture(self) -> None:
        screen, inner = pty.openpty()
        self.addCleanup(os.close, screen)
        with open(inner, "w") as terminal:
            for term, out, kind in (
                ("xterm", terminal, Live),
                ("dumb", terminal, Lines),
                ("xterm", io.StringIO(), Lines),
            ):
                with self.subTest(term=term, kind=kind), mock.patch.dict(os.environ, {"TERM": term}):
                    self.assertIsInstance(view_on(out), kind)


if __name__ == "__main__":
    unittest.main()
