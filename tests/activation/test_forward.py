"""The way forward on real Nix: each step in its place, and what a failure of each leaves behind."""

from __future__ import annotations

import itertools
import os
import unittest

from nixfleet_agent.activation.model import Completed, Deferred, Failed, Forward
from nixfleet_agent.activation.way_back import root_of
from nixfleet_agent.demo.nixos_switch import Switch, units
from tests.activation.case import ROLLOUT, PipelineCase, until
from tests.support.nix import (
    EXIT_4,
    FAIL,
    LOCK_REFUSED,
    LOCK_REFUSED_ONCE,
    SLOW,
    third_closure,
)


class ForwardTest(PipelineCase):
    def test_a_good_release_is_fetched_set_switched_to_and_verified(self) -> None:
        outcome = self.forward(self.v2)
        self.assertEqual(outcome, Completed(self.v2, 0, ()))
        self.assertEqual(self.host.running(), self.v2)
        self.assertEqual(self.host.profile_closure(), self.v2)
        self.assertEqual(self.host.switches(), [f"switch {self.v2}"])
        self.assertEqual(self.methods, ["setsid"])
        self.assertEqual(
            [name for name, _ in self.phases], ["way-back", "lock", "realise", "consent", "profile", "fire", "verify"]
        )
        self.assertEqual(self.records("guard"), [], "disarmed before the success is told")

    def test_a_host_without_a_way_back_says_so_loudly_before_the_switch_when_the_policy_asks_for_one(self) -> None:
        for policy, loud in (("rollback-and-halt", True), ("halt", False)):
            with self.subTest(policy):
                self.setUp()
                self.host.current_system.unlink()
                intent = Forward(ROLLOUT, self.v2, None, policy)
                with self.assertLogs(self.log, "INFO") as logs:
                    self.log.info("begin")
                    self.after_phase["consent"] = lambda: self.log.info("fires next")
                    outcome = self.pipeline().forward(intent, self.methods.append)
                self.assertEqual(outcome, Completed(self.v2, 0, ()), "there was no link at all before the first switch")
                lines = [record.getMessage() for record in logs.records]
                before = lines[: lines.index("fires next")]
                said = [line for line in before if line.startswith(f"no way back from {self.v2}")]
                self.assertEqual(bool(said), loud)
                if loud:
                    self.assertIn(f"{self.host.current_system} does not exist", said[0])

    def test_a_system_that_is_reached_through_the_profile_is_gone_back_from_and_to(self) -> None:
        self.host.current_system.unlink()
        self.host.current_system.symlink_to(self.host.profile)
        self.assertEqual(self.forward(self.v2), Completed(self.v2, 0, ()))

    def test_a_wrapper_that_sees_another_boot_id_than_the_agent_is_followed_to_its_end(self) -> None:
        shim = self.host.root / "container" / "cat"
        shim.parent.mkdir()
        shim.write_text('#!/bin/sh\ncase "$*" in */boot_id) echo of-the-container ;; *) exec /bin/cat "$@" ;; esac\n')
        shim.chmod(0o755)
        self.host.environment["PATH"] = f"{shim.parent}:{self.host.environment['PATH']}"
        target = self.nixery.system("slow", SLOW)
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertIn("boot=of-the-container", (self.records("forward")[0].path / "started").read_text())

    def test_the_script_gets_every_signal_as_a_program_is_started_with(self) -> None:
        place = self.host.root / "ignored"
        target = self.nixery.system("signals", f'env grep SigIgn /proc/self/status >{place}; flip "$self"')
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertEqual(place.read_text().split()[1].strip("0"), "", "SIGINT, SIGQUIT, SIGPIPE: none is ignored")

    def test_units_are_changed_around_the_flip_and_left_to_the_new_definition(self) -> None:
        old = self.nixery.system("app-1", files=units({"app.service": "1", "gone.service": "1"}))
        self.host.boot(old)
        for name in ("app.service", "gone.service"):
            (self.host.active_units / name).write_text("1\n")
        new = self.nixery.system("app-2", files=units({"app.service": "2"}))
        outcome = self.pipeline().forward(self.intent(new, old), self.methods.append)
        self.assertEqual(outcome, Completed(new, 0, ()))
        self.assertEqual((self.host.units(), self.host.boots()), ({"app.service": "2"}, new))

    def test_the_units_of_each_wording_of_exit_4_are_named(self) -> None:
        app = ("app.service",)
        named = {"start": app, "dependency": app, "user": (*app, "user units of alice"), "systemctl": ()}
        for flavour, (kind, failed) in itertools.product(("ng", "perl"), named.items()):
            with self.subTest(flavour, kind=kind):
                self.setUp()
                files = units({"app.service": f"1\nFails={kind}"})
                target = self.nixery.system(f"{flavour}-{kind}", files=files, switch=Switch(flavour))
                self.assertEqual(self.forward(target), Completed(target, 4, failed))

    def test_the_start_is_told_before_anything_fires_and_a_refusal_to_report_it_stops_the_switch(self) -> None:
        class DiskFull(Exception):
            pass

        def refuse(method: str) -> None:
            self.assertEqual(self.host.switches(), [])
            raise DiskFull

        with self.assertRaises(DiskFull):
            self.pipeline().forward(self.intent(self.v2), refuse)
        self.assertEqual(self.host.switches(), [])
        self.assertEqual(self.host.running(), self.v1)

    def test_both_ends_are_held_against_the_garbage_collector_until_the_rollout_is_over(self) -> None:
        bare = self.host.profile
        self.forward(self.v2)
        for link in (bare, *bare.parent.glob("system-*-link")):
            link.unlink()
        self.host.collect_garbage()
        self.assertTrue(self.host.has(self.v1) and self.host.has(self.v2))
        self.pipeline().release(ROLLOUT)
        self.assertFalse(root_of(self.host.state_dir, ROLLOUT, "prior").is_symlink())
        self.host.collect_garbage()
        self.assertFalse(self.host.has(self.v1))

    def test_a_target_that_runs_already_is_not_switched_to(self) -> None:
        outcome = self.pipeline().forward(Forward(ROLLOUT, self.v1, self.v1, "halt"), self.methods.append)
        self.assertEqual(outcome, Completed(self.v1, 0, ()))
        self.assertEqual(self.methods, ["noop"])
        self.assertEqual(self.host.switches(), [])
        self.assertEqual(self.host.generations(), 1, "a set profile is not set again")

    def test_a_noop_moves_a_profile_that_is_elsewhere_and_the_boot_entry_with_it(self) -> None:
        self.host.boot(self.v2)
        self.host.run_system(self.v1)
        outcome = self.pipeline().forward(Forward(ROLLOUT, self.v1, None, "halt"), self.methods.append)
        self.assertEqual(outcome, Completed(self.v1, 0, ()))
        self.assertEqual(self.host.profile_closure(), self.v1)
        self.assertEqual(self.host.switches(), [f"boot {self.v1}"])

    def test_a_failing_script_is_told_at_once_with_its_exit_code_and_words(self) -> None:
        bad = self.nixery.system("bad", FAIL)
        self.host.configure(poll_budget_secs=600.0)
        outcome = self.forward(bad)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.phase, outcome.switch_fired), (11, "switch", True))
        self.assertTrue(outcome.stderr_tail.startswith("switch: "), outcome.stderr_tail)
        self.assertIn("could not start it: ünit", outcome.stderr_tail)
        self.assertEqual(outcome.observed, self.v1)
        self.assertEqual(len(self.records("guard")), 1, "armed until the rollback disarms it")
        self.pipeline().release(ROLLOUT)
        self.assertEqual(self.records("guard"), [])

    def test_a_script_that_fails_without_a_word_is_told_in_words(self) -> None:
        outcome = self.forward(self.nixery.system("mute", "exit 6\n"), policy="halt")
        assert isinstance(outcome, Failed)
        self.assertEqual(
            (outcome.exit_code, outcome.stderr_tail), (6, "switch: the script ended with 6 and said nothing")
        )

    def test_no_guard_without_the_policy_that_takes_back(self) -> None:
        self.forward(self.nixery.system("bad", FAIL), policy="halt")
        self.assertEqual(self.records("guard"), [])

    def test_units_that_fail_after_the_flip_are_a_success_that_names_them(self) -> None:
        outcome = self.forward(self.nixery.system("exit4", EXIT_4))
        assert isinstance(outcome, Completed)
        self.assertEqual((outcome.exit_code, outcome.failed_units), (4, ("nginx.service", "foo@1.service")))

    def test_failed_units_are_named_however_long_their_status_is(self) -> None:
        user = 'echo "warning: the following user units failed: bar.service, foo@1.service" >&2\n'
        status = (
            "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo '     CGroup: /system.slice/nginx.service'; done; exit 4\n"
        )
        outcome = self.forward(self.nixery.system("exit4-status", EXIT_4.replace("exit 4\n", user + status)))
        assert isinstance(outcome, Completed)
        self.assertEqual(
            (outcome.exit_code, outcome.failed_units), (4, ("nginx.service", "foo@1.service", "bar.service"))
        )

    def test_units_that_fail_after_the_flip_are_a_failure_where_that_is_asked_for(self) -> None:
        self.host.configure(failed_units="fail")
        target = self.nixery.system("exit4", EXIT_4)
        outcome = self.forward(target)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.phase, outcome.observed), (4, "switch", target))
        self.assertEqual(len(self.records("guard")), 1, "a failure leaves the guard to the rollback")
        self.pipeline().release(ROLLOUT)

    def test_a_third_closure_is_minus_three(self) -> None:
        stray = self.nixery.system("stray")
        outcome = self.forward(self.nixery.system("strays", third_closure(stray)))
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.phase, outcome.observed), (-3, "third-closure", stray))
        self.pipeline().release(ROLLOUT)

    def test_a_profile_that_moves_during_the_switch_is_set_again(self) -> None:
        script = f'nix-env --profile {self.host.profile} --set "/nix/store/{self.v1}" && flip "$self"\n'
        target = self.nixery.system("rival", script)
        with self.assertLogs(self.log, "WARNING") as logs:
            outcome = self.forward(target)
        self.assertEqual(outcome, Completed(target, 0, ()))
        self.assertEqual(self.host.profile_closure(), target)
        self.assertIn("setting it again", logs.output[-1])


