"""An agent whose unit starts a new version ends when it is idle, and never while something is under way."""

from __future__ import annotations

import os
import tempfile
import threading
import unittest
from pathlib import Path
from unittest import mock

from nixfleet_agent.runtime.own_unit import INTERVAL_SECS, OwnUnitWorker, UnitChanged, own_unit, own_unit_workers
from nixfleet_agent.telemetry.status import SWITCHING, RolloutsView, StatusBoard
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.support.clock import FakeClock

PROGRAM = "/nix/store/a-agent/bin/nixfleet-agent"
OLD = f"{{ path={PROGRAM} ; argv[]={PROGRAM} run ; start_time=[1] ; pid=7 }}"
NEW = OLD.replace("/a-agent", "/b-agent")


class OwnUnit(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.answer = self.folder / "answer"
        systemctl = self.folder / "systemctl"
        systemctl.write_text(f'#!/bin/sh\necho "$@" >> {self.folder}/asked\ncat {self.answer}\n')
        systemctl.chmod(0o755)
        path = mock.patch.dict(os.environ, {"PATH": f"{self.folder}:{os.environ['PATH']}"})
        path.start()
        self.addCleanup(path.stop)
        self.clock = FakeClock()
        self.shutdown = ShutdownToken(self.clock)
        self.told: list[UnitChanged] = []
        self.idle = True
        self.worker = OwnUnitWorker(
            self.shutdown, self.clock, "nixfleet-agent.service", lambda: self.idle, self.told.append
        )

    def run_worker(self) -> None:
        thread = threading.Thread(target=self.worker.run)
        thread.start()

        def stop() -> None:
            self.shutdown.set()
            thread.join(30)

        self.addCleanup(stop)
        self.clock.until_waiting()

    def later(self) -> None:
        self.clock.advance(INTERVAL_SECS)
        self.clock.until_waiting()

    def test_a_new_version_is_told_once_the_agent_is_idle(self) -> None:
        self.answer.write_text(OLD)
        self.run_worker()
        self.later()
        self.assertEqual(self.told, [])
        self.idle = False
        self.answer.write_text(NEW)
        self.later()
        self.assertEqual(self.told, [])
        self.idle = True
        self.later()
        self.assertEqual(self.told, [UnitChanged("/nix/store/b-agent/bin/nixfleet-agent run")])
        asked = (self.folder / "asked").read_text().splitlines()[0]
        self.assertEqual(asked, "show --property=ExecStart --value -- nixfleet-agent.service")

    def test_what_changes_with_every_start_is_no_change(self) -> None:
        self.answer.write_text(OLD)
        self.run_worker()
        self.answer.write_text(OLD.replace("[1]", "[2]").replace("pid=7", "pid=8"))
        self.later()
        self.assertEqual(self.told, [])

    def test_a_systemd_that_does_not_answer_changes_nothing_and_is_said_once(self) -> None:
        (self.folder / "systemctl").write_text("#!/bin/sh\nexit 1\n")
        with self.assertLogs("nixfleet_agent.own_unit", "WARNING") as heard:
            self.run_worker()
            self.later()
        self.assertEqual((self.told, len(heard.records)), ([], 1))

    def test_only_the_main_process_of_a_service_has_a_unit(self) -> None:
        cgroup = self.folder / "cgroup"
        cgroup.write_text("0::/system.slice/nixfleet-agent.service\n")
        self.assertEqual(own_unit({"SYSTEMD_EXEC_PID": "7"}, 7, cgroup), "nixfleet-agent.service")
        self.assertIsNone(own_unit({"SYSTEMD_EXEC_PID": "8"}, 7, cgroup))
        self.assertIsNone(own_unit({}, 7, cgroup))
        cgroup.write_text("0::/user.slice/session-1.scope\n")
        self.assertIsNone(own_unit({"SYSTEMD_EXEC_PID": "7"}, 7, cgroup))
        self.assertIsNone(own_unit({"SYSTEMD_EXEC_PID": "7"}, 7, self.folder / "missing"))

    def test_idle_is_no_open_rollout_and_no_switch(self) -> None:
        board = StatusBoard()
        cgroup = mock.patch("nixfleet_agent.runtime.own_unit.own_unit", return_value="nixfleet-agent.service")
        with cgroup:
            (worker,) = own_unit_workers(self.shutdown, self.clock, board, self.told.append)
        assert isinstance(worker, OwnUnitWorker)
        self.assertFalse(worker._idle(), "nothing is known yet")
        for active_open, switching, idle in ((False, False, True), (True, False, False), (False, True, False)):
            board.publish_rollouts(RolloutsView("a@b", active_open))
            board.publish(SWITCHING, switching)
            self.assertEqual(worker._idle(), idle)


if __name__ == "__main__":
    unittest.main()
