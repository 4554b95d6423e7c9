"""``rehearse``: whether the real one would begin, for each thing that may stand in its way; and it changes nothing."""

from __future__ import annotations

import hashlib
import os
import unittest
from datetime import timedelta
from unittest import mock

from nixfleet_agent.commands import rehearse
from nixfleet_agent.demo.nixos_switch import inhibitors
from nixfleet_agent.operator.hold import HoldStore
from nixfleet_agent.operator.quarantine import Entry, QuarantineStore
from nixfleet_agent.state_machine.events import LocalActivate
from nixfleet_agent.threads.clock import SystemClock
from tests.commands.host_case import MACHINE, Ran
from tests.commands.test_diff import DiffCase, R
from tests.support.behaviours import Reply
from tests.support.signing import Release


class RehearseCase(DiffCase):
    """A control plane publishes what CI has signed for this host."""

    def setUp(self) -> None:
        super().setUp()
        self.server = self.serve()
        self.target = self.nixery.system(self.id().rpartition(".")[2])
        self.publish(self.target)

    def publish(
        self, closure: str, *, hosts: tuple[str, ...] = (MACHINE,), commit: str = "aa", age: int = 0, fresh: int = 60
    ) -> Release:
        signed_at = self.now - timedelta(minutes=age)
        closures = dict.fromkeys(hosts, closure)
        channels = dict.fromkeys(hosts, "stable")
        made = self.ci.release(channels, signed_at=signed_at, commit=commit, closures=closures, freshness_minutes=fresh)
        served = (("/v1/fleet.resolved", made.fleet), (f"/v1/rollouts/stable@{commit}", made.rollout("stable")))
        for path, artifact in served:
            self.serve_bytes(path, artifact.raw)
            self.serve_bytes(f"{path}/sig", artifact.signature)
        return made

    def serve_bytes(self, path: str, body: bytes) -> None:
        self.server.route("GET", path, handler=lambda request: Reply(200, body))

    def world(self) -> dict[str, object]:
        """All that a rehearsal may not change: every file of the state, what runs, what boots, each generation."""
        files = {
            str(path): os.readlink(path) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in (self.state, self.nix.profile.parent, self.nix.state_dir)
            for path in sorted(folder.rglob("*"))
            if path.is_symlink() or path.is_file()
        }
        return {
            **files,
            "running": self.nix.running(),
            "boots": self.nix.boots(),
            "units": self.nix.units(),
            "folders": sorted(str(path) for path in self.state.rglob("*") if path.is_dir()),
        }

    def rehearse(self, *arguments: str) -> Ran:
        """Run it; the host must be as it was, whatever came of it, and no root of the rehearsal is left."""
        before = self.world()
        ran = self.call("rehearse", *arguments)
        self.assertEqual(self.world(), before)
        self.assertNotIn("switch", " ".join(line.split()[0] for line in self.nix.switches()))
        roots = self.nix.nix("nix-store", "--gc", "--print-roots").stdout
        self.assertNotIn("nixfleet-rehearse", roots)
        return ran

    def blocked(self, what: str, *says: str, ran: Ran | None = None) -> None:
        """It would not begin, for this reason alone."""
        found = (self.rehearse("--json") if ran is None else ran).json
        blocking = [(each["what"], each["text"]) for each in found["obstacles"] if each["blocks"]]
        self.assertEqual([each[0] for each in blocking], [what], found["obstacles"])
        for part in says:
            self.assertIn(part, blocking[0][1])
        self.assertFalse(found["would_begin"])


class GoodTest(RehearseCase):
    def test_what_would_begin_is_fetched_compared_and_changes_nothing(self) -> None:
        self.assertFalse(self.nix.has(self.target))
        ran = self.rehearse()
        self.assertEqual(ran.code, 0, ran)
        self.assertTrue(self.nix.has(self.target))
        self.assertRegex(ran.err, rf"(?s)^fetching {self.target}, .* to download\n.*fetched in \d+\.\d s\n$")
        self.assertIn(f"verified   {R}, signed", ran.out)
        self.assertIn(f"policy     rollback-and-halt, way back {self.old}", ran.out)
        self.assertIn("removed", ran.out)
        self.assertEqual(ran.out.splitlines()[-1], "with its turn now it would begin")
        self.assertEqual(self.nix.switches(), [f"dry-activate {self.target}"])

    def test_whoever_waits_is_told_how_far_a_download_is(self) -> None:
        large = self.nixery.path("large", {"data": "x" * 400_000})
        self.publish(self.nixery.system("slow", references=(large,)))
        self.nixery.server.drip = (50_000, 0.1)
        self.addCleanup(setattr, self.nixery.server, "drip", None)
        self.enterContext(mock.patch.object(rehearse, "_TELL_SECS", 0.2))
        ran = self.rehearse()
        self.assertEqual(ran.code, 0, ran)
        self.assertRegex(ran.err, r"(?m)^\d+\.\d KiB so far, \d+ %$")

    def test_for_scripts(self) -> None:
        ran = self.rehearse("--json")
        found = ran.json
        self.assertEqual((ran.code, found["would_begin"], found["takes_reboot"]), (0, True, False))
        self.assertEqual((found["rollout_id"], found["target_closure"], found["obstacles"]), (R, self.target, []))
        self.assertEqual((found["way_back"], found["policy"]), (self.old, "rollback-and-halt"))
        self.assertEqual(found["diff"]["coming"], self.target)

    def test_one_that_takes_a_reboot_begins(self) -> None:
        running = self.nixery.system("bus-1", files=inhibitors(dbus="dbus"))
        self.nix.boot(running)
        self.publish(self.nixery.system("bus-2", files=inhibitors(dbus="broker")))
        ran = self.rehearse()
        self.assertEqual(ran.code, 0, ran)
        self.assertIn("it takes a reboot: dbus", ran.out)
        self.assertTrue(ran.out.endswith("take effect at the next reboot\n"), ran.out)

    def test_what_runs_already_begins_and_has_nothing_to_do(self) -> None:
        self.publish(self.old)
        ran = self.rehearse()
        self.assertEqual(ran.code, 0, ran)
        self.assertIn("it runs already: nothing would change.", ran.out)

    def test_an_older_rollout_may_be_named_in_full(self) -> None:
        self.publish(self.target, commit="bb")
        self.assertEqual(self.rehearse("stable@bb", "--json").json["rollout_id"], "stable@bb")


