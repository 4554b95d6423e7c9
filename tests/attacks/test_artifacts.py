"""Artifacts that CI did not sign for this host, this rollout or this moment: refused or kept, never acted upon."""

from __future__ import annotations

import base64
import json
import unittest
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from tests.attacks.case import AttackCase
from tests.attacks.host import MACHINE
from tests.attacks.liar import FLEET, ago, minutes, rollout_path
from tests.support.behaviours import Reply
from tests.support.signing import CiSigner, Release, Signed, closure_name, manifest_value
from tests.support.tls import now


class Artifacts(AttackCase):
    def order(self) -> None:
        """The order that the artifacts would allow if they were what they seem."""
        self.liar.dispatch(self.rollout_id, self.closure)

    def manifest(self, **changes: Any) -> dict[str, Any]:
        # To the microsecond, as releases are: a fleet that was signed later than a manifest serves it.
        at = datetime.now(timezone.utc)
        value = manifest_value(self.release.fleet, "stable", self.release.closures, signed_at=at)
        return {**value, **changes}

    def serve(self, signed: Signed, path: str | None = None) -> None:
        self.liar.serve(path or self.rollout, signed.raw, signed.signature)

    def test_closure_not_in_the_manifest(self) -> None:
        self.start()
        former = self.publish().closures[MACHINE]
        self.publish()
        wrong = {
            "made up": closure_name("nixos-system-evil"),
            "of another host in the manifest": self.release.closures["web-02"],
            "of a host on another channel": self.release.closures["db-01"],
            "of a former release": former,
            "a longer name": self.closure + "-and-more",
            "a part of the name": self.closure[:-1],
        }
        for name, closure in wrong.items():
            with self.attempt(name):
                self.assert_refused("closure_mismatch", lambda c=closure: self.liar.dispatch(self.rollout_id, c))
        self.assert_only_delayed()

    def test_manifest_for_another_host(self) -> None:
        self.start()
        self.publish()
        own = {"hostname": MACHINE, "waveIndex": 0, "targetClosure": self.closure}
        others = [e for e in self.manifest()["hostSet"] if e["hostname"] != MACHINE]
        with self.attempt("without this host"):
            self.serve(self.ci.sign(self.manifest(hostSet=others)))
            self.assert_refused("host_not_in_manifest", self.order)
        for name in ("WEB-01", "web-01.", "web-011", "agent-web-01"):
            with self.attempt(f"with {name}"):
                self.publish()
                self.serve(self.ci.sign(self.manifest(hostSet=[{**own, "hostname": name}])))
                self.assert_refused("host_not_in_manifest", self.order)
        with self.attempt("that names it twice"):
            self.publish()
            twice = [{**own, "targetClosure": self.closure}, {**own, "targetClosure": closure_name("other")}]
            self.serve(self.ci.sign(self.manifest(hostSet=twice)))
            self.assert_refused("duplicate_host", self.order)
        with self.attempt("an order for another host"):
            self.assert_refused("host", lambda: self.liar.dispatch(self.rollout_id, self.closure, hostname="web-02"))
        self.assert_only_delayed()

    def test_manifest_for_another_channel(self) -> None:
        self.start()
        self.publish()
        edge = self.release.rollout_id("edge")
        with self.attempt("an order on a channel that this host is not on"):
            self.assert_refused("host_not_in_manifest", lambda: self.liar.dispatch(edge, self.closure))
        with self.attempt("another channel's manifest under this channel's name"):
            self.publish()
            self.serve(self.release.rollout("edge"))
            self.assert_refused("rollout_id", self.order)
        with self.attempt("this channel's manifest under another channel's name"):
            self.publish()
            edge = self.release.rollout_id("edge")
            self.serve(self.release.rollout("stable"), rollout_path(edge))
            self.assert_refused("rollout_id", lambda: self.liar.dispatch(edge, self.closure))
        self.assert_only_delayed()

    def test_manifest_for_another_rollout_id(self) -> None:
        self.start()
        former = self.publish()
        with self.attempt("the former rollout's under the new name"):
            self.publish()
            self.serve(former.rollout("stable"))
            self.assert_refused("rollout_id", lambda: self.liar.dispatch(self.rollout_id, former.closures[MACHINE]))
        with self.attempt("a ref that is the beginning of another"):
            short = self.rollout_id[:-1]
            self.serve(self.release.rollout("stable"), rollout_path(short))
            self.assert_refused("rollout_id", lambda: self.liar.dispatch(short, self.closure))
        self.assert_only_delayed()

    def test_unsigned(self) -> None:
        self.start()
        for name, signature in (("empty", b""), ("zeros", bytes(64)), ("text", b"unsigned"), ("too long", bytes(65))):
            with self.attempt(name):
                self.publish()
                self.liar.serve(self.rollout, None, signature)
                self.assert_refused("bad_signature", self.order)
        with self.attempt("the fleet's"):
            self.publish()
            self.liar.serve(FLEET, None, bytes(64))
            self.assert_refused("bad_signature", self.order)
        with self.attempt("no signature at all"):
            self.publish()
            self.liar.serve(self.rollout, None, Reply(404))
            self.assert_kept("status_404", self.order)
        with self.attempt("an answer of 304 to who asked without a tag"):
            self.publish()
            self.liar.serve(self.rollout, Reply(304), Reply(304))
            self.assert_kept("status_304", self.order)
        self.assert_only_delayed()

    def test_wrongly_signed(self) -> None:
        self.start()
        mallory = CiSigner()

        def forged(release: Release) -> tuple[bytes | None, bytes | None]:
            value = release.rollout("stable").value
            value["hostSet"][1]["targetClosure"] = closure_name("nixos-system-evil")
            return mallory.sign(value).raw, release.rollout("stable").signature

        wrong: dict[str, Callable[[Release], tuple[bytes | None, bytes | None]]] = {
            "by somebody else's key": lambda r: (None, mallory.sign(r.rollout("stable").value).signature),
            "by an ecdsa key": lambda r: (None, CiSigner("ecdsa-p256").sign(r.rollout("stable").value).signature),
            "the fleet's signature": lambda r: (None, r.fleet.signature),
            "of the other channel": lambda r: (None, r.rollout("edge").signature),
            "in hex": lambda r: (None, r.rollout("stable").signature.hex().encode()),
            "in base64": lambda r: (None, base64.b64encode(r.rollout("stable").signature)),
            "one bit flipped": lambda r: (
                None,
                bytes([r.rollout("stable").signature[0] ^ 1]) + r.rollout("stable").signature[1:],
            ),
            "changed after signing": forged,
            "a member added after signing": lambda r: (b'{"a":1,' + r.rollout("stable").raw[1:], None),
        }
        for name, make in wrong.items():
            with self.attempt(name):
                self.publish()
                self.liar.serve(self.rollout, *make(self.release))
                self.assert_refused("bad_signature", self.order)
        with self.attempt("the fleet, changed after signing"):
            self.publish()
            value = self.release.fleet.value
            value["rolloutPolicies"]["all-at-once"]["onHealthFailure"] = "halt"
            self.liar.serve(FLEET, json.dumps(value).encode())
            self.assert_refused("bad_signature", self.order)
        self.assert_only_delayed()

    def test_signed_by_a_retired_key(self) -> None:
        old = CiSigner()
        trust = self.ci.trust_value()
        trust["ciReleaseKey"] |= {"successor": old.public, "retireAt": "2020-01-01T00:00:00Z"}
        self.host.trust_path.write_text(json.dumps(trust))
        self.start()
        with self.attempt("a successor whose time is over"):
            self.publish()
            self.serve(old.sign(self.manifest()))
            self.assert_refused("bad_signature", self.order)
        with self.attempt("a key taken out of the trust file while the agent runs"):
            trust["ciReleaseKey"] = {"current": self.ci.public, "previous": old.public}
            self.host.trust_path.write_text(json.dumps(trust))
            self.start()
            self.publish()
            self.serve(old.sign(self.manifest()))
            cached = self.host.state_dir / "rollouts" / f"{self.rollout_id}.sig"
            self.until(cached.exists, "it was verified under the previous key")
            self.host.trust_path.write_bytes(self.ci.trust_bytes())
            self.assert_refused("bad_signature", self.order)
        self.assert_only_delayed()

    def test_signed_by_a_rejected_key(self) -> None:
        trust = self.ci.trust_value()
        trust["ciReleaseKey"]["rejectBefore"] = now().strftime("%Y-%m-%dT%H:%M:%SZ")
        self.host.trust_path.write_text(json.dumps(trust))
        self.start()
        with self.attempt("a whole release from before the compromise"):
            self.publish(signed_at=now() - timedelta(seconds=2))
            self.assert_kept("rejected_before", self.order)
        with self.attempt("a new fleet, and a manifest from before the compromise"):
            self.publish()
            stamp = {
                **self.manifest()["meta"],
                "signedAt": (now() - timedelta(seconds=5)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
            self.serve(self.ci.sign(self.manifest(meta=stamp)))
            self.assert_kept("rejected_before", self.order)
        self.assert_only_delayed()

    def test_stale(self) -> None:
        self.start()
        with self.attempt("a whole release, one hour and more old"):
            self.publish(signed_at=ago(62))
            self.assert_kept("stale", self.order)
        with self.attempt("a fresh fleet with an old manifest"):
            self.publish()
            stamp = {**self.manifest()["meta"], "signedAt": ago(62).strftime("%Y-%m-%dT%H:%M:%SZ")}
            self.serve(self.ci.sign(self.manifest(meta=stamp)))
            self.assert_kept("stale", self.order)
        self.assert_only_delayed()

    def test_future_dated(self) -> None:
        self.start()
        for ahead in (1.5, 60, 525_600):
            with self.attempt(f"{ahead} minutes ahead"):
                self.publish(signed_at=now() + minutes(ahead))
                self.assert_kept("future_dated", self.order)
        self.assert_only_delayed()

    def test_older_than_the_last_accepted(self) -> None:
        """Inside its window, where freshness alone would let a replay pass, and in the next process too."""
        self.start()
        older, newer = self.new_release(signed_at=ago(5)), self.new_release(signed_at=ago(1))
        self.liar.publish(older)
        self.liar.publish(newer)
        self.until(lambda: (self.host.state_dir / "trust-marks.json").exists(), "the newer release is known")
        replayed = older.rollout_id("stable")

        def replay() -> None:
            self.liar.dispatch(replayed, older.closures[MACHINE])

        with self.attempt("the manifest alone"):
            self.assert_kept("older_than_accepted", replay)
        with self.attempt("fleet and manifest"):
            self.liar.publish(older)
            self.assert_kept("older_than_accepted", replay)
        with self.attempt("in the next process"):
            self.start()
            self.until(lambda: self.life.status().get("dispatch"), "what was kept is tried again")
            self.assert_kept("older_than_accepted", replay)
        with self.attempt("in a process that lost its marks"):
            self.host.stop()
            (self.host.state_dir / "trust-marks.json").unlink()
            self.start()
            self.assert_kept("older_than_accepted", replay)
        with self.attempt("in a process whose marks are damaged"):
            self.host.stop()
            (self.host.state_dir / "trust-marks.json").write_bytes(b"{")
            self.start()
            self.assert_kept("older_than_accepted", replay)
        self.assert_only_delayed()

    def test_a_clock_that_was_set_back(self) -> None:
        """What is already known proves that it is the clock, and a stale release does not become fresh by it."""
        self.host.state_dir.joinpath("trust-marks.json").write_text(
            json.dumps(
                {"schemaVersion": 1, "fleet": (now() + minutes(90)).strftime("%Y-%m-%dT%H:%M:%SZ"), "channels": {}}
            )
        )
        self.start()
        with self.attempt("signed at the time that the clock shows"):
            self.publish()
            self.assert_kept("clock_behind", self.order)
        with self.attempt("signed after what is known"):
            self.publish(signed_at=now() + minutes(91))
            self.assert_kept("clock_behind", self.order)
        self.assert_untouched()

    def test_manifest_pinned_to_another_fleet(self) -> None:
        self.start()
        with self.attempt("a hash of nothing"):
            self.release = self.new_release()
            # The lie comes first: an agent that has seen the honest manifest already needs no other.
            self.serve(self.ci.sign(self.manifest(fleetResolvedHash="0" * 64)))
            self.liar.artifacts[FLEET] = self.release.fleet
            self.assert_kept("fleet_pin", self.order)
        with self.attempt("a fleet signed at the same moment"):
            at = datetime.now(timezone.utc)
            release, other = self.new_release(signed_at=at), self.new_release(signed_at=at, soak_minutes=0)
            self.liar.publish(other)
            self.liar.publish(release)
            self.liar.artifacts[FLEET] = other.fleet
            self.release = release
            self.assert_kept("fleet_pin", self.order)
        with self.attempt("a fleet signed later that has this host on another channel"):
            self.publish()
            self.liar.artifacts[FLEET] = self.new_release(
                hosts={MACHINE: "edge", "web-02": "stable"}, signed_at=now() + timedelta(seconds=10)
            ).fleet
            self.assert_kept("fleet_pin", self.order)
        with self.attempt("a fleet signed later that does not have this host"):
            self.publish()
            self.liar.artifacts[FLEET] = self.new_release(
                hosts={"web-02": "stable"}, signed_at=now() + timedelta(seconds=20)
            ).fleet
            self.assert_kept("fleet_pin", self.order)
        self.assert_untouched()
        # The last lie was signed ahead of time: what is honest must not be older.
        self.publish(signed_at=now() + timedelta(seconds=30))
        self.order()
        self.until(lambda: "DispatchAck" in self.liar.kinds(self.rollout_id), "an honest order is acknowledged")

    def test_terms_that_the_fleet_does_not_have(self) -> None:
        self.start()
        cases: dict[str, dict[str, Any]] = {
            "policy_unknown": {"rolloutPolicies": {}},
            "wave_not_in_fleet": {"waves": {}},
            "channel_not_in_fleet": {"channels": {}},
        }
        for label, change in cases.items():
            with self.attempt(label):
                self.publish()
                fleet = self.ci.sign({**self.release.fleet.value, **change})
                self.liar.artifacts[FLEET] = fleet
                self.serve(self.ci.sign(self.manifest(fleetResolvedHash=fleet.hash)))
                self.assert_kept(label, self.order)
        self.assert_only_delayed()

    def test_tampered_cache_on_disk(self) -> None:
        """What somebody writes into the cache is worth no more than what comes over the wire."""
        evil = closure_name("nixos-system-evil")
        for name in ("manifest", "signature", "fleet", "swapped", "planted"):
            with self.attempt(name):
                self.start()
                self.publish()
                rollouts, fleet = self.host.state_dir / "rollouts", self.host.state_dir / "fleet"
                body = rollouts / f"{self.rollout_id}.json"
                self.until(body.with_suffix(".sig").exists, "the manifest is cached")
                self.host.stop()
                target = evil
                if name == "manifest":
                    body.write_bytes(body.read_bytes().replace(self.closure.encode(), evil.encode()))
                elif name == "signature":
                    body.with_suffix(".sig").write_bytes(bytes(64))
                    target = self.closure
                elif name == "fleet":
                    path = fleet / "fleet.resolved.json"
                    path.write_bytes(path.read_bytes().replace(b"rollback-and-halt", b"halt"))
                    target = self.closure
                elif name == "swapped":
                    edge = rollouts / f"{self.release.rollout_id('edge')}.json"
                    body.write_bytes(edge.read_bytes())
                    body.with_suffix(".sig").write_bytes(edge.with_suffix(".sig").read_bytes())
                    target = self.release.closures["db-01"]
                else:
                    planted = CiSigner().sign(self.manifest(channelRef="bad"))
                    (rollouts / "stable@bad.json").write_bytes(planted.raw)
                    (rollouts / "stable@bad.sig").write_bytes(planted.signature)
                for place in (FLEET, self.rollout, rollout_path("stable@bad")):
                    self.liar.serve(place, Reply(304), Reply(304))
                life = self.start()
                rollout_id = "stable@bad" if name == "planted" else self.rollout_id
                self.assert_kept("status_304", lambda i=rollout_id, t=target: self.liar.dispatch(i, t))
                self.assertGreaterEqual(life.counted("verification_failures"), 1)
                self.assertTrue(life.said("is not used"))
                # Where the order itself is what CI wants, it would rightly be taken once the lies are over.
                self.host.stop()
                (self.host.state_dir / "pending-dispatch.json").unlink()
        self.start()
        self.assert_only_delayed()


if __name__ == "__main__":
    unittest.main()