class LockTest(PipelineCase):
    def hold_lock(self) -> int:
        """Another process that switches; the write end of a pipe: closing it ends the other."""
        reader, writer = os.pipe()
        held, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            import fcntl

            os.close(writer)
            descriptor = os.open(self.host.switch_lock, os.O_RDWR)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(told, b"x")
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
        os.read(held, 1)
        os.close(held)
        os.close(told)
        self.addCleanup(os.waitpid, pid, 0)
        return writer

    def test_the_lock_of_another_switch_is_waited_for(self) -> None:
        writer = self.hold_lock()
        with self.assertLogs(self.log, "INFO") as logs:
            result = self.in_thread(lambda: self.forward(self.v2))
            until(lambda: any("waiting for it" in line for line in logs.output), "the wait for the lock")
            self.assertEqual(self.host.switches(), [])
            os.close(writer)
            self.assertEqual(result(), Completed(self.v2, 0, ()))

    def test_a_lock_that_is_held_for_the_whole_budget_fails_with_nothing_changed(self) -> None:
        writer = self.hold_lock()
        self.host.configure(poll_budget_secs=0.2)
        outcome = self.forward(self.v2)
        os.close(writer)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.phase, outcome.switch_fired), (-1, "switch-lock", False))
        self.assertEqual((self.host.profile_closure(), self.host.switches()), (self.v1, []))

    def test_a_lock_that_is_taken_while_we_fetched_is_seen_before_the_switch_fires(self) -> None:
        writers: list[int] = []
        self.after_phase["profile"] = lambda: writers.append(self.hold_lock())
        self.host.configure(poll_budget_secs=0.2)
        outcome = self.forward(self.v2)
        os.close(writers[0])
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.phase, outcome.switch_fired, self.host.switches()), ("switch-lock", False, []))

    def test_a_script_that_could_not_acquire_the_lock_is_fired_again(self) -> None:
        target = self.nixery.system("unlucky", LOCK_REFUSED_ONCE)
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertEqual(self.host.switches(), [f"switch {target}"] * 2)
        self.assertEqual(self.records("guard"), [])

    def test_a_script_that_never_acquires_the_lock_has_changed_nothing(self) -> None:
        self.host.configure(poll_budget_secs=0.4)
        outcome = self.forward(self.nixery.system("unluckier", LOCK_REFUSED))
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.phase, outcome.switch_fired), ("switch-lock", False))
        self.assertEqual(self.records("guard"), [])

    def test_a_unit_that_misses_a_lock_of_its_own_is_a_failure_with_the_switch_fired(self) -> None:
        words = 'echo "could not acquire lock on /var/lib/db" >&2; echo "error: db.service failed" >&2; exit 1\n'
        outcome = self.forward(self.nixery.system("db", words))
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.phase, outcome.exit_code, outcome.switch_fired), ("switch", 1, True))
        self.assertEqual(len(self.host.switches()), 1)
        self.pipeline().release(ROLLOUT)

    def test_a_boot_entry_that_the_lock_turned_away_is_written_again(self) -> None:
        refused = self.host.root / "boot-refused"
        once = f'[ -e {refused} ] || {{ : >{refused}; say "Could not acquire lock"; exit 11; }}'
        target = self.nixery.system("late", switch=Switch(bootloader=once))
        self.host.boot(target, profile=False)
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertEqual(self.host.switches(), [f"boot {target}"] * 2)
        self.assertEqual(self.host.bootloader.read_text(), f"{target}\n")