class BadTest(RehearseCase):
    def test_what_ci_has_not_signed(self) -> None:
        self.serve_bytes(f"/v1/rollouts/{R}/sig", bytes(64))
        ran = self.rehearse("--json")
        self.assertEqual(ran.code, 1)
        self.blocked("verify", "not signed by an active CI release key", ran=ran)
        self.assertFalse(self.nix.has(self.target), "not fetched")

    def test_what_is_too_old(self) -> None:
        self.publish(self.target, age=90)
        self.blocked("verify", "fresh")

    def test_what_is_older_than_what_was_accepted_here(self) -> None:
        self.accept("stable@ff", target=self.old)
        self.publish(self.target, age=65, fresh=180)
        self.blocked("verify", "was already accepted")

    def test_a_release_without_this_host(self) -> None:
        self.publish(self.target, hosts=("web-02",))
        ran = self.rehearse()
        self.fails(1, f"does not name {MACHINE}", "machine_id", ran=ran)
        self.publish(self.target)
        self.server.route("GET", f"/v1/rollouts/{R}", handler=lambda request: Reply(200, b"{}"))
        self.blocked("verify")

    def test_an_operators_hold_a_closed_window_and_quarantine(self) -> None:
        hold = HoldStore(self.state, SystemClock())
        hold.set("the database moves")
        self.blocked("hold", "the database moves")
        hold.release()
        QuarantineStore(self.state).add(Entry("stable", self.target, "stable@ee", self.now, "rolled back"))
        self.blocked("quarantine", "rolled back in stable@ee")
        QuarantineStore(self.state).clear()
        hour = (self.now + timedelta(hours=12)).hour
        self.tables += f'[maintenance]\nwindows = ["daily {hour:02}:00-{hour:02}:30"]\n'
        self.blocked("window", "no maintenance window is open")

    def test_one_that_ran_here(self) -> None:
        accepted = self.accept(R, prior=self.old, target=self.target)
        self.log(accepted, LocalActivate(seq=1, current_closure_at_dispatch=self.old, received_at=accepted.accepted_at))
        self.blocked("ran-here", "runs once")

    def test_a_closure_that_no_cache_has(self) -> None:
        self.nixery.withdraw(self.target)
        ran = self.rehearse("--json")
        self.assertEqual(ran.code, 1)
        self.blocked("fetch", ran=ran)
        self.assertIsNone(ran.json["diff"])

    def test_a_closure_without_a_script_and_one_that_refuses(self) -> None:
        self.publish(self.nixery.system("no-script", switchable=False))
        self.blocked("script", "missing")
        text = {"bin/switch-to-configuration": "#!/bin/sh\necho 'Pre-switch checks failed' >&2; exit 1\n"}
        self.publish(self.nixery.path("nixos-system-refuses", text))
        self.blocked("dry-run", "refuses it")

    def test_of_a_script_that_gave_up_nothing_is_known_of_units(self) -> None:
        text = {"bin/switch-to-configuration": "#!/bin/sh\necho 'Could not acquire lock' >&2; exit 1\n"}
        self.publish(self.nixery.path("nixos-system-locked", text))
        ran = self.rehearse()
        self.assertEqual(ran.code, 0, "the real one waits for the lock")
        self.assertIn("units: not known: dry-activate ended with 1: Could not acquire lock", ran.out)
        self.assertIn("note  dry-run      another switch holds the lock", ran.out)
        self.assertNotIn("no unit would be", ran.out)
        found = self.rehearse("--json").json["diff"]
        self.assertIsNone(found["units"])
        self.assertIn("Could not acquire lock", found["units_unknown"])

    def test_a_way_back_that_is_gone(self) -> None:
        gone = self.nixery.system("proven-and-gone")
        accepted = self.accept("stable@ff", prior=gone, target=self.old)
        self.log(accepted, *self.activated(accepted))
        self.publish(self.target, commit="bb")
        self.blocked("way-back", gone)

    def test_mistakes_are_one_line(self) -> None:
        self.fails(2, "only what CI signed is rehearsed", ran=self.rehearse(f"/nix/store/{self.target}"))
        self.fails(2, "no rollout that is known here begins with 'stab'", ran=self.rehearse("stab"))
        self.server.close()
        self.fails(69, "`nixfleet-agent check` looks for the cause", ran=self.rehearse())
        (self.folder / "cert.pem").unlink()
        self.assertEqual(self.rehearse().code, 1)


if __name__ == "__main__":
    unittest.main()
