"""What a control plane serves before a turn: only what CI signed for this host, now, is asked of the caches."""

from __future__ import annotations

import os
import unittest
from datetime import datetime, timezone
from typing import Any
from unittest import mock

from nixfleet_agent.config.model import PrefetchConfig
from tests.attacks.case import HOSTS, AttackCase
from tests.attacks.host import MACHINE
from tests.attacks.liar import ago, minutes, rollout_path
from tests.support.signing import CiSigner, Release, Signed, closure_name, manifest_value
from tests.support.tls import now

#: Stands in for Nix: notes what it is asked for, and has none of it.
_NIX = """#!/bin/sh
echo "$*" >>{log}
echo "error: don't know how to build these paths:" >&2
exit 1
"""


class Prefetch(AttackCase):
    def setUp(self) -> None:
        super().setUp()
        programs = self.folder / "programs"
        programs.mkdir()
        self.asked_of_nix = self.folder / "asked-of-nix"
        self.asked_of_nix.touch()
        (programs / "nix-store").write_text(_NIX.format(log=self.asked_of_nix))
        (programs / "nix-store").chmod(0o755)
        self.enterContext(mock.patch.dict(os.environ, {"PATH": f"{programs}:{os.environ['PATH']}"}))
        self.start(prefetch=PrefetchConfig(spread_secs=0.0, min_free=0.0))
        self.publish()
        self.until(lambda: self.is_asked_for(self.closure), "what is signed is fetched before its turn")

    def is_asked_for(self, closure: str) -> bool:
        return closure in self.asked_of_nix.read_text()

    def manifest(self, release: Release, **changes: Any) -> dict[str, Any]:
        at = datetime.now(timezone.utc)
        return {**manifest_value(release.fleet, "stable", release.closures, signed_at=at), **changes}

    def assert_left_alone(self, release: Release, *closures: str, manifest: Signed | None = None) -> None:
        """Serve the release, or another manifest under its name; what it names for this host is never asked for."""
        path = rollout_path(release.rollout_id("stable"))
        if manifest is not None:
            self.liar.serve(path, manifest.raw, manifest.signature)
        refused = self.life.counted("verification_failures")
        self.liar.publish(release)
        self.until(lambda: self.life.counted("verification_failures") > refused, "it is refused")
        for closure in (release.closures[MACHINE], *closures):
            self.assertFalse(self.is_asked_for(closure), closure)

    def test_what_ci_did_not_sign(self) -> None:
        evil = closure_name("nixos-system-evil")
        with self.attempt("no signature"):
            release = self.new_release()
            manifest = release.rollout("stable")
            self.assert_left_alone(release, manifest=Signed(manifest.raw, bytes(64)))
        with self.attempt("another's signature over another closure"):
            release = self.new_release()
            value = self.manifest(release)
            value["hostSet"] = [{**entry, "targetClosure": evil} for entry in value["hostSet"]]
            self.assert_left_alone(release, evil, manifest=CiSigner().sign(value))
        self.assert_honest()

    def test_what_ci_signed_for_others(self) -> None:
        with self.attempt("a manifest of another rollout"):
            former = self.new_release()
            release = self.new_release()
            self.assert_left_alone(release, former.closures[MACHINE], manifest=former.rollout("stable"))
        with self.attempt("a manifest of another channel"):
            release = self.new_release()
            self.assert_left_alone(release, manifest=release.rollout("edge"))
        with self.attempt("a manifest that names this host twice"):
            release = self.new_release()
            value = self.manifest(release)
            own = next(entry for entry in value["hostSet"] if entry["hostname"] == MACHINE)
            value["hostSet"] = [*value["hostSet"], {**own, "targetClosure": closure_name("second")}]
            self.serve_signed(release, value)
        with self.attempt("a manifest that does not name this host"):
            release = self.new_release()
            value = self.manifest(release)
            value["hostSet"] = [entry for entry in value["hostSet"] if entry["hostname"] != MACHINE]
            self.serve_signed(release, value)
        self.assert_honest()

    def serve_signed(self, release: Release, value: dict[str, Any]) -> None:
        """A manifest that verifies and gives this host nothing."""
        manifest = self.ci.sign(value)
        path = rollout_path(release.rollout_id("stable"))
        self.liar.serve(path, manifest.raw, manifest.signature)
        self.liar.publish(release)
        self.until(lambda: self.life.status().get("signed_release") is None, "nothing is signed for this host")
        self.assertFalse(self.is_asked_for(release.closures[MACHINE]))
        self.assertFalse(self.is_asked_for(closure_name("second")))

    def test_what_is_not_of_this_moment(self) -> None:
        with self.attempt("signed too long ago"):
            self.assert_left_alone(self.new_release(signed_at=ago(62)))
        with self.attempt("signed in the future"):
            self.assert_left_alone(self.new_release(signed_at=now() + minutes(5)))
        with self.attempt("an older one than is known"):
            self.assert_left_alone(self.new_release(signed_at=ago(5)))
        self.assert_honest()

    def test_what_is_older_than_what_was_accepted_in_another_channel(self) -> None:
        """The manifest of this host's channel verifies; a Dispatch for it would be refused."""
        older = self.new_release(signed_at=ago(1))
        newest = self.new_release(hosts={**HOSTS, MACHINE: "edge"})
        self.liar.publish(newest)
        self.until(lambda: self.is_asked_for(newest.closures[MACHINE]), "it is next")
        self.liar.dispatch(newest.rollout_id("edge"), newest.closures[MACHINE])
        self.until(lambda: self.life.switches, "it is accepted")
        with self.attempt("back to the former channel"):
            self.assert_left_alone(older)

    def assert_honest(self) -> None:
        """What CI signs next is fetched before its turn, as ever."""
        self.publish()
        self.until(lambda: self.is_asked_for(self.closure), "an honest release is fetched")


if __name__ == "__main__":
    unittest.main()
