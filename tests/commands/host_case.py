"""A host for tests of commands: its files are real, its commands run in this process, its control plane when asked."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import unittest
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from nixfleet_agent.cli import main
from nixfleet_agent.journal.entries import Entry, entry_of
from nixfleet_agent.journal.header import DISPATCH_KIND, Acceptance
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.proto.ids import channel_of
from nixfleet_agent.state_machine import Event, Policy
from nixfleet_agent.state_machine.events import (
    LocalActivate,
    LocalActivationCompleted,
    LocalActivationStarted,
    LocalConvergedReached,
    LocalProbeTopologyDeclared,
)
from nixfleet_agent.state_machine.states import SwitchMethod
from tests.support.https_server import HttpsServer
from tests.support.signing import CiSigner, closure_name
from tests.support.tls import Authority, write_host_key

MACHINE = "web-01"
OLD, NEW = closure_name("nixos-system-old"), closure_name("nixos-system-new")


@dataclass(frozen=True)
class Ran:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class HostCase(unittest.TestCase):
    """Everything is in place and in order until a test breaks it."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.state = self.folder / "state"
        self.state.mkdir(mode=0o700)
        self.now = datetime.now(timezone.utc)
        self.ci = CiSigner()
        self.authority = Authority()
        self.key = write_host_key(self.folder / "key")
        self.certificate = self.folder / "cert.pem"
        self.authority.write_client(self.certificate, self.key, MACHINE)
        self.trust = self.folder / "trust.json"
        self.trust.write_bytes(self.ci.trust_bytes())
        self.ca = self.authority.write_ca(self.folder / "ca.pem")
        self.run_system(OLD)
        self.settings: dict[str, object] = {
            "control_plane_url": "https://127.0.0.1:9",
            "machine_id": MACHINE,
            "trust_file": self.trust,
            "ca_cert": self.ca,
            "client_cert": self.certificate,
            "client_key": self.folder / "key",
            "ssh_host_key_file": self.folder / "key",
            "state_dir": self.state,
            "health_checks_file": self.folder / "health-checks.json",
        }
        self.tables = (
            f'[activation]\nprofile = "{self.folder / "profile"}"\ncurrent_system = "{self.folder / "current"}"\n'
        )
        self.environ: dict[str, str] = {}

    def run_system(self, closure: str) -> None:
        """``closure`` is what runs, and what the profile is at."""
        for name in ("current", "profile"):
            (self.folder / name).unlink(missing_ok=True)
            (self.folder / name).symlink_to(f"/nix/store/{closure}")

    def serve(self, **options: Any) -> HttpsServer:
        """A control plane that takes this host's certificate."""
        certificate, key = self.authority.write_server(self.folder)
        server = HttpsServer(certificate, key, client_ca=self.ca, **options)
        self.addCleanup(server.close)
        self.settings["control_plane_url"] = server.url
        return server

    def write_config(self) -> Path:
        path = self.folder / "agent.toml"
        lines = [f"{key} = {json.dumps(str(value))}" for key, value in self.settings.items()]
        path.write_text("\n".join(lines) + "\n" + self.tables)
        path.chmod(0o644)
        return path

    def call(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Ran:
        """Run a command with this host's configuration."""
        return self.bare(*arguments, "--config", str(self.write_config()), environ=environ)

    def bare(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Ran:
        """Run a command as it is."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(arguments), self.environ | dict(environ or {}))
        return Ran(code, out.getvalue(), err.getvalue())

    def fails(self, code: int, *says: str, ran: Ran) -> None:
        """It ended with ``code`` and one line on stderr that says all of ``says``."""
        self.assertEqual(ran.code, code, ran)
        line = ran.err.removesuffix("\n")
        self.assertTrue(line.startswith("nixfleet-agent: ") and line.isprintable(), ran.err)
        self.assertNotIn("Traceback", ran.err)
        for part in says:
            self.assertIn(part, line)

    # -- a past -------------------------------------------------------------------------------

    def journal(self) -> Journal:
        journal = Journal(self.state, MACHINE)
        journal.open()
        return journal

    def accept(self, rollout_id: str, number: int = 1, *, prior: str | None = OLD, target: str = NEW) -> Acceptance:
        """A Dispatch accepted an hour ago."""
        at = self.now - timedelta(hours=1)
        accepted = Acceptance(
            number=number,
            rollout_id=rollout_id,
            target_closure=target,
            prior_closure=prior,
            soak_due_at=at + timedelta(minutes=10),
            soak_floor=5,
            policy=Policy.ROLLBACK_AND_HALT,
            accepted_at=at,
            manifest_hash="a" * 64,
            manifest_signed_at=at,
            fleet_hash="b" * 64,
            fleet_signed_at=at,
            marks={"channels": {channel_of(rollout_id): at.isoformat()}},
        )
        self.journal().accept(self._entry(accepted))
        return accepted

    @staticmethod
    def _entry(accepted: Acceptance) -> Entry:
        return Entry(
            seq=0,
            hostname=MACHINE,
            rollout_id=accepted.rollout_id,
            kind=DISPATCH_KIND,
            created_at=accepted.accepted_at,
            event=accepted.to_json(),
        )

    def log(self, accepted: Acceptance, *events: Event, delivered: bool = True) -> None:
        """Append events to a rollout's log."""
        journal = self.journal()
        for event in events:
            journal.append(entry_of(event, MACHINE, accepted.rollout_id, self.now))
            if delivered:
                path = journal.first(accepted.rollout_id)
                assert path is not None
                journal.delivered(accepted.rollout_id, path)

    def activated(self, accepted: Acceptance) -> tuple[Event, ...]:
        """Its events up to the soak."""
        at = accepted.accepted_at
        return (
            LocalActivate(seq=1, current_closure_at_dispatch=accepted.prior_closure, received_at=at),
            LocalActivationStarted(seq=2, started_at=at, switch_method=SwitchMethod.SETSID),
            LocalActivationCompleted(
                seq=3,
                observed_current_closure=accepted.target_closure,
                exit_code=0,
                completed_at=at + timedelta(seconds=9),
            ),
        )

    def converged(self, accepted: Acceptance) -> tuple[Event, ...]:
        """Its events from the first to the last."""
        at = accepted.accepted_at + timedelta(minutes=20)
        return (
            *self.activated(accepted),
            LocalProbeTopologyDeclared(seq=4, probes=(), declared_at=at),
            LocalConvergedReached(seq=5, converged_at=at, current_closure=accepted.target_closure),
        )
