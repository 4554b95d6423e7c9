"""Events as evidence: whoever has the host's public key can check them, and a log that was changed is reported."""

from __future__ import annotations

import contextlib
import io
import json
import unittest
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from nixfleet_agent.cli import main
from tests.attacks.case import AttackCase
from tests.support.tls import new_host_key


class Audit(AttackCase):
    """A whole soak arrives at the control plane, whose copy and the host's log are then compared and tampered with."""

    def setUp(self) -> None:
        super().setUp()
        self.publish(soak_minutes=0)
        self.host.run_system(self.closure)
        self.liar.snapshots = [self.liar.snapshot(self.rollout_id, self.closure, "Soaking")]
        self.host.health_checks.write_text(
            json.dumps({"web": {"kind": "exec", "command": ["true"], "intervalSeconds": 0.1}})
        )
        self.start()
        self.until(lambda: "Converged" in self.liar.kinds(self.rollout_id), "the rollout converges")
        self.until(lambda: not list((self.host.state_dir / "outbound-queue").glob("*.json")), "all is delivered")
        self.host.stop()
        sent = json.loads(json.dumps(self.liar.events))
        #: Without repeats, which a replay may have brought.
        self.envelopes = [envelope for place, envelope in enumerate(sent) if envelope not in sent[:place]]
        self.assertEqual(len(self.envelopes), len({envelope["event"]["seq"] for envelope in self.envelopes}))

    def verify(self, envelopes: Any) -> tuple[int, list[dict[str, str]]]:
        """`history --verify` over these events: exit code, and the verdicts."""
        path = self.folder / "events.json"
        path.write_text(json.dumps(envelopes))
        code, text = self.host.command("history", "--verify", str(path), "--json")
        return code, json.loads(text)

    def chain(self, envelopes: Any) -> list[str]:
        """What `history --verify` says of the chain of each, with nothing but the host's public key."""
        path, key = self.folder / "events.json", self.folder / "host.pub"
        path.write_text(json.dumps(envelopes))
        key.write_text(f"{self.host.key.public_openssh} root@web-01\n")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = main(["history", "--verify", str(path), "--public-key", str(key), "--json"])
        verdicts = json.loads(out.getvalue())
        self.assertEqual(code, 0 if all(v["chain"] in ("good", "missing") for v in verdicts) else 1)
        self.assertEqual({(v["signature"], v["log"]) for v in verdicts}, {("good", "absent")})
        return [verdict["chain"] for verdict in verdicts]

    def test_a_whole_rollout_is_proved_with_the_public_key_alone_in_any_order_and_sent_twice(self) -> None:
        count = len(self.envelopes)
        self.assertEqual(self.chain(self.envelopes), ["good"] * count)
        self.assertEqual(self.chain([*reversed(self.envelopes), *self.envelopes]), ["good"] * 2 * count)

    def test_an_event_that_is_left_out_is_a_gap(self) -> None:
        count = len(self.envelopes)
        for missing in range(count - 1):
            with self.attempt(f"without event {missing}"):
                found = self.chain(self.envelopes[:missing] + self.envelopes[missing + 1 :])
                self.assertEqual(found, ["good"] * missing + ["gap"] + ["good"] * (count - 2 - missing))

    def test_an_event_of_another_rollout_or_host_is_none_of_this_one(self) -> None:
        for field, value in (("rolloutId", "stable@ffff"), ("hostname", "web-02")):
            with self.attempt(field):
                moved = [{**envelope, field: value} for envelope in self.envelopes]
                self.assertEqual(set(self.chain(moved)), {"bad"})
        with self.attempt("one among its own"):
            one = {**self.envelopes[1], "rolloutId": "stable@ffff"}
            self.assertEqual(self.chain([one, *self.envelopes])[:2], ["bad", "good"])

    def test_an_event_whose_link_is_taken_away_or_changed(self) -> None:
        with self.attempt("taken away"):
            bare = {k: v for k, v in self.envelopes[2].items() if k not in ("previous", "chainSignature")}
            found = self.chain([*self.envelopes[:2], bare, *self.envelopes[3:]])
            self.assertEqual((found[2], set(found[:2] + found[3:])), ("stripped", {"good"}))
        for change in (
            {"previous": "0" * 64},
            {"previous": 7},
            {"chainSignature": "00" * 64},
            {"chainSignature": None},
        ):
            with self.attempt(change):
                found = self.chain([*self.envelopes[:2], {**self.envelopes[2], **change}, *self.envelopes[3:]])
                self.assertEqual(found[2], "bad")

    def test_what_the_host_itself_gives_out_is_what_it_sent(self) -> None:
        code, text = self.host.command("history", self.rollout_id, "--envelopes")
        self.assertEqual((code, json.loads(text)), (0, self.envelopes))

    def test_anyone_with_the_public_key_can_check_every_event(self) -> None:
        public = Ed25519PublicKey.from_public_bytes(self.host.key.public_raw)
        self.assertGreaterEqual(len(self.envelopes), 4)
        for envelope in self.envelopes:
            signature = bytes.fromhex(envelope["signature"])
            public.verify(signature, rfc8785.dumps(envelope["event"]))
            with self.assertRaises(InvalidSignature):
                public.verify(signature, rfc8785.dumps({**envelope["event"], "seq": 99}))

    def test_genuine_events_are_called_genuine(self) -> None:
        code, verdicts = self.verify(self.envelopes)
        self.assertEqual(code, 0)
        self.assertEqual({(v["signature"], v["log"]) for v in verdicts}, {("good", "same")})

    def test_events_that_this_host_did_not_sign(self) -> None:
        key = new_host_key()
        first = self.envelopes[0]
        changed = {**first, "event": {**first["event"], "seq": 2**53 - 1}}
        forged = {**first, "signature": key.sign(rfc8785.dumps(first["event"])).hex()}
        cases = {
            "changed after signing": (changed, "bad"),
            "signed by another key": (forged, "bad"),
            "no signature": ({k: v for k, v in first.items() if k != "signature"}, "missing"),
            "no hex": ({**first, "signature": "zz" * 64}, "bad"),
            "the next one's signature": ({**first, "signature": self.envelopes[1]["signature"]}, "bad"),
            "no event": ({**first, "event": None}, "bad"),
            "an event without a canonical form": ({**first, "event": {"seq": 2**60}}, "bad"),
            "an event under another rollout": ({**first, "rolloutId": "stable@abc"}, "good"),
        }
        for name, (envelope, expected) in cases.items():
            with self.attempt(name):
                if name == "an event without a canonical form":
                    code, text = self.host.command("history", "--verify", str(self.written([envelope])))
                    self.assertNotEqual(code, 0, text)
                    continue
                code, verdicts = self.verify([*self.envelopes[1:], envelope])
                self.assertEqual(verdicts[-1]["signature"], expected)
                if expected == "good":
                    self.assertEqual(verdicts[-1]["log"], "absent")
                else:
                    self.assertEqual(code, 1)

    def test_a_tampered_log_is_reported(self) -> None:
        """Who changes the host's files can't sign what they say: the control plane's copies differ from them."""
        path = self.file_of(self.envelopes[-1]["event"]["seq"])
        good = path.read_bytes()
        body = json.loads(good)
        changes: dict[str, bytes] = {
            "another content": json.dumps({**body, "event": {**body["event"], "extra": 1}}).encode(),
            "another seq": json.dumps({**body, "seq": 1}).encode(),
            "another rollout": json.dumps({**body, "rolloutId": "stable@abc"}).encode(),
            "another kind": json.dumps({**body, "event": {**body["event"], "kind": "Failed"}}).encode(),
            "cut short": good[:-10],
            "not UTF-8": good.replace(b"Converged", b"Conv\xfferged"),
            "keys twice": good[:-1] + b',"event":{}}',
            "empty": b"",
        }
        for name, raw in changes.items():
            with self.attempt(name):
                path.write_bytes(raw)
                code, verdicts = self.verify(self.envelopes)
                self.assertIn(verdicts[-1]["log"], ("differs", "absent"))
                code, text = self.host.command("history", self.rollout_id)
                self.assertEqual(code, 0)
                if name == "another content":
                    self.assertEqual(self.verify(self.envelopes)[0], 1)
                elif name not in ("another kind", "keys twice"):
                    self.assertIn("unreadable: ", text)
                else:
                    self.assertIn("refused", text)
                path.write_bytes(good)

    def test_a_tampered_log_does_not_end_the_agent(self) -> None:
        for name, raw in {"cut short": b'{"seq":', "empty": b"", "binary": bytes(range(256))}.items():
            with self.attempt(name):
                path = self.file_of(self.envelopes[-1]["event"]["seq"])
                good = path.read_bytes()
                path.write_bytes(raw)
                self.start()
                self.until(lambda: self.life.status().get("rollouts"), "it is up")
                self.assert_alive()
                self.host.stop()
                for found in self.host.state_dir.rglob(path.name + "*"):
                    found.unlink()
                path.write_bytes(good)

    def test_an_event_that_can_not_be_signed_holds_up_no_other(self) -> None:
        """A number that JSON readers disagree on has no canonical form: the file is set aside, the rest goes on."""
        path = self.file_of(self.envelopes[-1]["event"]["seq"])
        body = json.loads(path.read_bytes())
        queue = self.host.state_dir / "outbound-queue"
        for name, value in {"a huge number": 2**60, "no number": float("nan")}.items():
            with self.attempt(name):
                raw = json.dumps({**body, "event": {**body["event"], "extra": value}})
                (queue / path.name).write_text(raw)
                self.start()
                corrupt = self.host.state_dir / "outbound-corrupt"
                self.until(lambda c=corrupt: list(c.glob("*")), "it is set aside")
                self.assert_alive()
                self.host.stop()
                for found in corrupt.glob("*"):
                    found.unlink()
        self.host.run_system(self.closure)
        self.start()
        self.assert_honest_order_is_taken()

    def written(self, envelopes: Any) -> Path:
        path = self.folder / "events.json"
        path.write_text(json.dumps(envelopes))
        return path

    def file_of(self, seq: int) -> Path:
        (found,) = (self.host.state_dir / "outbound-sent").rglob(f"{seq:020}-*.json")
        return found


if __name__ == "__main__":
    unittest.main()
