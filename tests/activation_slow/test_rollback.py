"""The way back: by the prior's own script, from every state a failed release can leave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import unittest
from typing import Any

from nixfleet_agent.activation.model import (
    Deferred,
    Failed,
    Interrupted,
    Rollback,
    RollbackDeferred,
    RollbackDrift,
    RollbackFailed,
    RolledBack,
)
from nixfleet_agent.activation.records import Records
from nixfleet_agent.activation.way_back import root_of
from nixfleet_agent.demo.nixos_switch import Switch, inhibitors
from tests.activation.case import ROLLOUT, PipelineCase, processes_of, until
from tests.support.nix import EXIT_4, FAIL, SLOW, third_closure


class RollbackTest(PipelineCase):
    def fail_forward(self, script: str = FAIL) -> str:
        """A release that fails after its switch was fired; its closure."""
        bad = self.nixery.system("bad-" + str(abs(hash(script))), script)
        self.assertIsInstance(self.forward(bad), Failed)
        return bad

    def assert_back(self, outcome: object, exit_code: int = 0) -> None:
        self.assertEqual(outcome, RolledBack(self.v1, exit_code))
        self.assertEqual((self.host.running(), self.host.profile_closure()), (self.v1, self.v1))
        self.assertEqual(self.records("guard"), [], "disarmed before the rollback")

    def test_a_fired_release_is_taken_back_by_the_prior_closures_own_script(self) -> None:
        bad = self.fail_forward()
        self.assertEqual(self.host.profile_closure(), bad)
        self.assert_back(self.pipeline().rollback(self.back(bad)))
        self.assertEqual(self.host.switches(), [f"switch {bad}", f"switch {self.v1}"], "though the link never moved")

    def test_a_release_that_flipped_is_taken_back(self) -> None:
        self.forward(self.v2)
        self.assert_back(self.pipeline().rollback(self.back(self.v2)))

    def test_a_third_closure_that_the_release_left_is_taken_back_after_a_restart_too(self) -> None:
        stray = self.nixery.system("stray")
        bad = self.fail_forward(third_closure(stray))
        self.assertEqual(self.host.running(), stray)
        self.assert_back(self.pipeline().rollback(self.back(bad, observed=None)))

    def test_a_release_that_never_fired_only_gets_its_profile_back(self) -> None:
        self.host.nix("nix-store", "--realise", f"/nix/store/{self.v2}")
        self.host.nix("nix-env", "--profile", str(self.host.profile), "--set", f"/nix/store/{self.v2}")
        self.assert_back(self.pipeline().rollback(self.back(self.v2, fired=False)))
        self.assertEqual(self.host.switches(), [])

    def test_a_release_that_changed_nothing_needs_nothing(self) -> None:
        self.assert_back(self.pipeline().rollback(self.back(self.v2, fired=False)))
        self.assertEqual((self.host.switches(), self.host.generations()), ([], 1))

    def test_the_records_overrule_a_caller_who_thinks_that_nothing_fired(self) -> None:
        bad = self.fail_forward()
        self.assert_back(self.pipeline().rollback(self.back(bad, fired=False)))
        self.assertEqual(self.host.switches()[-1], f"switch {self.v1}")

    def test_a_boot_entry_of_a_deferred_release_is_taken_back_without_a_switch(self) -> None:
        kernels = [self.nixery.path(f"kernel-{n}", {"file": str(n)}) for n in (1, 2)]
        old, new = (
            self.nixery.system(f"deferred-{n}", links={"kernel": f"/nix/store/{k}/file"}, references=[k])
            for n, k in enumerate(kernels)
        )
        self.host.boot(old)
        self.host.environment["SWITCH_BOOT_EXIT"] = "7"
        self.assertIsInstance(self.pipeline().forward(self.intent(new, old), self.methods.append), Failed)
        self.host.environment["SWITCH_BOOT_EXIT"] = "0"
        intent = self.back(new, fired=False)
        outcome = self.pipeline().rollback(type(intent)(ROLLOUT, old, new, False, None))
        self.assertEqual(outcome, RolledBack(old, 0))
        self.assertEqual(self.host.switches(), [f"boot {new}", f"boot {old}"])
        self.assertEqual(self.host.profile_closure(), old)

    def test_a_prior_that_was_collected_is_fetched_again(self) -> None:
        self.forward(self.v2)
        self.pipeline().release(ROLLOUT)
        self.host.profile.with_name("system-1-link").unlink()
        self.host.collect_garbage()
        self.assertFalse(self.host.has(self.v1))
        self.assert_back(self.pipeline().rollback(self.back(self.v2)))

    def fail_and_break_nix(self, mend: str) -> tuple[str, Rollback]:
        """A failed release that broke Nix; the prior, whose switch does ``mend``, and the rollback to it."""
        broken = self.host.root / "broken"
        programs = self.host.root / "programs"
        programs.mkdir()
        for name in ("nix-store", "nix-env"):
            real = shutil.which(name)
            script = f'[ ! -e {broken} ] || {{ echo "error: syntax error in nix.conf" >&2; exit 1; }}; exec {real} "$@"'
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
        self.host.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
        prior = self.nixery.system("mender", f'{mend} {broken}; flip "$self"\n')
        self.host.boot(prior)
        bad = self.nixery.system("breaks-nix", f'flip "$self"; : >{broken}; exit 1\n')
        self.host.configure(failed_units="fail")
        self.assertIsInstance(self.pipeline().forward(self.intent(bad, prior), self.methods.append), Failed)
        return prior, Rollback(ROLLOUT, prior, bad, True, bad)

    def test_a_release_that_broke_nix_is_taken_back_without_it(self) -> None:
        prior, intent = self.fail_and_break_nix("rm")
        self.assertEqual(self.pipeline().rollback(intent), RolledBack(prior, 0))
        self.assertEqual((self.host.running(), self.host.profile_closure()), (prior, prior))

    def test_a_profile_that_has_to_wait_for_nix_is_set_later_without_another_switch(self) -> None:
        prior, intent = self.fail_and_break_nix(": ")
        for _ in range(2):
            outcome = self.pipeline().rollback(intent)
            assert isinstance(outcome, RollbackFailed)
            self.assertEqual((outcome.phase, self.host.running()), ("nix-env-set", prior))
        (self.host.root / "broken").unlink()
        self.assertEqual(self.pipeline().rollback(intent), RolledBack(prior, 0))
        self.assertEqual((self.host.profile_closure(), self.host.switches().count(f"switch {prior}")), (prior, 1))

    def test_without_nix_only_a_closure_that_is_held_is_gone_back_to(self) -> None:
        prior, intent = self.fail_and_break_nix("rm")
        root_of(self.host.state_dir, ROLLOUT, "prior").unlink()
        outcome = self.pipeline().rollback(intent)
        assert isinstance(outcome, RollbackFailed)
        self.assertEqual((outcome.phase, self.host.switches().count(f"switch {prior}")), ("realise", 0))
        self.assertIn("syntax error in nix.conf", outcome.stderr_tail)

    def test_a_failing_rollback_is_told_and_can_be_tried_again(self) -> None:
        unready = 'if [ ! -e "$SWITCH_BOOTLOADER.ok" ]; then echo "not yet" >&2; exit 6; fi; flip "$self"\n'
        prior = self.nixery.system("unready", unready)
        self.host.boot(prior)
        self.pipeline().forward(self.intent(self.v2, prior), self.methods.append)
        intent = type(self.back(self.v2))(ROLLOUT, prior, self.v2, True, None)
        outcome = self.pipeline().rollback(intent)
        assert isinstance(outcome, RollbackFailed)
        self.assertEqual((outcome.exit_code, outcome.phase), (6, "switch"))
        self.assertEqual(outcome.stderr_tail, "switch: not yet\n")
        self.host.bootloader.with_name("bootloader.ok").touch()
        self.assertEqual(self.pipeline().rollback(intent), RolledBack(prior, 0))

    def test_failed_units_never_stop_a_rollback(self) -> None:
        self.host.configure(failed_units="fail")
        prior = self.nixery.system("prior-4", EXIT_4)
        self.host.boot(prior)
        self.pipeline().forward(self.intent(self.v2, prior), self.methods.append)
        outcome = self.pipeline().rollback(type(self.back(self.v2))(ROLLOUT, prior, self.v2, True, None))
        self.assertEqual(outcome, RolledBack(prior, 4))

    def test_an_operators_own_switch_is_not_undone(self) -> None:
        bad = self.fail_forward()
        other = self.nixery.system("by-hand")
        self.host.boot(other)
        self.assertEqual(self.pipeline().rollback(self.back(bad)), RollbackDrift(other))
        self.assertEqual((self.host.running(), self.host.profile_closure()), (other, other))
        self.assertEqual(self.host.switches(), [f"switch {bad}"])

    def test_a_rollback_that_succeeded_unheard_is_not_fired_again(self) -> None:
        self.forward(self.v2)
        self.pipeline().rollback(self.back(self.v2))
        self.assert_back(self.pipeline().rollback(self.back(self.v2)))
        self.assertEqual(self.host.switches(), [f"switch {self.v2}", f"switch {self.v1}"])

    def test_a_rollback_that_still_runs_is_adopted(self) -> None:
        prior = self.nixery.system("slow-prior", SLOW)
        self.host.boot(prior)
        self.pipeline().forward(self.intent(self.v2, prior), self.methods.append)
        intent = type(self.back(self.v2))(ROLLOUT, prior, self.v2, True, None)
        result = self.in_thread(lambda: self.pipeline().rollback(intent))
        until(lambda: f"switch {prior}" in self.host.switches(), "the rollback")
        self.interrupt("shutdown")
        self.assertEqual(result(), Interrupted("shutdown"))
        self.reason = None
        self.wake.clear()
        self.assertEqual(self.pipeline().rollback(intent), RolledBack(prior, 0))
        self.assertEqual(self.host.switches(), [f"switch {self.v2}", f"switch {prior}"])

    def test_a_release_whose_switch_still_hangs_is_ended_first(self) -> None:
        self.host.configure(poll_budget_secs=0.3)
        bad = self.fail_forward("sleep 600\n")
        self.host.configure(poll_budget_secs=10.0)
        self.assert_back(self.pipeline().rollback(self.back(bad)))
        until(lambda: not processes_of(self.host.root), "the end of the hung script")

    # -- what stands in a rollback's way ----------------------------------------------------------

    def soaking(self, old_files: dict[str, str], new_files: dict[str, str], **old: Any) -> tuple[str, Rollback]:
        """A host that runs a release since a reboot, and is to leave it; the prior, and the rollback."""
        prior = self.nixery.system("prior", files=old_files, **old)
        bad = self.nixery.system("bad", files=new_files)
        self.host.boot(prior)
        self.assertIsInstance(self.pipeline().forward(self.intent(bad, prior), self.methods.append), Deferred)
        self.reboot()
        self.assertEqual(self.host.running(), bad)
        return prior, Rollback(ROLLOUT, prior, bad, True, bad)

    def reboot(self) -> None:
        """The machine comes up with what its boot entry names: every record is of an earlier boot."""
        for record in Records(self.host.state_dir, "").all():
            place = record.path / "intent.json"
            place.write_text(json.dumps(json.loads(place.read_text()) | {"boot": "an-earlier-boot"}))
        booted = self.host.boots()
        assert booted is not None
        self.host.run_system(booted)

    def test_a_bus_that_can_not_be_replaced_live_is_gone_back_to_by_a_reboot(self) -> None:
        files = inhibitors(dbus_implementation="broker"), inhibitors(dbus_implementation="dbus")
        prior, intent = self.soaking(*files, switch=Switch(checks={"disk": "false"}))
        for _ in range(2):
            outcome = self.pipeline().rollback(intent)
            assert isinstance(outcome, RollbackDeferred)
            self.assertEqual(outcome.component, "dbus-implementation")
            self.assertEqual((self.host.boots(), self.host.profile_closure()), (prior, prior))
            self.assertEqual((self.host.running(), self.host.switches()[1:]), (intent.failed, [f"boot {prior}"]))
        self.reboot()
        self.assertEqual(self.pipeline().rollback(intent), RolledBack(prior, 0))
        self.assertEqual(self.host.switches()[1:], [f"boot {prior}"], "the boot has started every unit anew")

    def test_an_operator_who_switches_back_by_hand_ends_the_wait_for_a_reboot(self) -> None:
        files = inhibitors(systemd_version="1"), inhibitors(systemd_version="2")
        prior, intent = self.soaking(*files)
        self.assertIsInstance(self.pipeline().rollback(intent), RollbackDeferred)
        self.host.run_system(prior)
        self.assertEqual(self.pipeline().rollback(intent), RolledBack(prior, 0))
        self.assertEqual(self.host.switches()[-1], f"switch {prior}", "whatever has been done by hand is made whole")

    def test_all_other_inhibitors_and_checks_of_the_prior_are_overridden(self) -> None:
        files = inhibitors(fstab="1"), inhibitors(fstab="2")
        prior, intent = self.soaking(*files, switch=Switch(checks={"disk": "false"}))
        self.assertEqual(self.pipeline().rollback(intent), RolledBack(prior, 0))
        self.assertEqual((self.host.running(), self.host.boots()), (prior, prior))
        self.assertEqual(self.host.switches()[1:], [f"switch {prior}"])

    def test_a_broken_inhibitors_file_of_the_prior_is_no_obstacle(self) -> None:
        prior = self.nixery.system("prior", files={"switch-inhibitors": "{"})
        self.host.boot(prior)
        self.pipeline().forward(self.intent(self.v2, prior), self.methods.append)
        outcome = self.pipeline().rollback(Rollback(ROLLOUT, prior, self.v2, True, None))
        self.assertEqual(outcome, RolledBack(prior, 0))

    def test_a_prior_whose_init_takes_a_boot_is_what_boots_next(self) -> None:
        prior = self.nixery.system("prior", files={"init-interface-version": "1\n"})
        self.host.boot(prior)
        self.host.configure(failed_units="fail")
        bad = self.nixery.system("bad", 'flip "$self"; exit 4', files={"init-interface-version": "1\n"})
        other = self.nixery.system("other", files={"init-interface-version": "2\n"})
        self.pipeline().forward(self.intent(bad, prior), self.methods.append)
        self.host.run_system(other)
        intent = Rollback(ROLLOUT, prior, bad, True, other)
        outcome = self.pipeline().rollback(intent)
        assert isinstance(outcome, RollbackDeferred)
        self.assertEqual((outcome.component, self.host.boots()), ("init-interface", prior))
        self.reboot()
        self.assertEqual(self.pipeline().rollback(intent), RolledBack(prior, 0))

    def test_a_live_switch_that_fails_leaves_a_good_boot_entry(self) -> None:
        prior = self.nixery.system("stubborn", 'say "unit busy"; exit 6')
        self.host.boot(prior)
        self.pipeline().forward(self.intent(self.v2, prior), self.methods.append)
        intent = Rollback(ROLLOUT, prior, self.v2, True, None)
        for _ in range(2):
            outcome = self.pipeline().rollback(intent)
            assert isinstance(outcome, RollbackFailed)
            self.assertEqual((outcome.exit_code, outcome.stderr_tail), (6, "switch: unit busy\n"))
            self.assertEqual((self.host.boots(), self.host.profile_closure()), (prior, prior))
        self.reboot()
        self.assertEqual(self.pipeline().rollback(intent), RolledBack(prior, 0))

    def test_a_full_boot_partition_does_not_keep_the_release_running(self) -> None:
        self.forward(self.v2)
        self.host.environment["SWITCH_BOOT_EXIT"] = "1"
        for _ in range(2):
            outcome = self.pipeline().rollback(self.back(self.v2))
            assert isinstance(outcome, RollbackFailed)
            self.assertIn("No space left on device", outcome.stderr_tail)
            self.assertEqual((self.host.running(), self.host.boots()), (self.v1, self.v2))
        calls = [f"{action} {self.v1}" for action in ("switch", "boot", "test", "boot")]
        self.assertEqual(self.host.switches()[1:], calls, "once it runs, only the entry is tried again")
        del self.host.environment["SWITCH_BOOT_EXIT"]
        self.assert_back(self.pipeline().rollback(self.back(self.v2)))
        self.assertEqual(self.host.boots(), self.v1)

    @unittest.skipUnless(os.geteuid() == 0 and shutil.which("setpriv"), "only root can become another user")
    def test_a_lock_that_another_user_holds_turns_no_rollback_away(self) -> None:
        bad = self.fail_forward()
        lock = self.host.switch_lock
        lock.chmod(0o644)
        for folder in (lock.parent, *lock.parent.parents):
            if folder.is_relative_to(self.nixery.folder):
                folder.chmod(0o755)
        stranger = subprocess.Popen(
            [
                "setpriv",
                "--reuid=65534",
                "--clear-groups",
                "flock",
                "--nonblock",
                str(lock),
                "-c",
                "echo held; read end",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert stranger.stdin and stranger.stdout
        self.assertEqual(stranger.stdout.readline(), b"held\n")
        self.assert_back(self.pipeline().rollback(self.back(bad)))
        stranger.communicate(b"\n")

    def test_a_damaged_note_about_the_failure_is_no_obstacle(self) -> None:
        bad = self.fail_forward()
        note = self.host.state_dir / "switch" / f"failed-{ROLLOUT}.json"
        self.assertEqual(json.loads(note.read_text()), {"observed": self.v1})
        note.write_text("{")
        self.assert_back(self.pipeline().rollback(self.back(bad)))


if __name__ == "__main__":
    unittest.main()
