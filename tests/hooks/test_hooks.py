"""Hooks: which may be run, what they are told, and that they are told at least once whatever happens in between."""

from __future__ import annotations

import json
import os
import tempfile
import textwrap
import threading
import unittest
from datetime import timedelta
from pathlib import Path
from typing import Any

from nixfleet_agent.activation.model import Forward
from nixfleet_agent.config.model import Config, HooksConfig
from nixfleet_agent.hooks.folder import find, problems
from nixfleet_agent.hooks.ledger import outputs
from nixfleet_agent.hooks.moments import BEFORE_SWITCH, FOLDERS, Occasion, owed
from nixfleet_agent.hooks.runner import OUTPUT_LIMIT, HookRunner
from nixfleet_agent.hooks.veto import Veto
from nixfleet_agent.journal.entries import Entry
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.runtime.rollout.recovery import recover
from nixfleet_agent.runtime.workers.hooks import HooksWorker
from nixfleet_agent.state_machine.events import LocalActivationDeferred, LocalConvergedReached
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.runtime.parts import services
from tests.support.clock import EPOCH
from tests.support.signing import closure_name

ROLLOUT, TARGET, PRIOR = "stable@aa", closure_name("new"), closure_name("old")
PATIENCE = 60.0


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.top = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.folder = self.top / "hooks.d"
        self.state = self.top / "state"
        self.folder.mkdir(mode=0o755)
        self.state.mkdir(mode=0o700)

    def hook(self, moment: str, name: str, script: str) -> Path:
        place = self.folder / moment
        place.mkdir(mode=0o755, exist_ok=True)
        path = place / name
        path.write_text("#!/bin/sh\n" + textwrap.dedent(script))
        path.chmod(0o755)
        return path


class Fitness(Case):
    def test_hooks_are_found_in_the_order_of_their_names_without_what_editors_leave(self) -> None:
        for name in ("20-b", "10-a", ".hidden", "10-a~"):
            self.hook("converged", name, "exit 0")
        found = find(self.folder, "converged")
        self.assertEqual(([path.name for path in found.hooks], found.problems), (["10-a", "20-b"], ()))
        self.assertEqual(find(self.folder, "failed").hooks, ())
        self.assertEqual(find(self.top / "nowhere", "failed").problems, ())

    def test_what_root_should_not_run_is_not_run_and_named(self) -> None:
        writable = self.hook("converged", "writable", "exit 0")
        writable.chmod(0o777)
        plain = self.hook("converged", "plain", "exit 0")
        plain.chmod(0o644)
        (self.folder / "converged" / "folder").mkdir()
        (self.folder / "converged" / "dangling").symlink_to("/nowhere")
        self.hook("converged", "good", "exit 0")
        found = find(self.folder, "converged")
        self.assertEqual([path.name for path in found.hooks], ["good"])
        self.assertEqual(len(found.problems), 4)
        for word in ("can be changed by others", "chmod 755", "not a file", "can't be read"):
            self.assertTrue(any(word in problem for problem in found.problems), word)

    def test_a_link_is_judged_by_what_it_leads_to(self) -> None:
        target = self.top / "program"
        target.write_text("#!/bin/sh\n")
        target.chmod(0o777)
        (self.folder / "failed").mkdir(mode=0o755)
        (self.folder / "failed" / "link").symlink_to(target)
        self.assertEqual(find(self.folder, "failed").hooks, ())
        target.chmod(0o755)
        self.assertEqual(len(find(self.folder, "failed").hooks), 1)

    @unittest.skipUnless(os.geteuid() == 0, "only root can give a file away")
    def test_a_hook_of_another_user_is_not_run(self) -> None:
        os.chown(self.hook("converged", "theirs", "exit 0"), 1000, 1000)
        found = find(self.folder, "converged")
        self.assertEqual((found.hooks, "user 1000" in found.problems[0]), ((), True))

    def test_a_folder_that_others_can_write_disarms_all_that_is_in_it(self) -> None:
        self.hook("converged", "good", "exit 0")
        for place in (self.folder, self.folder / "converged"):
            place.chmod(0o777)
            found = find(self.folder, "converged")
            self.assertEqual((found.hooks, len(found.problems)), ((), 1))
            place.chmod(0o755)

    def test_a_folder_full_of_programs_is_a_mistake(self) -> None:
        for number in range(65):
            self.hook("failed", f"{number:02}", "exit 0")
        self.assertEqual(find(self.folder, "failed").hooks, ())

    def test_a_moment_that_does_not_exist_is_named(self) -> None:
        self.hook("convergd", "x", "exit 0")
        (line,) = problems(self.folder)
        self.assertIn("convergd is no moment", line)
        for moment in FOLDERS:
            self.assertIn(moment, line)


