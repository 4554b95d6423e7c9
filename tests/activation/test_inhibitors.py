"""What takes a reboot: the closure's own inhibitors, the script's own word, and what a refusal leaves behind."""

from __future__ import annotations

import json
import unittest
from collections.abc import Mapping

from nixfleet_agent.activation import inhibitors
from nixfleet_agent.activation.inhibitors import Inhibition
from nixfleet_agent.activation.model import Completed, Deferred, Failed, RolledBack
from nixfleet_agent.demo.nixos_switch import Switch
from nixfleet_agent.demo.nixos_switch import inhibitors as own
from tests.activation.case import PipelineCase

BROKER = own(dbus_implementation="broker", systemd_version="258")
APP = "etc/systemd/system/app.service"


class CoreTest(unittest.TestCase):
    def test_a_rollback_leaves_pid_1_the_bus_and_the_kernel_to_a_reboot_and_overrides_all_else(self) -> None:
        for name in ("dbus", "dbus-implementation", "systemd-version", "kernel", "linux-modules", "init-interface"):
            self.assertEqual(Inhibition((name, "fstab")).core, Inhibition((name,)), name)
        self.assertIsNone(Inhibition(("fstab", "kernelspace", "firmware")).core)

    def test_a_name_from_a_file_is_made_fit_to_show(self) -> None:
        self.assertEqual(Inhibition(("a\x1b[2J", "b")).component, "a\\x1b[2J, b")
        self.assertLess(len(Inhibition(("x" * 10_000,)).component), 300)


