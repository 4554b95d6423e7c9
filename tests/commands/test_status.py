"""What status says, with and without an agent that runs."""

from __future__ import annotations

import json
import os
import tarfile
import unittest
from pathlib import Path
from unittest import mock

from nixfleet_agent.runtime.state_dir import StateDir
from tests.commands.host_case import MACHINE, OLD
from tests.commands.journal_case import ROLLOUT, Case
from tests.support.tls import DAY, now


class Status(Case):
    def test_from_files_while_the_agent_is_down(self) -> None:
        accepted = self.accept(ROLLOUT)
        self.log(accepted, *self.activated(accepted), delivered=False)
        self.call("hold", "--reason", "disk swap", "--until", "2h")
        ran = self.call("status")
        self.assertEqual(ran.code, 0)
        for part in (
            "not running",
            f"runs: {'':<8} {OLD}",
            f"{ROLLOUT}: Soaking",
            "disk swap",
            "3 events",
            "valid until",
        ):
            self.assertIn(part, ran.out)
        snapshot = self.call("status", "--json").json
        self.assertEqual((snapshot["running"], snapshot["queue"]["queued"]), (False, 3))

    def test_an_agent_that_starts_or_hangs_is_not_said_to_be_down(self) -> None:
        held = StateDir.take(self.state)
        self.addCleanup(held.release_lock)
        self.assertRegex(
            self.call("status").out, rf"(?m)^agent: +pid {os.getpid()} starts, or hangs \(no agent answers"
        )
        self.assertIn(f"(pid {os.getpid()}) runs and does not answer", self.call("why").out.replace("\n", " "))
        self.assertEqual(self.call("status", "--json").json["holder_pid"], os.getpid())

    def test_probes_of_a_rollout_that_is_over_are_not_taken_for_those_of_what_runs(self) -> None:
        probe = {"status": "fail", "mode": "enforce", "last_observed_at": None, "failure_reason": "status 500"}
        accepted = self.accept(ROLLOUT)
        self.log(accepted, *self.converged(accepted))
        snapshot = self.call("status", "--json").json
        snapshot["rollouts"][0]["probes"] = {"web": probe}
        for state, said in (("Converged", True), ("Soaking", False)):
            snapshot["rollouts"][0]["state"] = state
            with self.agent({"status": lambda _: dict(snapshot)}):
                out = self.call("status").out
            self.assertEqual(f"The last results while {ROLLOUT} soaked:\nPROBE " in out, said, out)

    def test_what_the_running_agent_says(self) -> None:
        snapshot = {
            "agent": {"version": "9.9", "pid": 42}, "host": {"active_id": None}, "rollouts": [], "drift": OLD,
            "queue": {"queued": 7, "rejected": 1, "oldest": None}, "silent_workers": ["longpoll"],
            "refusals": [{"at": "2026-05-16T01:00:00Z", "outcome": "refused", "label": "bad_signature",
                          "reason": "nobody\x1b[2J signed", "rollout_id": "edge@ff", "target_closure": None},
                         {"at": "2026-05-16T01:00:01Z", "outcome": "kept", "label": "stale", "reason": "too old",
                          "rollout_id": "edge@aa", "target_closure": None}],
        }  # fmt: skip
        with self.agent({"status": lambda _: dict(snapshot)}):
            ran = self.call("status")
            why = self.call("why").out
        for part in (
            "running, version 9.9, pid 42",
            "7 events, 1 rejected",
            "worker unresponsive: longpoll",
            "nobody\\x1b[2J signed",
        ):
            self.assertIn(part, ran.out)
        self.assertNotIn("edge@aa", ran.out, "it was taken since, or `kept` shows it")
        self.assertIn("has accepted no rollout yet", why)

    def test_a_certificate_that_expired_says_since_when(self) -> None:
        self.authority.write_client(
            self.certificate, self.key, MACHINE, not_before=now() - 2 * DAY, not_after=now() - DAY
        )
        self.assertRegex(self.call("status").out, r"(?m)^certificate: +expired since ")
        self.assertIn("has expired: run `nixfleet-agent check`", self.call("why").out.replace("\n", " "))

    def test_a_trust_file_that_can_not_be_used_is_seen_with_the_agent_down_too(self) -> None:
        self.assertNotIn("\ntrust:", self.call("status").out)
        self.trust.write_text("{")
        self.assertRegex(
            self.call("status").out, r"(?m)^trust: +nothing can be verified: the trust file .* is not JSON"
        )
        self.assertIn("no release is taken", self.call("why").out.replace("\n", " "))

    def test_a_rollback_that_does_not_get_on_is_told_in_words(self) -> None:
        for rollback, said in (
            ({"given_up": True}, "given up by an operator"),
            ({"drift": OLD}, f"stands by: an operator has switched this host to {OLD}"),
            ({"failures": 2, "reason": "fire: no"}, "failures in a row: 2: fire: no"),
            (
                {"failures": 2, "reason": "fire: no", "next_try_at": "2126-05-16T01:00:00Z"},
                r"failures in a row: 2, next try in \d+ days: fire: no",
            ),
        ):
            snapshot = {"rollouts": [], "rollback": {"rollout_id": ROLLOUT, **rollback}}
            with self.subTest(rollback), self.agent({"status": lambda _, s=snapshot: dict(s)}):
                self.assertRegex(self.call("status").out, rf"(?m)^rollback: +{said}$")

    def test_support_lists_files_that_a_running_agent_moves_meanwhile(self) -> None:
        accepted = self.accept(ROLLOUT)
        self.log(accepted, *self.activated(accepted), delivered=False)
        really = Path.lstat

        def moved(path: Path) -> os.stat_result:
            if path.name.endswith("-DispatchAck.json"):
                raise FileNotFoundError(2, "No such file or directory", str(path))
            return really(path)

        archive = self.folder / "s.tar.gz"
        with mock.patch.object(Path, "lstat", moved):
            self.assertEqual(self.call("support", "--output", str(archive)).code, 0)
        with tarfile.open(archive) as tar:
            (name,) = [name for name in tar.getnames() if name.endswith("/files.json")]
            file = tar.extractfile(name)
            assert file is not None
            listed = {item["path"] for item in json.loads(file.read())}
        self.assertTrue(any(path.endswith("-ActivationStarted.json") for path in listed), listed)

    def test_support_has_no_secret(self) -> None:
        accepted = self.accept(ROLLOUT)
        self.log(accepted, *self.converged(accepted))
        token = self.folder / "token"
        token.write_text("a-nonce-that-nobody-may-see")
        self.settings["bootstrap_token_file"] = token
        archive = self.folder / "s.tar.gz"
        with self.agent({"status": lambda _: {"rollouts": []}, "log": lambda _: ["one", "two"]}):
            self.assertEqual(self.call("support", "--output", str(archive)).code, 0)
        self.assertEqual(archive.stat().st_mode & 0o777, 0o600)
        contents = {}
        with tarfile.open(archive) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                contents[member.name.partition("/")[2]] = file.read()
        self.assertEqual(contents["log-of-the-agent.txt"], b"one\ntwo")
        self.assertIn(f"history/{ROLLOUT}.json", contents)
        self.assertIn("status.json", contents)
        everything = b"".join(contents.values())
        for secret in (token.read_bytes(), b"PRIVATE KEY", (self.folder / "key").read_bytes()[60:90]):
            self.assertNotIn(secret, everything)


if __name__ == "__main__":
    unittest.main()