class DeferTest(PipelineCase):
    """What a running system can't change under itself takes a reboot."""

    def systems(self, **changed: str) -> tuple[str, str]:
        """Two closures whose dbus, systemd and kernel links differ where ``changed`` says so."""
        paths = {"dbus": "etc/systemd/system/dbus.service", "systemd": "sw/lib/systemd/systemd", "kernel": "kernel"}
        old = {part: self.nixery.path(f"{part}-1", {"file": "1"}) for part in paths}
        new = old | {part: self.nixery.path(f"{part}-2", {"file": text}) for part, text in changed.items()}
        made = []
        for name, parts in (("old", old), ("new", new)):
            links = {path: f"/nix/store/{parts[part]}/file" for part, path in paths.items()}
            made.append(self.nixery.system(name, links=links, references=list(parts.values())))
        return made[0], made[1]

    def test_each_component_defers_to_the_next_boot(self) -> None:
        for component in ("dbus", "systemd", "kernel"):
            with self.subTest(component):
                self.setUp()
                old, new = self.systems(**{component: "2"})
                self.host.boot(old)
                outcome = self.pipeline().forward(self.intent(new, old), self.methods.append)
                assert isinstance(outcome, Deferred)
                self.assertEqual(outcome.component, component)
                self.assertEqual((self.host.running(), self.host.profile_closure()), (old, new))
                self.assertEqual(self.host.switches(), [f"boot {new}"])
                self.assertEqual(self.host.bootloader.read_text(), f"{new}\n")
                self.assertEqual(
                    (self.methods, self.records("guard")), (["setsid"], []), "told first; no guard for boot"
                )
                self.methods.clear()

    def test_the_same_components_do_not_defer(self) -> None:
        old, new = self.systems()
        new = self.nixery.system("other", links={"kernel": "/nix/store/" + "0" * 32 + "-missing/file"})
        self.host.boot(old)
        outcome = self.pipeline().forward(self.intent(new, old), self.methods.append)
        self.assertEqual(outcome, Completed(new, 0, ()), "a component that is missing on a side is no inhibitor")

    def test_a_bootloader_that_can_not_be_written_is_a_failure_with_nothing_switched(self) -> None:
        old, new = self.systems(kernel="2")
        self.host.boot(old)
        self.host.environment["SWITCH_BOOT_EXIT"] = "7"
        outcome = self.pipeline().forward(self.intent(new, old), self.methods.append)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.phase), (7, "defer-bootloader-update"))
        self.assertFalse(outcome.switch_fired)

    def test_a_deferred_entry_that_stands_is_replaced_by_a_noop(self) -> None:
        old, new = self.systems(kernel="2")
        self.host.boot(old)
        self.pipeline().forward(self.intent(new, old), self.methods.append)
        self.host.nix("nix-env", "--profile", str(self.host.profile), "--set", f"/nix/store/{old}")
        outcome = self.pipeline().forward(Forward("stable@abc2", old, None, "halt"), self.methods.append)
        self.assertEqual(outcome, Completed(old, 0, ()))
        self.assertEqual(self.host.bootloader.read_text(), f"{old}\n")

    def test_a_second_look_at_a_deferred_release_writes_no_second_entry(self) -> None:
        old, new = self.systems(kernel="2")
        self.host.boot(old)
        first = self.pipeline().forward(self.intent(new, old), self.methods.append)
        again = self.pipeline().resume(self.intent(new, old), self.methods.append, False)
        self.assertEqual(first, again)
        self.assertEqual(self.host.switches(), [f"boot {new}"])


