"""Words of the control plane on their way to logs, terminals and metrics: escaped, one line each, and cut."""

from __future__ import annotations

import json
import unittest
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from nixfleet_agent.config.model import LoggingConfig
from nixfleet_agent.runtime.rollout.inputs import HostEvent
from nixfleet_agent.state_machine import SwitchMethod
from nixfleet_agent.state_machine.events import LocalActivationStarted
from tests.attacks.case import AttackCase
from tests.attacks.host import MACHINE
from tests.attacks.liar import DISPATCH, EVENTS, FLEET, HEARTBEAT, RENEW
from tests.support.behaviours import Raw, Reply, refusal
from tests.support.signing import closure_name, manifest_value
from tests.support.tls import DAY, now

#: Clears the screen, sets the title, goes back over what was said, forges a line, turns text around.
EVIL = (
    "\x1b[2J\x1b]0;owned\x07\rall is well\n"
    '{"level":"info","message":"forged"}\n\x08\x9b31m\u202egnorw\u2028new line\x00\x7f'
)


class Words(AttackCase):
    def attack(self) -> None:
        """Every place where the control plane may put a word of its own."""
        self.publish()
        order = self.liar.order(self.rollout_id, self.closure)
        for key in order:
            with self.attempt(f"{key} of an order"):
                self.assert_refused("pattern", lambda k=key: self.liar.offer(json.dumps({**order, k: EVIL}).encode()))
        with self.attempt("a member's name"):
            body = (json.dumps(order)[:-1] + f", {json.dumps(EVIL)}: 1, {json.dumps(EVIL)}: 2}}").encode()
            self.assert_refused("pattern", lambda: self.liar.offer(body))
        with self.attempt("a number"):
            body = json.dumps(order).encode()[:-1] + b', "n": -\x1b[2J}'
            self.assert_refused("pattern", lambda: self.liar.offer(body))
        for path, method in ((DISPATCH, "GET"), (HEARTBEAT, "POST"), (self.rollout, "GET"), (FLEET, "GET")):
            with self.attempt(f"an error of {path}"):
                before = self.life.counted("requests", outcome="500")
                self.liar.lies[method, path] = Reply(500, EVIL.encode())
                self.until(lambda n=before: self.life.counted("requests", outcome="500") > n, f"{path} was asked")
            with self.attempt(f"a header of {path}"):
                evil = EVIL.replace("\n", "").encode("latin-1", "replace")
                self.liar.lies[method, path] = Raw(
                    b"HTTP/1.1 503 " + evil + b"\r\nRetry-After: \x1b[2J\r\nContent-Encoding: \x1b[2J\r\n\r\n"
                )
                asked = len(self.liar.asked(path))
                self.until(lambda p=path, n=asked: len(self.liar.asked(p)) > n, f"{path} was asked")
        with self.attempt("snapshots"):
            good = self.liar.snapshot(self.rollout_id, self.closure)
            self.liar.snapshots = [{**good, key: EVIL} for key in good]
            beats = len(self.liar.heartbeats)
            self.until(lambda: len(self.liar.heartbeats) > beats + 1, "heartbeats go on")
        self.signed_words()

    def signed_words(self) -> None:
        """CI signs what it is given: a name that came from elsewhere may be in there."""
        self.publish()
        base = manifest_value(self.release.fleet, "stable", self.release.closures, signed_at=now())
        entry = {"hostname": MACHINE, "waveIndex": 0, "targetClosure": EVIL}
        changes: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("closure_mismatch", "a closure", {"hostSet": [entry]}),
            ("schema", "a channel", {"channel": EVIL}),
            ("schema", "a time", {"meta": {**base["meta"], "signedAt": EVIL}}),
            ("schema", "a wave", {"hostSet": [{**entry, "waveIndex": EVIL}]}),
            ("schema", "a version", {"schemaVersion": EVIL}),
        )
        for label, name, change in changes:
            with self.attempt(f"signed: {name}"):
                # The lie is there before the fleet that names its rollout: an honest manifest that the agent has seen
                # first would make it one that is older than what was accepted.
                self.release = self.new_release()
                at = datetime.now(timezone.utc)
                honest = manifest_value(self.release.fleet, "stable", self.release.closures, signed_at=at)
                signed = self.ci.sign({**honest, **change})
                self.liar.serve(self.rollout, signed.raw, signed.signature)
                self.liar.artifacts[FLEET] = self.release.fleet
                self.assert_refused(label, lambda: self.liar.dispatch(self.rollout_id, self.closure))
        with self.attempt("signed: a policy"):
            self.publish(policy=EVIL)
            self.liar.dispatch(self.rollout_id, self.closure)
            self.until(lambda: self.kept.get("label") in ("policy_unknown", "schema"), "it is not taken")

    def assert_harmless(self, text: str, where: str) -> None:
        strange = sorted({c for c in text if not c.isprintable() and c != "\n"})
        self.assertEqual(strange, [], where)
        self.assertNotIn("\nall is well", text, where)
        self.assertFalse(
            [line for line in text.splitlines() if line.startswith('{"level":"info","message":"forged"')], where
        )

    def show(self) -> None:
        """What an operator sees of it."""
        for command in ("status", "why", "history", "history --list", "queue list", "status --json"):
            code, text = self.host.command(*command.split())
            self.assertIn(code, (0, 2), text)
            self.assert_harmless(text, command)
            self.assertLess(len(text), 64 * 1024, command)
        self.assert_harmless(self.life.exposition(), "metrics")

    def test_terminal_escapes_and_newlines(self) -> None:
        self.renewal_is_due()
        life = self.start()
        self.attack()
        self.assert_harmless(life.output(), "JSON log")
        for line in life.output().splitlines():
            self.assertIsInstance(json.loads(line), dict)
            self.assertLess(len(line), 32 * 1024)
        self.show()
        self.assert_untouched()

    def test_terminal_escapes_and_newlines_in_a_text_log(self) -> None:
        self.renewal_is_due()
        life = self.start(logging=LoggingConfig(level="debug", format="text"))

        def lines() -> list[dict[str, Any]]:
            said = life.output().splitlines()
            return [{"message": line, "reason": word} for line in said for word in reasons(line)]

        life.log = lines  # type: ignore[method-assign]
        self.attack()
        self.assert_harmless(life.output(), "text log")
        for line in life.output().splitlines():
            self.assertRegex(line, r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ |    )")
        self.assert_untouched()

    def test_words_in_answers_to_events(self) -> None:
        """Refused events keep what was said, and the queue's commands show it."""
        self.start(tuning=replace(self.host.config.tuning, drain_interval=0.1))
        self.assert_honest_order_is_taken()
        for status in (500, 404, 422):
            with self.attempt(status):
                self.publish()
                evil = refusal(status, EVIL * 20) if status == 422 else Reply(status, EVIL.encode() * 200)
                # What later events rest on is not set aside for ten minutes.
                self.liar.lies["POST", EVENTS] = lambda request, r=evil, s=status: (
                    None if s == 422 and request.json()["event"]["kind"] == "DispatchAck" else r
                )
                before = self.life.counted("requests", endpoint=EVENTS, outcome=str(status))
                self.liar.dispatch(self.rollout_id, self.closure)
                if status == 422:
                    self.until(
                        lambda: any(order.rollout_id == self.rollout_id for order in self.life.switches), "it is taken"
                    )
                    started = LocalActivationStarted(started_at=now(), switch_method=SwitchMethod.NOOP)
                    self.life.worker("longpoll")._inputs.put(HostEvent(self.rollout_id, started), lambda: None)
                self.until(
                    lambda s=status, n=before: self.life.counted("requests", endpoint=EVENTS, outcome=str(s)) > n,
                    "it is posted",
                )
                if status == 422:
                    rejected = self.host.state_dir / "outbound-rejected"
                    self.until(lambda r=rejected: list(r.glob("*.json")), "it is set aside")
                    code, text = self.host.command("queue", "show", f"{self.rollout_id}/2")
                    self.assert_harmless(text, f"queue show ({code})")
                self.show()
        self.assert_harmless(self.life.output(), "JSON log")

    def renewal_is_due(self) -> None:
        self.authority.write_client(
            self.host.cert_path, self.host.key, MACHINE, not_before=now() - 3 * DAY, not_after=now() + DAY
        )
        self.liar.standing["POST", RENEW] = Reply(400, EVIL.encode())

    def test_names_of_evil_closures_are_only_names(self) -> None:
        """The control: a well-formed name in an order reaches log and status as it is."""
        self.start()
        self.publish()
        evil = closure_name("nixos-system-evil")
        self.assert_refused("closure_mismatch", lambda: self.liar.dispatch(self.rollout_id, evil))
        self.assertIn(evil, self.host.command("status")[1])
        self.assertTrue(self.life.said(evil))


def reasons(line: str) -> list[str]:
    """The values of ``reason=`` in a line of the text log."""
    return [part.partition("=")[2] for part in line.split("  ") if part.startswith("reason=")] or [""]


if __name__ == "__main__":
    unittest.main()
