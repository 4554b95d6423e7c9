"""What an operator does: hold, release, quarantine, rollback, enroll, renew, probe; and `run` that can't start."""

from __future__ import annotations

import base64
import hashlib
import json
import signal
import subprocess
import sys
import unittest
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from nixfleet_agent.operator.quarantine import Entry, QuarantineStore
from nixfleet_agent.operator.rollback_control import RollbackControl
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.runtime.state_dir import StateDir
from nixfleet_agent.state_machine.events import LocalProbeTopologyDeclared, LocalSustainedFailureCrossed
from nixfleet_agent.state_machine.states import Policy
from tests.commands.host_case import MACHINE, NEW, OLD, HostCase
from tests.runtime.harness import until
from tests.support.behaviours import Reply, Request
from tests.support.tls import pem_of

ROLLOUT = "stable@abc123"


def gone(process: Path) -> bool:
    """Ended, or a zombie that its new parent has yet to reap."""
    try:
        return not (process / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True


class Hold(HostCase):
    def test_hold_shows_everywhere_and_release_ends_it(self) -> None:
        ran = self.call("hold", "--reason", "disk swap", "--until", "4h")
        self.assertEqual(ran.code, 0)
        self.assertIn("held until", ran.out)
        self.assertRegex(self.call("status").out, r"(?m)^hold: +until .*: disk swap$")
        self.assertIn("An operator holds back new activations", self.call("why").out)
        self.assertIn("released", self.call("release").out)
        self.assertIn("no hold in force", self.call("release").out)
        self.assertNotIn("disk swap", self.call("status").out)


class Windows(HostCase):
    def test_a_closed_window_shows_everywhere_and_run_now_lets_one_rollout_through(self) -> None:
        tomorrow = f"{self.now + timedelta(days=1):%a}"
        self.tables = f'[maintenance]\ntime_zone = "UTC"\nwindows = ["{tomorrow} 00:00-23:59"]\n'
        self.assertRegex(self.call("status").out, r"(?m)^window: +closed, opens ")
        said = " ".join(self.call("why").out.split())
        self.assertIn("New activations wait for a maintenance window; the next one opens in", said)
        ran = self.call("run-now", "--reason", "security fix", "--until", "2h")
        self.assertEqual((ran.code, ran.err), (0, ""))
        self.assertIn("does not wait for a maintenance window", ran.out)
        self.assertRegex(self.call("status").out, r"(?m)^window: +closed, .* need not wait: security fix$")
        self.assertIn("security fix", self.call("why").out)
        self.assertEqual(self.call("run-now", "--reason", " ").code, 2)


class Quarantine(HostCase):
    def setUp(self) -> None:
        super().setUp()
        self.store = QuarantineStore(self.state)
        for closure in (OLD, NEW):
            self.store.add(Entry("stable", closure, ROLLOUT, self.now, "switch failed"))
        self.store.add(Entry("edge", NEW, "edge@ff", self.now - timedelta(hours=25), "long ago"))

    def test_list_shows_what_is_in_force(self) -> None:
        self.assertEqual([row["closure"] for row in self.call("quarantine", "list", "--json").json], [OLD, NEW])
        out = self.call("quarantine", "list").out
        self.assertIn("switch failed", out)
        self.assertNotIn("long ago", out)

    def test_clear_one_or_all(self) -> None:
        self.fails(2, "2 closures begin with ''", ran=self.call("quarantine", "clear", ""))
        self.assertEqual(self.call("quarantine", "clear", NEW[:8]).code, 0)
        self.assertEqual({entry.closure for entry in self.store.entries()}, {OLD})
        self.assertEqual(self.call("quarantine", "clear", "--all").code, 0)
        self.assertEqual(self.store.entries(), ())
        self.assertIn("nothing is in quarantine", self.call("quarantine", "list").out)

    def test_to_one_who_may_not_read_it_the_list_is_not_empty(self) -> None:
        really = Path.open

        def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
            if path == self.store.path:
                raise PermissionError(13, "Permission denied", str(path))
            return really(path, *arguments, **options)

        for words in (("list",), ("clear", "--all")):
            with mock.patch.object(Path, "open", refuse):
                self.fails(1, "quarantine.json: run it as root", ran=self.call("quarantine", *words))
        self.assertEqual(len(self.store.entries()), 3)


class Rollback(HostCase):
    def test_retry_and_give_up_reach_the_worker_of_the_rollout_that_owes(self) -> None:
        accepted = self.accept(ROLLOUT)
        at = self.now
        self.log(
            accepted,
            *self.activated(accepted),
            LocalProbeTopologyDeclared(seq=4, probes=(), declared_at=at),
            LocalSustainedFailureCrossed(
                seq=5, failed_at=at, sustained_duration_secs=120, failing_probes=("web",),
                policy_applied=Policy.ROLLBACK_AND_HALT,
            ),
        )  # fmt: skip
        control = RollbackControl(self.state)
        self.assertIn(f"on its way back to {OLD}", self.call("why").out.replace("\n", " "))
        self.assertEqual(self.call("rollback", "give-up").code, 0)
        self.assertTrue(control.given_up(ROLLOUT))
        self.assertIn("an operator gave its rollback up", self.call("why").out.replace("\n", " "))
        ran = self.call("rollback", "retry")
        self.assertEqual(
            ran.out, f"the agent tries to roll back {ROLLOUT} again when it is started: it does not run.\n"
        )
        self.assertIn(f"on its way back to {OLD}", self.call("why").out.replace("\n", " "))
        self.assertFalse(control.given_up(ROLLOUT))
        self.assertTrue(control.take_retry(ROLLOUT))


class Identity(HostCase):
    def setUp(self) -> None:
        super().setUp()
        self.server = self.serve(client_optional=True)
        self.server.route("POST", "/v1/enroll", self.sign)
        self.server.route("POST", "/v1/agent/renew", self.sign)
        self.server.route("POST", "/v1/agent/bootstrap-report", Reply(204))
        self.server.route("GET", "/v1/fleet.resolved/sig", Reply(200, bytes(64)))
        self.token = self.folder / "token"
        self.settings["bootstrap_token_file"] = self.token

    def sign(self, request: Request) -> Reply:
        certificate = self.authority.issue_for_csr(
            request.json()["csrPem"], not_after=(self.now + timedelta(days=60)).replace(microsecond=0)
        )
        return Reply(200, json.dumps({"certPem": pem_of(certificate), "notAfter": "x"}).encode())

    def write_token(self, hostname: str = MACHINE) -> None:
        fingerprint = base64.b64encode(hashlib.sha256(self.key.public_raw).digest()).decode()
        claims = {
            "hostname": hostname,
            "expectedPubkeyFingerprint": fingerprint,
            "issuedAt": format_time(self.now - timedelta(hours=1)),
            "expiresAt": format_time(self.now + timedelta(hours=1)),
            "nonce": "n",
        }
        self.token.write_text(json.dumps({"version": 1, "claims": claims, "signature": "AA=="}))
        self.token.chmod(0o600)

    def test_enroll(self) -> None:
        self.certificate.unlink()
        self.write_token()
        self.assertIn("bootstrap token", self.call("check").out)
        ran = self.call("enroll")
        self.assertEqual(ran.code, 0, ran)
        self.assertIn("enrolled", ran.out)
        self.assertTrue(self.certificate.exists())
        self.assertIn("already enrolled", self.call("enroll").out)
        self.assertEqual([r.path for r in self.server.requests if r.path == "/v1/enroll"], ["/v1/enroll"])

    def test_a_refusal_is_77_and_says_what_to_do(self) -> None:
        self.certificate.unlink()
        self.write_token("db-01")
        self.fails(77, "for 'db-01'", "make a token for this host", ran=self.call("enroll"))
        self.write_token()
        self.server.route("POST", "/v1/enroll", Reply(409))
        self.fails(69, "used already", ran=self.call("enroll"))
        self.server.route("POST", "/v1/enroll", Reply(401))
        self.fails(69, "until the token expires", ran=self.call("enroll"))

    def test_a_control_plane_that_is_away_is_69(self) -> None:
        self.certificate.unlink()
        self.write_token()
        self.server.route("POST", "/v1/enroll", Reply(502))
        self.fails(69, "502", ran=self.call("enroll"))
        self.server.close()
        self.fails(69, "Connection refused", ran=self.call("enroll"))
        self.assertFalse(self.certificate.exists())

    def test_renew_when_due_or_forced(self) -> None:
        self.authority.write_client(self.certificate, self.key, MACHINE)
        before = self.certificate.read_bytes()
        self.assertIn("not due", self.call("renew").out)
        self.assertEqual(self.certificate.read_bytes(), before)
        ran = self.call("renew", "--force", "--json")
        self.assertEqual((ran.code, ran.json["renewed"], ran.json["proven"]), (0, True, True))
        self.assertGreater(parse_time(ran.json["not_after"]), self.now, "scripts get times that they can read")
        self.assertNotEqual(self.certificate.read_bytes(), before)


class Probe(HostCase):
    def declare(self, **probes: object) -> None:
        (self.folder / "health-checks.json").write_text(json.dumps(probes))

    def test_a_table_and_an_exit_code(self) -> None:
        good = {"kind": "exec", "mode": "enforce", "command": ["/bin/true"]}
        bad = {"kind": "exec", "mode": "observe", "command": ["/bin/sh", "-c", "printf 'no\\033[2J'; exit 3"]}
        self.declare(good=good, bad=bad, off=good | {"mode": "disabled"})
        ran = self.call("probe")
        self.assertEqual(ran.code, 0, ran)
        self.assertRegex(ran.out, r"(?m)^good +exec +enforce +pass ")
        self.assertRegex(ran.out, r"(?m)^bad +exec +observe +fail .*exit code 3")
        self.assertRegex(ran.out, r"(?m)^off +exec +disabled +disabled ")
        self.assertNotIn("\x1b", ran.out)
        self.assertEqual(self.call("probe", "bad").code, 1)
        self.assertEqual(self.call("probe", "off").code, 0)
        self.declare(gate=bad | {"mode": "enforce"})
        self.assertEqual(self.call("probe", "--json").json[0]["result"], "fail")
        self.assertEqual(self.call("probe").code, 1)

    def test_a_file_that_cannot_be_read_is_a_failure(self) -> None:
        (self.folder / "health-checks.json").write_text("{")
        self.assertEqual(self.call("probe").code, 1)

    def process(self, *before: str) -> subprocess.Popen[str]:
        command = [*before, sys.executable, "-m", "nixfleet_agent", "probe", "--config", str(self.write_config())]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def test_whatever_ends_it_leaves_no_child(self) -> None:
        script = f"trap '' TERM HUP; echo $$ > {self.folder}/new; mv {self.folder}/new {self.folder}/pid; sleep 60"
        self.declare(slow={"kind": "exec", "command": ["/bin/sh", "-c", script], "timeoutSecs": 60})
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            process, pid = self.process(), self.folder / "pid"
            until(pid.exists, "the probe's child")
            process.send_signal(number)
            _, said = process.communicate(timeout=30)
            self.assertEqual((process.returncode, said), (130, "nixfleet-agent: interrupted\n"))
            child = Path("/proc") / pid.read_text().strip()
            until(partial(gone, child), f"the end of the child by {number!r}")
            pid.unlink()

    def test_a_parent_that_ignores_the_ends_of_its_children_changes_no_exit_code(self) -> None:
        self.declare(bad={"kind": "exec", "command": ["/bin/false"]}, good={"kind": "exec", "command": ["/bin/true"]})
        ignore = (
            "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
        )
        process = self.process(sys.executable, "-c", ignore)
        out, err = process.communicate(timeout=30)
        self.assertRegex(out, r"(?m)^bad +exec +enforce +fail .*exit code 1, expected")
        self.assertRegex(out, r"(?m)^good +exec +enforce +pass ")
        self.assertEqual((process.returncode, err), (1, ""))

    def test_no_file(self) -> None:
        ran = self.call("probe")
        self.assertEqual(ran.code, 0)
        self.assertIn("no probes are declared", ran.out)


class Run(HostCase):
    def test_a_state_directory_in_use_is_75(self) -> None:
        held = StateDir.take(self.state)
        self.addCleanup(held.release_lock)
        self.fails(75, "another agent", str(self.state), ran=self.call("run"))

    def test_without_a_trust_file_is_78(self) -> None:
        self.trust.unlink()
        self.fails(78, "can't read the trust file", ran=self.call("run"))


if __name__ == "__main__":
    unittest.main()