class Running(Case):
    def run_hook(self, script: str, *, timeout: float = 20.0, reason: str = "") -> Any:
        details = {"component": reason} if reason else {}
        occasion = Occasion("deferred", ROLLOUT, 7, TARGET, PRIOR, details)
        runner = HookRunner(SystemClock(), timeout, {"PATH": os.defpath})
        return runner.run(self.hook("deferred", "x", script), occasion, lambda: None)

    def test_it_is_told_everything_in_its_environment(self) -> None:
        ran = self.run_hook("env | grep ^NIXFLEET_ | sort", reason="dbus\nbroker")
        self.assertEqual(ran.exit_code, 0)
        told = dict(line.split("=", 1) for line in ran.output.splitlines())
        self.assertEqual(
            told,
            {
                "NIXFLEET_MOMENT": "deferred",
                "NIXFLEET_ROLLOUT_ID": ROLLOUT,
                "NIXFLEET_SEQ": "7",
                "NIXFLEET_TARGET_CLOSURE": TARGET,
                "NIXFLEET_PRIOR_CLOSURE": PRIOR,
                "NIXFLEET_REASON": "dbus broker",
            },
        )

    def test_one_that_hangs_is_ended_with_what_it_started(self) -> None:
        pid_file = self.top / "pid"
        ran = self.run_hook(f"sleep 300 & echo $! >{pid_file}; wait", timeout=1.0)
        self.assertEqual((ran.exit_code, "did not end within 1 s" in ran.reason), (-1, True))
        child = Path(f"/proc/{pid_file.read_text().strip()}/stat")
        self.assertTrue(not child.exists() or child.read_text().split()[2] == "Z")

    def test_one_that_floods_leaves_the_end_of_what_it_said(self) -> None:
        ran = self.run_hook("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo the end")
        self.assertEqual((len(ran.output) <= OUTPUT_LIMIT, ran.reason), (True, "the end"))

    def test_one_that_can_not_start_has_failed(self) -> None:
        path = self.hook("deferred", "x", "")
        path.write_text("#!/nowhere/at/all\n")
        ran = HookRunner(SystemClock(), 5.0, {}).run(path, Occasion("deferred", ROLLOUT, 1, "", None, {}), lambda: None)
        self.assertEqual(ran.exit_code, -1)
        self.assertIn("can't run", ran.reason)


class Vetoes(Case):
    def veto(self) -> Veto:
        return Veto(self.folder, HookRunner(SystemClock(), 20.0, {"PATH": os.defpath}))

    def asked(self, veto: Veto) -> str | None:
        return veto(Forward(ROLLOUT, TARGET, PRIOR, "halt"), lambda: None)

    def test_without_hooks_nobody_refuses(self) -> None:
        self.assertIsNone(self.asked(self.veto()))

    def test_the_first_that_fails_refuses_with_its_last_line_and_no_other_is_asked(self) -> None:
        said = self.top / "said"
        self.hook(BEFORE_SWITCH, "10-good", f'echo "$NIXFLEET_TARGET_CLOSURE" >>{said}')
        self.hook(BEFORE_SWITCH, "20-bad", "echo draining; echo three users left >&2; exit 1")
        self.hook(BEFORE_SWITCH, "30-late", f"echo late >>{said}")
        self.assertEqual(self.asked(self.veto()), "the hook 20-bad refuses it: three users left")
        self.assertEqual(said.read_text(), f"{TARGET}\n")

    def test_one_that_root_should_not_run_is_not_asked_and_said_once(self) -> None:
        self.hook(BEFORE_SWITCH, "10-theirs", "exit 1").chmod(0o777)
        veto = self.veto()
        with self.assertLogs("nixfleet_agent.hooks", "ERROR") as logged:
            self.assertIsNone(self.asked(veto))
            self.assertIsNone(self.asked(veto))
        self.assertEqual(len(logged.records), 1)


