"""What is known of a switch before its turn: each thing that may stand in its way, and that looking changes nothing."""

from __future__ import annotations

import os
import unittest
from dataclasses import replace
from pathlib import Path
from unittest import mock

from nixfleet_agent.activation import boot_space, nix
from nixfleet_agent.activation.backends import choose
from nixfleet_agent.activation.backends.darwin import DarwinBackend
from nixfleet_agent.activation.context import SHUTDOWN, Context
from nixfleet_agent.activation.errors import PhaseInterrupted
from nixfleet_agent.activation.host import on_disk
from nixfleet_agent.activation.model import ROLLBACK_AND_HALT, Forward
from nixfleet_agent.activation.readiness import (
    BOOT_SPACE,
    DRY_RUN,
    INHIBITORS,
    SCRIPT,
    WAY_BACK,
    DryRun,
    Readiness,
    inspect,
    judge,
)
from nixfleet_agent.demo.nixos_switch import Switch, inhibitors, units
from tests.activation.case import ROLLOUT, PipelineCase
from tests.support.nix import SUCCEED


class ReadinessTest(PipelineCase):
    def context(self) -> Context:
        return self.pipeline()._context

    def inspect(self, target: str, prior: str | None = None, policy: str = ROLLBACK_AND_HALT) -> Readiness:
        """Fetched, and looked at; nothing of the host may be another afterwards."""
        self.host.nix("nix-store", "--realise", f"/nix/store/{target}")
        before = (self.host.running(), self.host.profile_closure(), self.host.boots(), self.host.units())
        context = self.context()
        found = inspect(context, choose(context), Forward(ROLLOUT, target, prior or self.v1, policy))
        after = (self.host.running(), self.host.profile_closure(), self.host.boots(), self.host.units())
        self.assertEqual((before, sorted(self.host.state_dir.iterdir())), (after, []))
        return found

    def only(self, found: Readiness, what: str, *, blocks: bool) -> str:
        self.assertEqual([(each.what, each.blocks) for each in found.obstacles], [(what, blocks)], found.obstacles)
        self.assertIs(found.ready, not blocks)
        return found.obstacles[0].text

    def test_nothing_in_the_way_and_the_dry_run_tells_the_units(self) -> None:
        target = self.nixery.system("units", files=units({"app.service": "1"}))
        found = self.inspect(target)
        self.assertEqual((found.obstacles, found.ready), ((), True))
        assert found.dry_run is not None
        self.assertEqual(found.dry_run.exit_code, 0)
        self.assertIn("would start the following units: app.service", found.dry_run.output)
        self.assertEqual(self.host.switches(), [f"dry-activate {target}"])

    def test_a_closure_without_a_script_is_no_system_and_nothing_is_run(self) -> None:
        target = self.nixery.system("no-script", switchable=False)
        self.assertIn("switch-to-configuration is missing", self.only(self.inspect(target), SCRIPT, blocks=True))

    def test_no_way_back_stands_in_the_way_of_those_that_take_back(self) -> None:
        missing = self.nixery.system("never-here")
        for policy, blocks in ((ROLLBACK_AND_HALT, True), ("halt", False)):
            with self.subTest(policy):
                said = self.only(self.inspect(self.v2, missing, policy), WAY_BACK, blocks=blocks)
                self.assertIn(f"no way back to {missing}: it is not in the store", said)

    def test_a_way_back_without_its_script_is_none(self) -> None:
        bare = self.nixery.system("bare", switchable=False)
        self.host.nix("nix-store", "--realise", f"/nix/store/{bare}")
        self.assertIn(
            "switch-to-configuration is missing", self.only(self.inspect(self.v2, bare), WAY_BACK, blocks=True)
        )

    def test_the_first_switch_of_a_host_is_told_and_begins(self) -> None:
        self.host.nix("nix-store", "--realise", f"/nix/store/{self.v2}")
        context = self.context()
        found = inspect(context, choose(context), Forward(ROLLOUT, self.v2, None, ROLLBACK_AND_HALT))
        self.assertIn("nothing is known", self.only(found, WAY_BACK, blocks=False))

    def test_what_can_not_be_replaced_takes_a_reboot_and_is_told_once(self) -> None:
        old = self.nixery.system("old", files=inhibitors(systemd_version="257"))
        self.host.boot(old)
        found = self.inspect(self.nixery.system("new", files=inhibitors(systemd_version="258")), old)
        self.assertIn("takes a reboot: systemd-version", self.only(found, INHIBITORS, blocks=False))

    def test_inhibitors_that_can_not_be_read_block(self) -> None:
        broken = self.nixery.system("broken", files={"switch-inhibitors": "[]"})
        self.assertIn("no JSON object", self.only(self.inspect(broken), INHIBITORS, blocks=True))

    def test_a_check_of_the_release_itself_is_asked_beforehand(self) -> None:
        refusing = self.nixery.system("refusing", SUCCEED, switch=Switch(checks={"raid": "echo degraded >&2; false"}))
        said = self.only(self.inspect(refusing), DRY_RUN, blocks=True)
        self.assertIn("pre-switch check raid refuses it", said)
        self.assertIn("degraded / ", said, "in one line, as `why` shows it")
        self.assertNotIn("\n", said)

    def test_a_full_boot_partition_is_told_where_kernels_are_copied(self) -> None:
        kernel = self.nixery.path("kernel", {"bzImage": "k" * 1000})
        target = self.nixery.system("kernel", links={"kernel": f"/nix/store/{kernel}/bzImage"}, references=(kernel,))
        self.host.nix("nix-store", "--realise", f"/nix/store/{target}")
        root, boot = str(self.host.store_root), self.host.root / "boot"
        self.assertIsNone(boot_space.shortage(root, target, (boot,)), "nothing is copied")
        for folder, suffix in (("EFI/nixos", ".efi"), ("kernels", "")):
            with self.subTest(folder):
                copies = boot / folder
                copies.mkdir(parents=True)
                self.assertIsNone(boot_space.shortage(root, target, (boot,)), "there is room")
                image = on_disk(root, kernel) / "bzImage"
                image.chmod(0o644)
                os.truncate(image, 1 << 42)  # no file system here has this much
                self.addCleanup(os.truncate, image, 1000)
                said = boot_space.shortage(root, target, (boot,))
                self.assertRegex(str(said), rf"take {1 << 42} bytes in {copies}, \d+ are free")
                (copies / f"{kernel}-bzImage{suffix}").touch()
                self.assertIsNone(boot_space.shortage(root, target, (boot,)), "that copy is there already")
                os.truncate(image, 1000)
                (copies / f"{kernel}-bzImage{suffix}").unlink()
                copies.rmdir()

    def test_the_boot_partition_counts(self) -> None:
        with mock.patch.object(boot_space, "shortage", lambda root, closure: "no room"):
            found = self.inspect(self.v2)
        self.assertEqual(self.only(found, BOOT_SPACE, blocks=True), "no room")

    def test_a_dry_run_that_hangs_is_left_when_it_is_time(self) -> None:
        hanging = self.nixery.system("hanging", switch=Switch(checks={"net": "sleep 600"}))
        self.host.nix("nix-store", "--realise", f"/nix/store/{hanging}")
        context = replace(self.context(), interrupted=lambda: SHUTDOWN if self.host.switches() else None)
        with self.assertRaises(PhaseInterrupted):
            inspect(context, choose(context), Forward(ROLLOUT, hanging, self.v1, ROLLBACK_AND_HALT))

    def test_validity_needs_no_root(self) -> None:
        self.assertTrue(nix.is_valid(self.context(), self.v1))
        self.assertFalse(nix.is_valid(self.context(), self.v2))

    def test_darwin_is_never_run_dry(self) -> None:
        self.assertIsNone(DarwinBackend(self.context()).dry_run(Path("/nix/store/x")))


class JudgeTest(unittest.TestCase):
    def test_the_end_of_a_dry_run(self) -> None:
        inhibited = "kernel : 6.1 -> 6.6\nPre-switch check 'switchInhibitors' failed\nPre-switch checks failed\n"
        for code, words, what, blocks, said in (
            (11, "Could not acquire lock\n", DRY_RUN, False, "holds the lock"),
            (1, inhibited, INHIBITORS, False, "a reboot: kernel can't"),
            (100, "", INHIBITORS, False, "a reboot: init-interface can't"),
            (1, "boom\n", DRY_RUN, True, "ended with 1: boom"),
            (-9, "", DRY_RUN, True, "ended with -9: it said nothing"),
        ):
            with self.subTest(words=words, code=code):
                found = judge(DryRun(code, words))
                assert found is not None
                self.assertEqual((found.what, found.blocks), (what, blocks))
                self.assertIn(said, found.text)
        self.assertIsNone(judge(DryRun(0, "would stop the following units: a.service\n")))
