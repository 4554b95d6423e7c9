"""The reboot worker on a host whose programs are stand-ins: what it asks, writes before, and asks for only once."""

from __future__ import annotations

import json
import os
import tempfile
import unittest
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from nixfleet_agent.activation.machine import SystemMachine
from nixfleet_agent.activation.records import GUARD, Intent, Records
from nixfleet_agent.config.model import MaintenanceConfig, RebootConfig
from nixfleet_agent.operator.hold import HoldStore
from nixfleet_agent.operator.maintenance import MaintenanceGate
from nixfleet_agent.operator.run_now import RunNowStore
from nixfleet_agent.reboots.decision import RebootStatus, WaitsFor
from nixfleet_agent.reboots.ledger import RebootLedger
from nixfleet_agent.reboots.required import require
from nixfleet_agent.runtime.platform import Platform
from nixfleet_agent.runtime.workers.reboot import RebootWorker
from nixfleet_agent.state_machine import State
from nixfleet_agent.telemetry.status import RolloutsView, StatusBoard
from tests.reboots.test_decision import DEFERRED, record, view
from tests.runtime.harness import bad_disk
from tests.runtime.parts import config, services
from tests.support.clock import EPOCH, FakeClock

R = "stable@aa"
WARN_SECS = 60.0


class Booted(SystemMachine):
    """This machine, in a boot that the test names."""

    def __init__(self, boot_id: str) -> None:
        self.boot_id = lambda: boot_id  # type: ignore[method-assign]


