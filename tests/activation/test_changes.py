"""What a switch changed, in short: kept with its record, told when the store has forgotten both closures."""

from __future__ import annotations

import unittest

from nixfleet_agent.activation import changes
from nixfleet_agent.activation.changes import Changes, changes_of, of_rollout
from nixfleet_agent.activation.context import SUPERSEDED
from nixfleet_agent.activation.host import read_boot_id
from nixfleet_agent.activation.model import Completed, Deferred
from nixfleet_agent.activation.packages import compare
from nixfleet_agent.activation.pipeline import Pipeline
from nixfleet_agent.activation.records import BOOT, FORWARD, Records
from nixfleet_agent.activation.unit_words import UnitChanges
from nixfleet_agent.demo.nixos_switch import inhibitors, units
from tests.activation.case import ROLLOUT, PipelineCase
from tests.support.nix import FAIL

HASH = "0c4q6ngn2fdqgwl4ny2rr5yz2m94rgl6-"


class ShortFormTest(unittest.TestCase):
    def test_packages_then_size_then_units(self) -> None:
        before = {HASH + name: 1024 for name in ("nginx-1.26", "gone-1", "same-1")}
        after = {HASH + name: 1024 for name in ("nginx-1.27", "new-2", "same-1", "big")}
        plan = UnitChanges(stop=("a.service", "b.service"), start=("b.service", "c.service"), restart=("d.service",))
        found = changes_of(compare("old", "new", before, after), plan)
        self.assertEqual(found.packages, ("nginx 1.26 -> 1.27", "+big ε", "+new 2", "-gone 1"))
        self.assertEqual(
            found.words,
            "nginx 1.26 -> 1.27, +big ε, +new 2, -gone 1, +1.0 KiB; "
            "restarts b.service, d.service; stops a.service; starts c.service",
        )

    def test_what_is_kept_and_said_of_a_large_update_is_bounded(self) -> None:
        before = {f"{HASH}p{n}-1.{'0' * 150}": 1 for n in range(4000)}
        after = {f"{HASH}p{n}-2.{'0' * 150}": 1 for n in range(4000)}
        names = tuple(f"u{n}.service" for n in range(1000))
        found = changes_of(compare("old", "new", before, after), UnitChanges(stop=names, reload=names))
        self.assertEqual((len(found.packages), found.packages_total, len(found.stopped)), (50, 4000, 50))
        self.assertIn("3996 more; stops u0.service, u1.service, u2.service, u3.service and 46 more", found.words)
        self.assertLess(len(str(found.to_json())), 64 * 1024)

    def test_nothing_of_note(self) -> None:
        self.assertEqual(
            changes_of(compare("a", "b", {HASH + "x": 1}, {HASH + "x": 1}), UnitChanges()).words, "no package"
        )


class KeptTest(PipelineCase):
    def kept(self) -> Changes | None:
        return of_rollout(Records(self.host.state_dir, read_boot_id()), ROLLOUT)

    def forget(self, pipeline: Pipeline) -> None:
        """Nothing holds the closures any more, and the store has neither."""
        pipeline.release(ROLLOUT)
        for generation in self.host.profile.parent.iterdir():
            generation.unlink()
        self.host.collect_garbage()
        self.assertFalse(self.host.has(self.v1))

    def test_a_switch_is_told_when_the_store_has_forgotten_it(self) -> None:
        app = self.nixery.path("app-2.0", {"data": "x" * 30_000})
        target = self.nixery.system("with-app", files=units({"app.service": "1"}), references=(app,))
        self.assertEqual(self.forward(target), Completed(target, 0, ()))
        self.assertIsNone(self.kept())
        pipeline = self.pipeline()
        pipeline.keep_changes()
        found = self.kept()
        assert found is not None
        self.assertEqual((found.packages, found.started), (("+app 2.0",), ("app.service",)))
        self.forget(pipeline)
        pipeline.keep_changes()
        self.assertEqual(self.kept(), found)

    def test_what_could_not_be_told_yet_is_told_at_the_next_call(self) -> None:
        self.forward(self.v2)
        self.reason = SUPERSEDED
        self.pipeline().keep_changes()
        self.assertIsNone(self.kept())
        self.reason = None
        self.pipeline().keep_changes()
        self.assertIsNotNone(self.kept())

    def test_what_can_never_be_told_is_asked_once(self) -> None:
        self.forward(self.v2)
        self.forget(self.pipeline())
        self.pipeline().keep_changes()
        (record,) = self.records(FORWARD)
        self.assertEqual((record.path / changes.FILE).read_text(), "{}\n")
        self.assertIsNone(self.kept())

    def test_a_switch_that_failed_and_one_for_the_next_boot_are_told_too(self) -> None:
        app = self.nixery.path("app-3.0", {"a": "b"})
        self.forward(self.nixery.system("fails", FAIL, references=(app,)), policy="halt")
        self.pipeline().keep_changes()
        found = self.kept()
        self.assertEqual(found and found.packages, ("+app 3.0",))
        self.host.boot(self.nixery.system("bus-a", files=inhibitors(dbus="dbus")))
        later = self.nixery.system("bus-b", files=inhibitors(dbus="broker"))
        self.assertIsInstance(self.forward(later), Deferred)
        self.pipeline().keep_changes()
        (record,) = self.records(BOOT)
        self.assertIsNotNone(changes.read(record))

    def test_a_file_of_another_form_tells_nothing(self) -> None:
        self.forward(self.v2)
        self.pipeline().keep_changes()
        (record,) = self.records(FORWARD)
        for bad in ("", "[]", "{", '{"packages": 3}', '{"packages_total": "x"}'):
            (record.path / changes.FILE).write_text(bad)
            self.assertIsNone(self.kept(), bad)


if __name__ == "__main__":
    unittest.main()
