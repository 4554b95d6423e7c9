"""``diff``: what would change, from a real store and the coming system's own script; and what can't be told."""

from __future__ import annotations

import unittest
from typing import ClassVar

from nixfleet_agent.artifacts.files import ArtifactFiles
from nixfleet_agent.demo.nixos_switch import units
from tests.commands.host_case import MACHINE, HostCase
from tests.support.nix import Nixery

R = "stable@aa"


class DiffCase(HostCase):
    """A host with a store, that runs ``old``; ``new`` is in its store too."""

    nixery: ClassVar[Nixery]
    old: ClassVar[str]
    new: ClassVar[str]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.nixery = Nixery()
        cls.addClassCleanup(cls.nixery.close)
        app = [cls.nixery.path(f"app-{v}", {"data": "x" * size}) for v, size in (("1.0", 10), ("2.0", 40_000))]
        gone, new = cls.nixery.path("gone-0.1-bin", {"a": "b"}), cls.nixery.path("fresh-3.4", {"a": "b"})
        cls.old = cls.nixery.system("old", references=(app[0], gone))
        files = units({"app.service": "2", "fresh.service": "1"})
        cls.new = cls.nixery.system("new", files=files, references=(app[1], new))

    def setUp(self) -> None:
        super().setUp()
        self.nix = self.nixery.host(f"{type(self).__name__}-{self.id().rpartition('.')[2]}"[:60])
        self.nix.boot(self.old)
        self.nix.nix("nix-store", "--realise", f"/nix/store/{self.new}")
        (self.nix.active_units / "app.service").write_text("1\n")
        (self.nix.active_units / "gone.service").write_text("1\n")
        self.environ = dict(self.nix.environment)
        self.tables = (
            f'[activation]\nbackend = "setsid"\nstore_root = "{self.nix.store_root}"\nprofile = "{self.nix.profile}"\n'
            f'current_system = "{self.nix.current_system}"\nswitch_lock = "{self.nix.switch_lock}"\n'
        )


class DiffTest(DiffCase):
    def test_packages_sizes_and_units(self) -> None:
        ran = self.call("diff", f"/nix/store/{self.new}")
        self.assertEqual(ran.code, 0, ran.err)
        lines = [" ".join(line.split()) for line in ran.out.splitlines()]
        self.assertEqual(lines[:2], [f"running {self.old}", f"coming {self.new}"])
        self.assertIn("changed app 1.0 2.0 +39.0 KiB", lines)
        self.assertTrue(any(line.startswith("added fresh 3.4 +") for line in lines), lines)
        self.assertTrue(any(line.startswith("removed gone 0.1 -") for line in lines), lines)
        self.assertEqual(lines[-2:], ["stop app.service, gone.service", "start app.service, fresh.service"])

    def test_for_scripts(self) -> None:
        found = self.call("diff", self.new, "--json").json
        self.assertEqual((found["running"], found["coming"], found["rollout_id"]), (self.old, self.new, None))
        self.assertEqual([change["name"] for change in found["changed"]], ["app"])
        self.assertEqual(found["size_delta"], found["size_after"] - found["size_before"])
        self.assertEqual(found["units"]["stop"], ["app.service", "gone.service"])
        self.assertEqual((found["units_unknown"], found["refused_by"], found["takes_reboot"]), (None, None, False))

    def test_a_rollout_that_ran_here_is_known_by_how_it_begins(self) -> None:
        self.accept("stable@ab01", target=self.new)
        self.assertIn(f"{self.new} (stable@ab01)", self.call("diff", "stable@ab").out)

    def test_what_runs_already_changes_nothing(self) -> None:
        ran = self.call("diff", self.old)
        self.assertEqual((ran.code, ran.out.splitlines()[-1]), (0, "it runs already: nothing would change."))

    def test_the_host_is_as_before(self) -> None:
        before = self.nix.running(), self.nix.units(), self.nix.profile_closure(), self.nix.generations()
        self.assertEqual(self.call("diff", self.new).code, 0)
        now = self.nix.running(), self.nix.units(), self.nix.profile_closure(), self.nix.generations()
        self.assertEqual((now, self.nix.boots(), self.nix.switches()), (before, None, [f"dry-activate {self.new}"]))

    def test_by_default_it_is_what_ci_signed_last(self) -> None:
        self.fails(1, f"no verified release that names {MACHINE}", "rehearse", ran=self.call("diff"))
        self.cache_release(self.new)
        self.assertIn(f"{self.new} ({R})", self.call("diff").out)

    def test_a_cached_release_that_ci_has_not_signed_is_none(self) -> None:
        self.cache_release(self.new)
        signature = self.state / "fleet" / "fleet.resolved.sig"
        signature.write_bytes(bytes(64))
        ran = self.call("diff")
        self.assertEqual(ran.code, 1)
        self.assertIn("no verified release", ran.err)

    def test_what_is_not_in_the_store_says_how_it_gets_there(self) -> None:
        away = self.nixery.system("away")
        self.cache_release(away)
        self.fails(1, f"{away} is not in this host's store", f"`nixfleet-agent rehearse {R}`", ran=self.call("diff"))
        self.fails(1, f"`nix-store --realise /nix/store/{away}`", ran=self.call("diff", away))

    def test_mistakes_are_one_line(self) -> None:
        for wanted, said in (
            ("other", "no rollout that is known here begins with 'other'"),
            ("/nix/store/x", "is no path of a closure"),
            (f"/nix/store/{self.new}/bin", "is no path of a closure"),
        ):
            self.fails(2, said, ran=self.call("diff", wanted))
        self.accept("stable@ab01", 1, target=self.new)
        self.accept("stable@ab02", 2, target=self.new)
        self.fails(2, "several rollouts begin with 'stable@ab'", ran=self.call("diff", "stable@ab"))
        self.nix.current_system.unlink()
        self.fails(1, "can't tell what runs", "does not exist", ran=self.call("diff", self.new))

    def test_units_that_cannot_be_told_do_not_hide_the_rest(self) -> None:
        text = {"bin/switch-to-configuration": "#!/bin/sh\necho 'must be root' >&2; exit 1\n"}
        closure = self.nixery.path("nixos-system-refuses", text)
        self.nix.nix("nix-store", "--realise", f"/nix/store/{closure}")
        ran = self.call("diff", closure)
        self.assertEqual(ran.code, 0)
        self.assertIn("removed", ran.out)
        self.assertIn("units: not known: dry-activate ended with 1: must be root", ran.out)

    def cache_release(self, closure: str) -> None:
        """As the manifest poll leaves it on disk."""
        made = self.ci.release({MACHINE: "stable"}, signed_at=self.now, commit="aa", closures={MACHINE: closure})
        files = ArtifactFiles(self.state)
        files.write_fleet(made.fleet.raw, made.fleet.signature)
        manifest = made.rollout("stable")
        files.write_manifest(R, manifest.raw, manifest.signature)


if __name__ == "__main__":
    unittest.main()