class Host(unittest.TestCase):
    """``said`` is what the stand-ins were asked to do, a line each."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.state, self.log = self.folder / "state", self.folder / "calls"
        self.state.mkdir()
        self.required = self.folder / "reboot-required"
        self.enterContext(mock.patch.dict(os.environ, {"PATH": f"{self.folder}:/bin:/usr/bin"}))
        self.clock, self.board = FakeClock(), StatusBoard()
        self.hold = HoldStore(self.state, self.clock)
        self.run_now = RunNowStore(self.state, self.clock)
        self.windows = MaintenanceConfig()
        self.boot_id = "boot-1"
        self.sessions()
        self.inhibitors()
        for name in ("wall", "systemctl"):
            self.program(name, f'echo "{name} $*" >>{self.log}')
        self.rule = RebootConfig(after_deferred="now", warn_secs=WARN_SECS, required_file=str(self.required))
        self.restart()

    def restart(self) -> None:
        """Another process of the agent on the same disk."""
        self.worker = RebootWorker(
            services(
                clock=self.clock,
                platform=Platform(clock=self.clock, machine=Booted(self.boot_id)),
                board=self.board,
                config=replace(config(), state_dir=self.state, reboot=self.rule),
                hold=self.hold,
                maintenance=MaintenanceGate(self.windows, self.run_now, self.clock),
            )
        )

    def program(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def sessions(self, *users: str) -> None:
        lines = "\n".join(f"{number} 1000 {user} - 7 user pts/0 no -" for number, user in enumerate(users))
        self.program("loginctl", f"cat <<'END'\n{lines}\nEND")

    def inhibitors(self, *who: str) -> None:
        said = json.dumps({"data": [[["shutdown", name, "busy", "block", 0, 1] for name in who]]})
        self.program("busctl", f"echo '{said}'")

    def said(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def deferred(self, shown: RolloutsView | None = None) -> None:
        self.board.publish_rollouts(shown or view(DEFERRED))

    def look(self, seconds: float = 0.0) -> RebootStatus | None:
        self.clock.advance(seconds)
        self.worker.look()
        section: Any = self.board.get("reboot")
        return section

    def waits_for(self, seconds: float = 0.0) -> WaitsFor | None:
        status = self.look(seconds)
        return status.waits_for if status else None


class Reboots(Host):
    def test_nothing_is_said_before_the_rollouts_are_known_and_none_where_none_is_due(self) -> None:
        require(self.required, ["kernel"])
        self.assertIsNone(self.look())
        self.assertTrue(self.required.exists(), "of the process before, in the same boot")
        self.board.publish_rollouts(RolloutsView())
        self.assertIsNone(self.look())
        self.assertEqual((self.said(), self.required.exists()), ([], False))

    def test_a_deferred_release_is_rebooted_into_once(self) -> None:
        self.deferred()
        with self.assertLogs("nixfleet_agent.reboot", "WARNING") as logged:
            self.assertEqual(self.waits_for(), WaitsFor.SHUTDOWN)
        self.assertIn("rebooting this host: stable@aa needs it for kernel", logged.output[0])
        self.assertEqual(self.said(), ["systemctl reboot"])
        self.assertEqual(self.waits_for(60), WaitsFor.SHUTDOWN)
        self.assertEqual(self.said(), ["systemctl reboot"])
        self.boot_id = "boot-2"
        self.restart()
        self.assertIsNone(self.look(), "the reducer has not seen yet what the boot has brought")
        self.deferred(view(replace(DEFERRED, deferred_boot_id="boot-2")))
        self.assertEqual(self.waits_for(86400), WaitsFor.OPERATOR)
        self.assertEqual(self.said(), ["systemctl reboot"])

    def test_an_operators_reboot_is_not_followed_by_the_agents(self) -> None:
        self.boot_id = "boot-2"
        self.restart()
        self.deferred()
        self.assertIsNone(self.look())
        self.assertEqual(self.said(), [])

    def test_it_is_on_disk_before_it_is_asked_for(self) -> None:
        ledger = RebootLedger(self.state)
        self.program("systemctl", f"cp {ledger.path} {self.log}")
        self.deferred()
        self.look()
        self.assertEqual(json.loads(self.log.read_text())[0]["rolloutId"], R)

    def test_a_disk_that_takes_no_note_keeps_the_host_up(self) -> None:
        self.deferred()
        with bad_disk() as disk:
            disk.break_down(28, lambda step, path: path.name.startswith("reboots"))
            self.assertEqual(self.waits_for(), WaitsFor.DISK)
            self.assertEqual(self.said(), [])
            disk.mend()
            self.assertEqual(self.waits_for(5), WaitsFor.SHUTDOWN)

    def test_a_crash_between_the_note_and_the_reboot_makes_no_second_one(self) -> None:
        self.deferred()
        RebootLedger(self.state).note(R, "forward", self.boot_id, self.clock.now())
        self.assertEqual(self.waits_for(1), WaitsFor.SHUTDOWN)
        self.assertEqual(self.said(), [])
        self.assertEqual(self.waits_for(600), WaitsFor.SHUTDOWN)
        self.assertEqual(self.said(), ["systemctl reboot"])

    def test_a_refused_one_is_told_and_asked_for_again_and_then_left(self) -> None:
        self.program("systemctl", f'echo "systemctl $*" >>{self.log}; echo "inhibited by backup" >&2; exit 1')
        self.deferred()
        status = self.look()
        assert status is not None
        self.assertEqual(status.reason, "the reboot was refused: inhibited by backup")
        for _ in range(5):
            last = self.look(601)
        self.assertEqual(self.said(), ["systemctl reboot"] * 3)
        assert last is not None
        self.assertEqual(last.waits_for, WaitsFor.OPERATOR)
        self.assertIn("inhibited by backup (3 times)", last.reason)

    def test_the_way_back_has_a_reboot_of_its_own(self) -> None:
        RebootLedger(self.state).note(R, "forward", "boot-0", EPOCH)
        self.board.publish("rollback", {"rollout_id": R, "deferred": "systemd", "closure": "old"})
        self.deferred(view(record(R, State.FAILED, rollback_owed=True)))
        self.assertEqual(self.waits_for(), WaitsFor.SHUTDOWN)
        self.assertEqual(self.said(), ["systemctl reboot"])
        self.assertEqual({each.direction for each in RebootLedger(self.state).all()}, {"forward", "rollback"})

    def test_never_is_never_and_can_be_changed_while_it_runs(self) -> None:
        self.worker.reconfigure(replace(self.rule, after_deferred="never"))
        self.deferred()
        self.assertEqual(self.waits_for(86400), WaitsFor.OPERATOR)
        self.assertEqual(self.said(), [])
        self.worker.reconfigure(self.rule)
        self.assertEqual(self.waits_for(5), WaitsFor.SHUTDOWN)


class Waits(Host):
    def test_for_its_window_or_an_operators_word_which_it_uses_up(self) -> None:
        begin, end = EPOCH + timedelta(hours=2), EPOCH + timedelta(hours=3)
        self.windows = MaintenanceConfig(windows=(f"{begin:%H:%M}-{end:%H:%M}",), time_zone="UTC")
        self.rule = replace(self.rule, after_deferred="window")
        self.restart()
        self.deferred()
        status = self.look()
        self.assertEqual(status and (status.waits_for, status.until), (WaitsFor.WINDOW, begin))
        self.run_now.request("agreed with Kim")
        self.assertEqual(self.waits_for(5), WaitsFor.SHUTDOWN)
        last = self.run_now.last()
        self.assertEqual(last and last.used_by, R)

    def test_for_the_end_of_a_hold(self) -> None:
        self.hold.set("disk swap", EPOCH + timedelta(hours=1))
        self.deferred()
        self.assertEqual(self.waits_for(), WaitsFor.HOLD)
        self.assertEqual(self.waits_for(3600), WaitsFor.SHUTDOWN)

    def test_for_an_armed_guard(self) -> None:
        records = Records(self.state, self.boot_id)
        intent = Intent("stable@00", GUARD, "old", "switch", "setsid", "guard", None, self.boot_id, 0.0, "")
        armed = records.prepare(intent)
        self.deferred()
        status = self.look()
        self.assertEqual(status and status.reason, "the guard of stable@00 is armed")
        records.remove(armed)
        self.assertEqual(self.waits_for(5), WaitsFor.SHUTDOWN)

    def test_for_a_program_that_blocks(self) -> None:
        self.inhibitors("backup")
        self.deferred()
        status = self.look()
        self.assertEqual(status and status.reason, "shutdown is blocked by backup (busy)")
        self.inhibitors()
        self.assertEqual(self.waits_for(5), WaitsFor.SHUTDOWN)

    def test_for_users_who_were_warned_once(self) -> None:
        self.sessions("alice", "lee", "alice")
        self.deferred()
        status = self.look()
        assert status is not None
        self.assertEqual((status.waits_for, status.until), (WaitsFor.USERS, EPOCH + timedelta(seconds=WARN_SECS)))
        self.assertIn("alice, lee", status.reason)
        self.assertEqual(self.waits_for(WARN_SECS - 1), WaitsFor.USERS)
        self.assertEqual(self.waits_for(1), WaitsFor.SHUTDOWN)
        warned, asked = self.said()
        self.assertEqual(warned, "wall This host reboots in 60 s: stable@aa needs it for kernel.")
        self.assertEqual(asked, "systemctl reboot")

    def test_users_are_told_that_it_is_put_off_and_warned_anew(self) -> None:
        self.sessions("alice")
        self.deferred()
        self.look()
        self.hold.set("disk swap", EPOCH + timedelta(hours=1))
        self.assertEqual(self.waits_for(5), WaitsFor.HOLD)
        self.hold.release()
        self.assertEqual(self.waits_for(WARN_SECS), WaitsFor.USERS)
        self.assertIn("put off", self.said()[1])
        self.assertEqual(len(self.said()), 3)

    def test_not_for_users_where_it_is_so_configured_or_nobody_is_there_any_more(self) -> None:
        self.sessions("alice")
        self.deferred()
        self.assertEqual(self.waits_for(), WaitsFor.USERS)
        self.sessions()
        self.assertEqual(self.waits_for(5), WaitsFor.SHUTDOWN)
        self.assertNotIn("put off", " ".join(self.said()))

    def test_a_delay_of_0_waits_for_nobody(self) -> None:
        self.sessions("alice")
        self.worker.reconfigure(replace(self.rule, warn_secs=0))
        self.deferred()
        self.assertEqual(self.waits_for(), WaitsFor.SHUTDOWN)


class Told(Host):
    def test_a_file_says_that_a_reboot_is_due_as_long_as_one_is(self) -> None:
        self.worker.reconfigure(replace(self.rule, after_deferred="never"))
        self.deferred(view(replace(DEFERRED, deferred_component="dbus, kernel")))
        self.look()
        self.assertEqual(self.required.with_name("reboot-required.pkgs").read_text(), "dbus\nkernel\n")
        self.restart()
        self.deferred(view(DEFERRED, record("stable@bb", State.SOAKING)))
        self.look()
        self.assertFalse(self.required.exists())

    def test_a_file_that_can_not_be_written_is_told_once_and_stops_nothing(self) -> None:
        self.worker.reconfigure(replace(self.rule, required_file=str(self.folder / "missing" / "file")))
        self.hold.set("disk swap")
        self.deferred()
        with self.assertLogs("nixfleet_agent.reboot", "WARNING") as logged:
            self.assertEqual(self.waits_for(), WaitsFor.HOLD)
            self.assertEqual(self.waits_for(5), WaitsFor.HOLD)
        self.assertEqual(len(logged.output), 1)

    def test_no_file_where_none_is_configured(self) -> None:
        self.worker.reconfigure(replace(self.rule, required_file="", after_deferred="never"))
        self.deferred()
        self.look()
        self.assertFalse(self.required.exists())


if __name__ == "__main__":
    unittest.main()
