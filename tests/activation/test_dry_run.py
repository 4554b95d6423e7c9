"""What ``dry-activate`` would do to units: the words of both scripts, and the script that is not asked."""

from __future__ import annotations

import unittest

from nixfleet_agent.activation.backends import choose
from nixfleet_agent.activation.dry_run import DryRun, NotAskedError, dry_activate
from nixfleet_agent.activation.model import ROLLBACK_AND_HALT, Forward
from nixfleet_agent.activation.readiness import inspect
from nixfleet_agent.activation.unit_words import UnitChanges, unit_changes
from nixfleet_agent.demo.nixos_switch import Switch, inhibitors, units
from tests.activation.case import PipelineCase
from tests.support.nix import SUCCEED

#: As the Perl script and the Rust program print it, with the words of activation scripts in between.
DRY = """Not checking switch inhibitors (action = dry-activate)
would stop swap device: /dev/sdb2
would stop the following units: accounts-daemon.service, nginx.service
would NOT stop the following changed units: getty@tty1.service, systemd-logind.service
would activate the configuration...
would restart systemd
would reload the following units: dbus.service, -.mount
would restart the following units: nix-daemon.service, user@1000.service
would start the following units: accounts-daemon.service, nginx.service
"""
LIVE = """stopping swap device: /dev/sdb2
stopping the following units: nginx.service
NOT restarting the following changed units: getty@tty1.service
activating the configuration...
setting up /etc...
restarting systemd...
reloading user units for alice...
NOT restarting the following user units: systemd-tmpfiles-setup.service
restarting the following user units: nixos-activation.service
reloading the following units: dbus.service
restarting the following units: nix-daemon.service
starting the following units: nginx.service
the following new units were started: app.service
"""


class WordsTest(unittest.TestCase):
    def test_the_plan_of_both_scripts(self) -> None:
        self.assertEqual(
            unit_changes(DRY),
            UnitChanges(
                stop=("accounts-daemon.service", "nginx.service"),
                start=("accounts-daemon.service", "nginx.service"),
                restart=("nix-daemon.service", "user@1000.service"),
                reload=("dbus.service", "-.mount"),
                kept=("getty@tty1.service", "systemd-logind.service"),
                swap=("/dev/sdb2",),
                systemd=True,
            ),
        )

    def test_what_a_switch_says_that_it_does(self) -> None:
        self.assertEqual(
            unit_changes(LIVE),
            UnitChanges(
                stop=("nginx.service",),
                start=("nginx.service",),
                restart=("nixos-activation.service (user)", "nix-daemon.service"),
                reload=("dbus.service",),
                kept=("getty@tty1.service", "systemd-tmpfiles-setup.service (user)"),
                swap=("/dev/sdb2",),
                systemd=True,
            ),
        )

    def test_older_scripts_tell_what_activation_adds_on_lines_of_their_own(self) -> None:
        words = (
            "would stop the following units: a.service\nwould stop the following units as well: b.service\n"
            "would NOT restart the following changed units as well: c.service\n"
        )
        self.assertEqual(unit_changes(words), UnitChanges(stop=("a.service", "b.service"), kept=("c.service",)))

    def test_other_words_name_no_units(self) -> None:
        for words in ("", "would activate the configuration...\n", "echo would stop the following units: a.service\n"):
            self.assertTrue(unit_changes(words).nothing, words)
        self.assertEqual(unit_changes("would stop the following units: a.service, \x1b[2J, b c\n").stop, ("a.service",))

    def test_a_script_that_names_units_without_end_is_cut(self) -> None:
        words = "would stop the following units: " + ", ".join(f"u{n}.service" for n in range(5000))
        self.assertEqual(len(unit_changes(words).stop), 1000)


class DryActivateTest(PipelineCase):
    def dry(self, coming: str) -> DryRun:
        """Its answer; nothing about the host has changed by asking."""
        self.host.nix("nix-store", "--realise", f"/nix/store/{coming}")
        before = self.host.running(), self.host.units(), self.host.profile_closure(), self.host.boots()
        context = self.pipeline()._context
        try:
            found = dry_activate(context, choose(context), coming)
            assert found is not None
            return found
        finally:
            now = self.host.running(), self.host.units(), self.host.profile_closure(), self.host.boots()
            self.assertEqual(now, before)

    def test_units_of_each_kind(self) -> None:
        for flavour in ("ng", "perl"):
            with self.subTest(flavour):
                for name in ("gone", "changed", "kept"):
                    (self.host.active_units / f"{name}.service").write_text(
                        "X-RestartIfChanged=false\n"[: 25 * (name == "kept")]
                    )
                for name in ("quick", "mild"):
                    (self.host.active_units / f"{name}.service").write_text("old\n")
                files = units(
                    {
                        "changed.service": "2",
                        "kept.service": "2",
                        "quick.service": "X-StopIfChanged=false",
                        "mild.service": "X-ReloadIfChanged=true",
                        "new.service": "1",
                    }
                )
                found = self.dry(self.nixery.system(f"units-{flavour}", files=files, switch=Switch(flavour=flavour)))
                self.assertEqual(found.exit_code, 0)
                self.assertEqual(
                    found.units,
                    UnitChanges(
                        stop=("changed.service", "gone.service"),
                        start=("changed.service", "new.service"),
                        restart=("quick.service",),
                        reload=("mild.service",),
                        kept=("kept.service",),
                    ),
                )

    def test_a_check_that_would_refuse_is_named(self) -> None:
        found = self.dry(self.nixery.system("refused", switch=Switch(checks={"disk": "false"})))
        self.assertEqual((found.refused, found.next_boot), ("disk", False))

    def test_a_reboot_is_foreseen(self) -> None:
        found = self.dry(self.nixery.system("interface", files={"init-interface-version": "2\n"}))
        self.assertTrue(found.next_boot)
        running = self.nixery.system("old-bus", files=inhibitors(dbus="dbus"))
        self.host.boot(running)
        files = inhibitors(dbus="broker")
        found = self.dry(self.nixery.system("new-bus", files=files, switch=Switch(flavour="perl")))
        self.assertTrue(found.next_boot)

    def test_a_script_that_fails_gives_no_plan(self) -> None:
        closure = self.nixery.path(
            "nixos-system-bad", {"bin/switch-to-configuration": "#!/bin/sh\necho no root; exit 3\n"}
        )
        self.assertEqual(self.dry(closure).failure, "dry-activate ended with 3: no root")

    def test_a_perl_script_is_not_asked_where_it_would_turn_swap_off(self) -> None:
        """It does that in ``dry-activate`` of all actions."""
        script = '#!/usr/bin/perl\nopen(my $f, ">", "$ENV{SWITCH_BOOTLOADER}"); print STDERR "would start x\\n";\n'
        running = self.nixery.system("swap", files={"etc/fstab": "# /dev/x none swap\n/dev/sdb2 none swap sw 0 0\n"})
        self.host.boot(running)
        coming = self.nixery.path(
            "nixos-system-noswap", {"bin/switch-to-configuration": script, "etc/fstab": "/dev/sda1 / ext4\n"}
        )
        with self.assertRaisesRegex(NotAskedError, "/dev/sdb2 is not in its fstab: not run"):
            self.dry(coming)
        self.assertFalse(self.host.bootloader.exists())
        context = self.pipeline()._context
        found = inspect(context, choose(context), Forward("stable@aa", coming, running, ROLLBACK_AND_HALT))
        self.assertEqual((found.ready, found.dry_run), (True, None), found.obstacles)
        self.dry(self.nixery.system("rust", SUCCEED, files={"etc/fstab": ""}))


if __name__ == "__main__":
    unittest.main()
