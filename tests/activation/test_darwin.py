"""nix-darwin's `activate` on real Nix: the script that a Mac would run, without the Mac."""

from __future__ import annotations

from nixfleet_agent.activation.model import Completed, Failed, RolledBack
from tests.activation.case import PipelineCase
from tests.support import nix

#: `activate` stands at the top of a darwin system, takes no argument, and finds itself by its own path.
_ACTIVATE = """#!/bin/sh
self=$(basename "$(dirname "$0")")
echo "activate$* $self" >>"$SWITCH_LOG"
"""
_FLIP = """link="$SWITCH_CURRENT_SYSTEM"
ln -s "/nix/store/$self" "$link.$$" && mv -T "$link.$$" "$link"
"""


class DarwinTest(PipelineCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.nixery = nix.Nixery()
        cls.addClassCleanup(cls.nixery.close)
        cls.v1 = cls.darwin_system("d1", _FLIP)
        cls.v2 = cls.darwin_system("d2", _FLIP)

    @classmethod
    def darwin_system(cls, name: str, script: str) -> str:
        return cls.nixery.system(name, files={"activate": _ACTIVATE + script}, switchable=False)

    def setUp(self) -> None:
        super().setUp()
        self.host.configure(backend="darwin")

    def test_a_release_is_activated_by_its_own_script_and_reported_as_darwin(self) -> None:
        outcome = self.forward(self.v2)
        self.assertIsInstance(outcome, Completed)
        self.assertEqual(self.methods, ["darwin"])
        self.assertEqual(self.host.switches(), [f"activate {self.v2}"])
        self.assertEqual((self.host.running(), self.host.profile_closure()), (self.v2, self.v2))

    def test_a_release_that_fails_is_taken_back_by_the_activate_of_the_one_before(self) -> None:
        sick = self.darwin_system("d-sick", 'echo "no" >&2; exit 7\n')
        outcome = self.forward(sick)
        self.assertIsInstance(outcome, Failed)
        self.assertEqual((outcome.exit_code, outcome.switch_fired), (7, True))
        self.assertIsInstance(self.pipeline().rollback(self.back(sick)), RolledBack)
        self.assertEqual(self.host.switches(), [f"activate {sick}", f"activate {self.v1}"])
        self.assertEqual((self.host.running(), self.host.profile_closure()), (self.v1, self.v1))

    def test_a_system_without_activate_changes_nothing(self) -> None:
        linux = self.nixery.system("linux")
        outcome = self.forward(linux)
        self.assertIsInstance(outcome, Failed)
        self.assertEqual((outcome.switch_fired, self.host.running(), self.methods), (False, self.v1, ["darwin"]))
