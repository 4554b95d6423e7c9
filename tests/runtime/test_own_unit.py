"""What systemd says of the agent's own unit; an idle agent ends for another one that can start, and for no other."""

from __future__ import annotations

import os
import tempfile
import threading
import unittest
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from nixfleet_agent.runtime.own_unit import OwnUnit, UnitChanged, own_unit, parse
from nixfleet_agent.runtime.successor import Trial, Verdict
from nixfleet_agent.runtime.workers import own_unit as module
from nixfleet_agent.runtime.workers.own_unit import INTERVAL_SECS, OwnUnitWorker
from nixfleet_agent.threads.clock import Clock, SystemClock
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.support.clock import FakeClock

UNIT = "nixfleet-agent.service"
PROGRAM = "/nix/store/a-agent/bin/nixfleet-agent"
OLD = f"ExecStart={{ path={PROGRAM} ; argv[]={PROGRAM} run ; start_time=[1] ; pid=7 }}\n"
NEW = OLD.replace("/a-agent", "/b-agent")


class Case(unittest.TestCase):
    """``systemctl`` says what is in ``self.answer``."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.answer = self.folder / "answer"
        self.answer.write_text(OLD)
        self.systemctl = self.folder / "systemctl"
        self.systemctl.write_text(f'#!/bin/sh\necho "$@" >> {self.folder}/asked\ncat {self.answer}\n')
        self.systemctl.chmod(0o755)
        self.enterContext(mock.patch.dict(os.environ, {"PATH": f"{self.folder}:{os.environ['PATH']}"}))
        self.unit = self.make()

    @staticmethod
    def make(clock: Clock | None = None, stopping: Callable[[], bool] = lambda: False) -> OwnUnit:
        return OwnUnit(UNIT, 7, clock or SystemClock(), stopping)


class Unit(Case):
    def test_another_command_is_a_change_and_another_start_of_the_same_is_none(self) -> None:
        self.answer.write_text(OLD.replace("[1]", "[2]").replace("pid=7", "pid=8"))
        self.assertEqual((self.unit.changed(), self.unit.differs()), (None, False))
        self.answer.write_text(NEW)
        self.assertEqual(str(self.unit.changed()), "/nix/store/b-agent/bin/nixfleet-agent run")
        self.assertTrue(self.unit.differs())
        asked = (self.folder / "asked").read_text().splitlines()[0]
        self.assertEqual(
            asked, f"show --property=ExecStart --property=Environment --property=EnvironmentFiles -- {UNIT}"
        )

    def test_so_is_another_variable_or_another_place_of_the_configuration(self) -> None:
        config = self.folder / "agent.toml"
        for name in ("one.toml", "two.toml"):
            (self.folder / name).touch()
        config.symlink_to("one.toml")
        self.answer.write_text(OLD.replace(" run", f" run --config {config}"))
        unit = self.make()
        (self.folder / "one.toml").write_text("edited where it lies")
        self.assertIsNone(unit.changed())
        config.unlink()
        config.symlink_to("two.toml")
        self.assertIsNotNone(unit.changed())
        self.answer.write_text(OLD + "Environment=A=1\n")
        self.assertIsNotNone(self.unit.changed())

    def test_a_systemd_that_does_not_answer_is_no_change_but_nothing_to_rely_on_and_is_said_once(self) -> None:
        self.systemctl.write_text("#!/bin/sh\nexit 1\n")
        with self.assertLogs("nixfleet_agent.own_unit", "WARNING") as heard:
            self.assertEqual((self.unit.ask(), self.unit.changed(), self.unit.differs()), (None, None, True))
        self.assertEqual(len(heard.records), 1)

    def test_one_that_never_answered_is_not_held_against_anybody(self) -> None:
        self.systemctl.write_text("#!/bin/sh\nexit 1\n")
        self.assertFalse(self.make().differs())

    def test_one_that_hangs_does_not_keep_an_agent_that_stops(self) -> None:
        pid = self.folder / "pid"
        unit = self.make(stopping=pid.exists)
        self.systemctl.write_text(f"#!/bin/sh\necho $$ > {pid}.new\nmv {pid}.new {pid}\nexec sleep 9.5\n")
        with self.assertLogs("nixfleet_agent.own_unit", "WARNING") as heard:
            self.assertIsNone(unit.ask())
        self.assertIn("the agent stops", heard.output[0])
        self.assertFalse(Path(f"/proc/{pid.read_text().strip()}").exists(), "nothing is left behind")

    def test_one_that_answers_is_heard_even_then(self) -> None:
        """A switch that has just ended has to know whether it brought another agent, which is to be guarded."""
        unit = self.make(FakeClock(), lambda: True)
        self.answer.write_text(NEW)
        self.assertIsNotNone(unit.changed())

    def test_why_it_does_not_answer_is_said(self) -> None:
        self.systemctl.write_text("#!/bin/sh\necho 'Failed to connect to bus' >&2\nexit 1\n")
        with self.assertLogs("nixfleet_agent.own_unit", "WARNING") as heard:
            self.assertIsNone(self.unit.ask())
        self.assertIn("Failed to connect to bus", heard.output[0])

    def test_ready_is_this_very_process_and_an_active_unit(self) -> None:
        for said, ready in (
            ("MainPID=7\nActiveState=active\n", True),
            ("MainPID=7\nActiveState=activating\n", False),
            ("MainPID=8\nActiveState=active\n", False),
            ("", False),
        ):
            self.answer.write_text(said)
            self.assertEqual(self.unit.is_ready(), ready, said)

    def test_words_and_files_are_read_as_systemd_shows_them(self) -> None:
        start = parse(
            "EnvironmentFiles=/etc/must (ignore_errors=no)\nEnvironmentFiles=/etc/may (ignore_errors=yes)\n"
            'Environment=PATH=/bin "WORDS=one two"\n'
            "ExecStart={ path=/bin/a ; argv[]=a run --config=/etc/x.toml ; ignore_errors=no }\n"
        )
        assert start is not None
        self.assertEqual(start.command, ("/bin/a", "run", "--config=/etc/x.toml"))
        self.assertEqual(dict(start.environment), {"PATH": "/bin", "WORDS": "one two"})
        self.assertEqual(start.files, ((Path("/etc/must"), False), (Path("/etc/may"), True)))
        self.assertIn("/etc/x.toml", start.places)
        self.assertIsNone(parse("ExecStart=\nEnvironment=\n"))

    def test_only_the_main_process_of_a_service_has_a_unit(self) -> None:
        cgroup = self.folder / "cgroup"
        cgroup.write_text("0::/system.slice/nixfleet-agent.service\n")
        self.assertEqual(own_unit({"SYSTEMD_EXEC_PID": "7"}, 7, cgroup), UNIT)
        self.assertIsNone(own_unit({"SYSTEMD_EXEC_PID": "8"}, 7, cgroup))
        self.assertIsNone(own_unit({}, 7, cgroup))
        cgroup.write_text("0::/user.slice/session-1.scope\n")
        self.assertIsNone(own_unit({"SYSTEMD_EXEC_PID": "7"}, 7, cgroup))
        self.assertIsNone(own_unit({"SYSTEMD_EXEC_PID": "7"}, 7, self.folder / "missing"))


class Watch(Case):
    def setUp(self) -> None:
        super().setUp()
        self.clock = FakeClock()
        self.shutdown = ShutdownToken(self.clock)
        self.told: list[UnitChanged] = []
        self.idle = True
        self.trial = Trial(Verdict.GOOD)
        self.enterContext(mock.patch.object(module, "try_successor", lambda start, clock, check: self.on_try()))
        self.worker = OwnUnitWorker(self.shutdown, self.clock, self.unit, lambda: self.idle, self.told.append)
        thread = threading.Thread(target=self.worker.run)
        thread.start()

        def stop() -> None:
            self.shutdown.set()
            thread.join(30)

        self.addCleanup(stop)
        self.clock.until_waiting()

    def on_try(self) -> Trial:
        return self.trial

    def later(self) -> None:
        self.clock.advance(INTERVAL_SECS)
        self.clock.until_waiting()

    def test_a_new_version_is_told_once_the_agent_is_idle(self) -> None:
        self.later()
        self.assertEqual(self.told, [])
        self.idle = False
        self.answer.write_text(NEW)
        self.later()
        self.assertEqual(self.told, [])
        self.idle = True
        self.later()
        self.assertEqual(self.told, [UnitChanged("/nix/store/b-agent/bin/nixfleet-agent run")])

    def test_a_rollout_that_came_during_the_try_is_not_left(self) -> None:
        def accepts() -> Trial:
            self.idle = False
            return self.trial

        self.answer.write_text(NEW)
        with mock.patch.object(self, "on_try", accepts):
            self.later()
        self.assertEqual(self.told, [])
        self.idle = True
        self.later()
        self.assertEqual(len(self.told), 1)

    def test_one_that_can_not_start_is_not_left_for_and_is_said_once(self) -> None:
        self.trial = Trial(Verdict.BAD, "program: no module named x")
        self.answer.write_text(NEW)
        with self.assertLogs("nixfleet_agent.own_unit", "ERROR") as heard:
            self.later()
            self.later()
        self.assertEqual((self.told, len(heard.records)), ([], 1))
        self.assertIn("no module named x", heard.output[0])
        self.trial = Trial(Verdict.UNTRIED, "too old")
        self.later()
        self.assertEqual(len(self.told), 1, "what can't be tried is as good as it was before there was a try")


if __name__ == "__main__":
    unittest.main()
