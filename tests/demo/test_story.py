"""What a story tells of a release beside its states: what the first switch to it has changed."""

from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path
from typing import cast

from nixfleet_agent.activation.changes import FILE, Changes
from nixfleet_agent.activation.records import FORWARD, Intent, Records
from nixfleet_agent.demo.disk import HostDisk
from nixfleet_agent.demo.fleet import DemoFleet, rollout_id_of
from nixfleet_agent.demo.story import Story
from nixfleet_agent.demo.timeline import Timeline
from nixfleet_agent.local_cp.happenings import Notification
from nixfleet_agent.proto.times import parse_time
from nixfleet_agent.state_machine import State
from nixfleet_agent.threads.clock import SystemClock
from tests.support.signing import closure_name

ROLLOUT = rollout_id_of("v2")
NEW, OLD = closure_name("web-v2"), closure_name("web-v1")
WHEN = "2026-05-16T01:02:03Z"


class OnDisks:
    """As much of a fleet as a story asks for when its hosts need nothing."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.names = names
        self.hosts = {name: HostDisk(name, folder / name) for name in names}

    def look_after(self) -> None:
        """No agent runs that could have ended."""


class WhatAReleaseChanges(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="story-")
        self.addCleanup(scratch.cleanup)
        self.fleet = OnDisks(Path(scratch.name), "web-01", "web-02")
        self.timeline = Timeline(SystemClock())
        self.timeline.open_rollout(ROLLOUT, "v2", [self.fleet.names])
        self.story = Story(cast(DemoFleet, self.fleet), self.timeline)

    def switched(self, name: str, package: str) -> None:
        """The host keeps what its switch changed."""
        intent = Intent(ROLLOUT, FORWARD, NEW, "switch", "setsid", "u", OLD, "boot", 0.0, WHEN)
        record = Records(self.fleet.hosts[name].state_dir, "boot").prepare(intent)
        kept = Changes((package,), 1, 2048, ("app.service",), (), (), ())
        (record.path / FILE).write_text(json.dumps(kept.to_json()))

    def reach(self, *states: State) -> list[str]:
        for state in states:
            for name in self.fleet.names:
                self.timeline.watch(Notification(parse_time(WHEN), name, ROLLOUT, str(state), state, {}))
            self.story.reach("v2", str(state))
        return [entry.text for entry in self.timeline.entries if "changes" in entry.text]

    def test_it_is_told_once_by_the_first_host_that_knows(self) -> None:
        self.assertEqual(self.reach(State.ACTIVATING), [])
        self.switched("web-02", "app 1 -> 2")
        said = ["v2 changes app 1 -> 2, +2.0 KiB; restarts app.service"]
        self.assertEqual(self.reach(State.SOAKING), said)
        self.switched("web-01", "app 1 -> 3")
        self.assertEqual(self.reach(State.CONVERGED), said)


if __name__ == "__main__":
    unittest.main()