class InhibitorsTest(PipelineCase):
    def start(self, files: Mapping[str, str], **links: str) -> str:
        """What runs: a system with these files."""
        old = self.nixery.system("old", files=files, links=links)
        self.host.boot(old)
        return old

    def assert_unchanged(self, old: str) -> None:
        self.assertEqual((self.host.running(), self.host.profile_closure(), self.host.boots()), (old, old, None))
        self.assertEqual((self.host.units(), self.records("guard")), ({}, []))

    def test_a_key_that_differs_defers_and_names_the_component_and_the_script_is_not_asked(self) -> None:
        old = self.start(BROKER)
        new = self.nixery.system("new", files=own(dbus_implementation="dbus", systemd_version="258"))
        outcome = self.pipeline().forward(self.intent(new, old), self.methods.append)
        assert isinstance(outcome, Deferred)
        self.assertEqual(outcome.component, "dbus-implementation")
        self.assertEqual((self.host.switches(), self.host.boots()), ([f"boot {new}"], new))
        self.assertEqual((self.host.running(), self.host.profile_closure()), (old, new))

    def test_every_key_that_differs_is_named(self) -> None:
        old = self.start(BROKER)
        new = self.nixery.system("new", files=own(dbus_implementation="dbus", systemd_version="259"))
        outcome = self.pipeline().forward(self.intent(new, old), self.methods.append)
        assert isinstance(outcome, Deferred)
        self.assertEqual(outcome.component, "dbus-implementation, systemd-version")

    def test_keys_of_one_side_and_parts_that_the_file_does_not_name_do_not_defer(self) -> None:
        kernels = [self.nixery.path(f"kernel-{n}", {"image": str(n)}) for n in (1, 2)]
        sides = [{"a": "1", "only-old": "x"}, {"a": "1", "only-new": "y"}]
        old, new = (
            self.nixery.system(
                f"side-{n}",
                files={"switch-inhibitors": json.dumps(sides[n])},
                links={"kernel": f"/nix/store/{kernels[n]}/image"},
                references=[kernels[n]],
            )
            for n in (0, 1)
        )
        self.host.boot(old)
        outcome = self.pipeline().forward(self.intent(new, old), self.methods.append)
        self.assertEqual(outcome, Completed(new, 0, ()), "the closure decides, and it does not name the kernel")

    def test_without_the_file_on_either_side_or_in_its_first_form_our_own_parts_decide(self) -> None:
        paths = {"switch-inhibitors": "/nix/store/" + "0" * 32 + "-systemd-258\n"}
        for files in ({}, paths):
            with self.subTest(files=files):
                kernels = [self.nixery.path(f"kernel-{n}", {"image": str(n)}) for n in (1, 2)]
                old, new = (
                    self.nixery.system(f"bare-{n}", files=f, links={"kernel": f"/nix/store/{k}/image"}, references=[k])
                    for n, (k, f) in enumerate(zip(kernels, (files, BROKER), strict=True))
                )
                self.setUp()
                self.host.boot(old)
                outcome = self.pipeline().forward(self.intent(new, old), self.methods.append)
                assert isinstance(outcome, Deferred)
                self.assertEqual(outcome.component, "kernel")

    def test_a_broken_file_of_the_release_fails_before_anything_is_changed(self) -> None:
        broken = {
            "cut": '{"dbus": ',
            "list": '["dbus"]',
            "twice": '{"a": "1", "a": "2"}',
            "empty": "",
            "huge": json.dumps({"a": "x" * 70_000}),
        }
        for name, text in broken.items():
            with self.subTest(name):
                self.setUp()
                old = self.start(BROKER)
                new = self.nixery.system(f"broken-{name}", files={"switch-inhibitors": text})
                before = self.host.generations()
                outcome = self.pipeline().forward(self.intent(new, old), self.methods.append)
                assert isinstance(outcome, Failed)
                self.assertEqual((outcome.phase, outcome.switch_fired), ("switch-inhibitors", False))
                self.assertIn(new, outcome.stderr_tail)
                self.assertEqual((self.host.switches(), self.host.generations()), ([], before))
                self.assert_unchanged(old)

    def test_a_broken_file_of_what_runs_keeps_nobody_there(self) -> None:
        old = self.start({"switch-inhibitors": "{"})
        new = self.nixery.system("new", files=BROKER)
        with self.assertLogs(self.log, "WARNING") as logs:
            outcome = self.pipeline().forward(self.intent(new, old), self.methods.append)
        self.assertEqual(outcome, Completed(new, 0, ()))
        self.assertIn(f"what runs, {old}: switch-inhibitors", logs.output[0])

    def test_inhibitors_that_only_the_script_finds_defer_too(self) -> None:
        for flavour in ("ng", "perl"):
            with self.subTest(flavour):
                self.setUp()
                old = self.start({})
                said = 'say "etc-overlay : on -> off"; [ "$action" = boot ]'
                refusing = Switch(flavour, checks={"switchInhibitors": said})
                new = self.nixery.system(f"finds-{flavour}", switch=refusing)
                outcome = self.pipeline().forward(self.intent(new, old), self.methods.append)
                assert isinstance(outcome, Deferred)
                self.assertEqual(outcome.component, "etc-overlay")
                self.assertEqual(self.host.switches(), [f"switch {new}", f"boot {new}"])
                self.assertEqual((self.host.running(), self.host.boots()), (old, new))
                self.assertEqual(self.records("guard"), [], "nothing is left to take back")
                self.assertFalse(self.pipeline().forward_fired("stable@abc1"))

    def test_an_init_that_takes_a_boot_is_deferred_and_the_entry_is_not_written_twice(self) -> None:
        old = self.start({"init-interface-version": "systemd 2\n"})
        new = self.nixery.system("new", files={"init-interface-version": "systemd 3\n"})
        outcome = self.pipeline().forward(self.intent(new, old), self.methods.append)
        assert isinstance(outcome, Deferred)
        self.assertEqual(outcome.component, "init-interface")
        self.assertEqual(self.host.switches(), [f"switch {new}"])
        self.assertEqual((self.host.running(), self.host.profile_closure(), self.host.boots()), (old, new, new))
        self.assertEqual(self.records("guard"), [])
        again = self.pipeline().resume(self.intent(new, old), self.methods.append, True)
        self.assertEqual((again, self.host.switches()), (outcome, [f"switch {new}"]))

    def test_a_pre_switch_check_that_refuses_is_a_failure_with_nothing_changed(self) -> None:
        for flavour in ("ng", "perl"):
            for policy in ("halt", "rollback-and-halt"):
                with self.subTest(flavour, policy=policy):
                    self.setUp()
                    old = self.start({})
                    refusing = Switch(flavour, checks={"disk": 'say "no room on /var"; false'})
                    new = self.nixery.system(f"refuses-{flavour}", switch=refusing, files={APP: "1"})
                    outcome = self.pipeline().forward(self.intent(new, old, policy), self.methods.append)
                    assert isinstance(outcome, Failed)
                    self.assertEqual((outcome.phase, outcome.exit_code), ("pre-switch-check", 1))
                    self.assertFalse(outcome.switch_fired, "no quarantine")
                    self.assertTrue(outcome.stderr_tail.startswith("pre-switch-check: no room on /var\n"))
                    self.assert_unchanged(old)
                    intent = type(self.back(new))("stable@abc1", old, new, False, None)
                    self.assertEqual(self.pipeline().rollback(intent), RolledBack(old, 0))
                    self.assertEqual(self.host.switches(), [f"switch {new}"], "no rollback switch")

    def test_a_bootloader_that_fails_leaves_the_profile_where_the_boot_entry_is(self) -> None:
        old = self.start(BROKER)
        new = self.nixery.system("new", files=own(dbus_implementation="dbus"))
        self.host.environment["SWITCH_BOOT_EXIT"] = "1"
        outcome = self.pipeline().forward(self.intent(new, old, "halt"), self.methods.append)
        assert isinstance(outcome, Failed)
        self.assertEqual(outcome.phase, "defer-bootloader-update")
        self.assertIn("Failed to install bootloader", outcome.stderr_tail)
        self.assert_unchanged(old)

    def test_the_agents_own_word_is_not_an_operators(self) -> None:
        old = self.start({})
        self.host.environment["NIXOS_NO_CHECK"] = "1"
        new = self.nixery.system("refuses", switch=Switch(checks={"disk": "false"}))
        outcome = self.pipeline().forward(self.intent(new, old), self.methods.append)
        assert isinstance(outcome, Failed)
        self.assertEqual(outcome.phase, "pre-switch-check")

    def test_nothing_is_asked_of_a_system_that_can_not_be_read(self) -> None:
        self.assertIsNone(inhibitors.between(self.pipeline()._context, None, self.v2))

    def test_a_script_that_says_nothing_or_much_leaves_the_host_as_it_was(self) -> None:
        flood = 'head -c 104857600 /dev/zero | tr "\\000" "x"; echo; say "the last word"; exit 1'
        for name, bootloader, words in (
            ("mute", "exit 1", "the script ended with 1 and said nothing"),
            ("flood", flood, "the last word"),
        ):
            with self.subTest(name):
                self.setUp()
                old = self.start({})
                new = self.nixery.system(f"says-{name}", switch=Switch(bootloader=bootloader))
                outcome = self.pipeline().forward(self.intent(new, old, "halt"), self.methods.append)
                assert isinstance(outcome, Failed)
                self.assertEqual((outcome.exit_code, self.host.running()), (1, old))
                self.assertIn(words, outcome.stderr_tail)
                self.assertLessEqual(len(outcome.stderr_tail.encode()), 4096)
                kept = sum(place.stat().st_size for place in self.records("forward")[0].path.glob("output*"))
                self.assertLessEqual(kept, 3 * 2 * 1024 * 1024)


if __name__ == "__main__":
    unittest.main()