class Owed(unittest.TestCase):
    def test_only_the_moments_after_what_was_told_are_owed(self) -> None:
        kinds = ("Dispatch", "DispatchAck", "ActivationStarted", "ActivationCompleted", "ProbeResult", "Failed")
        log = [entry(seq, kind) for seq, kind in enumerate(kinds)]
        self.assertEqual([(o.moment, o.seq) for o in owed(log, 0)], [("after-switch", 3), ("failed", 5)])
        self.assertEqual([(o.seq, o.target, o.prior) for o in owed(log, 3)], [(5, TARGET, PRIOR)])
        self.assertEqual(list(owed(log, 5)), [])


def entry(seq: int, kind: str) -> Entry:
    event: dict[str, object] = {"targetClosure": TARGET, "priorClosure": PRIOR} if seq == 0 else {}
    return Entry(seq=seq, hostname="web-01", rollout_id=ROLLOUT, kind=kind, created_at=EPOCH, event=event)


class Telling(Case):
    """The worker with real programs, over its whole life."""

    def setUp(self) -> None:
        super().setUp()
        self.told = self.top / "told"
        self.journal = Journal(self.state, "web-01")
        self.journal.open()

    def worker(self) -> HooksWorker:
        clock = SystemClock()
        self.shutdown = ShutdownToken(clock)
        config = Config(
            control_plane_url="https://cp.invalid",
            machine_id="web-01",
            state_dir=self.state,
            hooks=HooksConfig(folder=self.folder, timeout_secs=20.0),
        )
        parts = services(clock=clock, shutdown=self.shutdown, config=config, journal=self.journal)
        return HooksWorker(parts, recover(self.journal, None, 0.0))

    def started(self) -> HooksWorker:
        worker = self.worker()
        thread = threading.Thread(target=worker.run)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(self.shutdown.set)
        self.thread = thread
        return worker

    def stop(self) -> None:
        self.shutdown.set()
        self.thread.join()

    def until(self, condition: Any) -> None:
        deadline = SystemClock().monotonic() + PATIENCE
        while not condition():
            self.assertLess(SystemClock().monotonic(), deadline)
            threading.Event().wait(0.02)

    def lines(self) -> list[str]:
        return self.told.read_text().splitlines() if self.told.exists() else []

    def write(self, moment: str, name: str = "x", code: int = 0) -> None:
        self.hook(moment, name, f'echo "$NIXFLEET_MOMENT $NIXFLEET_SEQ" >>{self.told}; echo said it; exit {code}')

    def accept(self) -> Any:
        """A rollout on disk, and its record."""
        from nixfleet_agent.journal.header import DISPATCH_KIND, Acceptance
        from nixfleet_agent.state_machine import Policy

        fields: dict[str, Any] = {
            "number": 1,
            "rollout_id": ROLLOUT,
            "target_closure": TARGET,
            "prior_closure": PRIOR,
            "soak_due_at": EPOCH,
            "soak_floor": 0,
            "policy": Policy.HALT,
            "accepted_at": EPOCH,
            "manifest_hash": "0" * 64,
            "manifest_signed_at": EPOCH,
            "fleet_hash": "0" * 64,
            "fleet_signed_at": EPOCH,
            "marks": {},
        }
        accepted = Acceptance(**fields)
        header = Entry(
            seq=0, hostname="web-01", rollout_id=ROLLOUT, kind=DISPATCH_KIND, created_at=EPOCH, event=accepted.to_json()
        )
        self.journal.accept(header)
        return accepted.record("web-01")

    def test_each_moment_is_told_once_it_is_durable_and_its_words_are_kept(self) -> None:
        self.write("converged")
        self.write("deferred", code=3)
        worker, record = self.started(), self.accept()
        with self.assertLogs("nixfleet_agent.hooks", "WARNING"):
            worker.tell(record, LocalActivationDeferred(seq=2, component="dbus", deferred_at=EPOCH))
            worker.tell(record, LocalConvergedReached(seq=9, converged_at=EPOCH, current_closure=TARGET))
            self.until(lambda: len(list(outputs(self.state, ROLLOUT))) == 2)
        self.assertEqual(self.lines(), ["deferred 2", "converged 9"])
        said = [(o.seq, o.moment, o.hook, o.exit_code, o.output.strip()) for o in outputs(self.state, ROLLOUT)]
        self.assertEqual(said, [(2, "deferred", "x", 3, "said it"), (9, "converged", "x", 0, "said it")])

    def test_what_will_not_be_run_is_said_at_the_start_and_once(self) -> None:
        self.write("converged")
        (self.folder / "converged" / "x").chmod(0o644)
        self.write("convergd")
        with self.assertLogs("nixfleet_agent.hooks", "ERROR") as logged:
            worker, record = self.started(), self.accept()
            self.until(lambda: len(logged.output) == 2)
            worker.tell(record, LocalConvergedReached(seq=9, converged_at=EPOCH, current_closure=TARGET))
            self.until(lambda: json.loads((self.state / "hooks" / "told.json").read_text()).get(ROLLOUT) == 9)
            self.stop()
        self.assertEqual(len(logged.output), 2)
        self.assertIn("is not executable", logged.output[0])
        self.assertIn("convergd is no moment", logged.output[1])

    def test_one_that_was_lost_in_a_crash_is_told_after_the_restart_and_then_never_again(self) -> None:
        self.write("deferred")
        first = self.started()
        record = self.accept()
        self.stop()  # killed: the event is durable, the hooks have not heard of it
        event = LocalActivationDeferred(seq=1, component="dbus", deferred_at=EPOCH + timedelta(seconds=5))
        self.journal.append(
            Entry(
                seq=1,
                hostname="web-01",
                rollout_id=ROLLOUT,
                kind=event.kind,
                created_at=EPOCH,
                event={"kind": event.kind, "seq": 1, "component": "dbus", "deferredAt": "2026-01-01T00:00:05Z"},
            )
        )
        del first, record
        self.started()
        self.until(lambda: self.lines() == ["deferred 1"])
        self.until(lambda: json.loads((self.state / "hooks" / "told.json").read_text()).get(ROLLOUT) == 1)
        self.stop()
        self.started()
        self.stop()
        self.assertEqual(self.lines(), ["deferred 1"])

    def test_what_was_before_the_first_hook_is_told_to_none(self) -> None:
        self.accept()
        self.write("deferred")
        self.started()
        self.stop()
        self.assertEqual(json.loads((self.state / "hooks" / "told.json").read_text()), {ROLLOUT: 0})
        self.assertEqual(self.lines(), [])

    def test_without_a_hooks_folder_nothing_is_run_and_nothing_written(self) -> None:
        self.folder.rmdir()
        worker = self.started()
        worker.tell(self.accept(), LocalConvergedReached(seq=9, converged_at=EPOCH, current_closure=TARGET))
        self.stop()
        self.assertFalse((self.state / "hooks").exists())

    def test_a_shutdown_ends_a_hook_that_hangs_and_it_is_told_again(self) -> None:
        self.hook("converged", "x", f'echo "$NIXFLEET_SEQ" >>{self.told}; exec sleep 300')
        worker, record = self.started(), self.accept()
        worker.tell(record, LocalConvergedReached(seq=9, converged_at=EPOCH, current_closure=TARGET))
        self.until(self.lines)
        self.stop()
        self.assertNotIn(ROLLOUT, json.loads((self.state / "hooks" / "told.json").read_text()))


if __name__ == "__main__":
    unittest.main()