class WayBackTest(PipelineCase):
    def test_no_way_back_refuses_before_anything_is_changed(self) -> None:
        gone = self.nixery.system("gone", "never fetched here")
        outcome = self.pipeline().forward(self.intent(self.v2, gone), self.methods.append)
        assert isinstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.phase, outcome.switch_fired), (-1, "no-way-back", False))
        self.assertEqual((self.host.profile_closure(), self.host.switches()), (self.v1, []))
        self.assertFalse(self.host.has(self.v2))

    def test_a_prior_without_a_switch_script_is_no_way_back(self) -> None:
        bare = self.nixery.system("bare", switchable=False)
        self.host.boot(bare)
        outcome = self.pipeline().forward(self.intent(self.v2, bare), self.methods.append)
        assert isinstance(outcome, Failed)
        self.assertEqual(outcome.phase, "no-way-back")
        self.assertIn("switch-to-configuration is missing", outcome.stderr_tail)

    def test_without_the_policy_a_missing_way_back_is_a_warning(self) -> None:
        gone = self.nixery.system("gone", "never fetched here")
        with self.assertLogs(self.log, "WARNING"):
            outcome = self.pipeline().forward(self.intent(self.v2, gone, "halt"), self.methods.append)
        self.assertEqual(outcome, Completed(self.v2, 0, ()))


if __name__ == "__main__":
    unittest.main()
