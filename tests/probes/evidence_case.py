"""Compliance evidence as a collector signs it."""

from __future__ import annotations

import base64
import json
import tempfile
import unittest
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import rfc8785

from nixfleet_agent.identity.host_key import HostKey
from nixfleet_agent.probes.declarations import EvidenceDecl
from nixfleet_agent.probes.runners import RunnerContext, RunnerOutcome, run
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.state_machine.events import SubResult
from nixfleet_agent.state_machine.states import Mode, ProbeStatus
from tests.probes.support import MACHINE, context
from tests.support.tls import write_host_key

ENFORCE, OBSERVE, DISABLED = Mode.ENFORCE, Mode.OBSERVE, Mode.DISABLED


PASS, FAIL = ProbeStatus.PASS, ProbeStatus.FAIL


def control(name: str, passed: bool = True, **articles: list[str]) -> dict[str, Any]:
    return {"controlId": name, "passed": passed, "frameworkArticles": articles}


def sub(name: str, status: ProbeStatus, framework: str, article: str | None, mode: Mode = ENFORCE, **more: Any) -> Any:
    return SubResult(control_id=name, status=status, framework=framework, article=article, effective_mode=mode, **more)


class EvidenceCase(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.key_file = self.folder / "ssh_host_ed25519_key"
        self.key = write_host_key(self.key_file)
        self.path = self.folder / "evidence.json"
        self.ctx: RunnerContext = context(self.key_file)

    def document(self, *controls: Any, **fields: Any) -> dict[str, Any]:
        now = format_time(datetime.now(timezone.utc))
        return {"schemaVersion": 1, "hostname": MACHINE, "collectedAt": now, "controls": list(controls), **fields}

    def collect(self, document: Any, key: HostKey | None = None) -> None:
        """Write evidence as the collector does: indented JSON, signed over its canonical form."""
        self.path.write_text(json.dumps(document, indent=2), encoding="utf-8")
        signature = (key or self.key).sign(rfc8785.dumps(document))
        Path(f"{self.path}.sig").write_text(base64.b64encode(signature).decode() + "\n", encoding="ascii")

    def probe(self, **fields: Any) -> RunnerOutcome:
        if "controls" not in fields:
            fields.setdefault("framework", "nis2")
        return run(EvidenceDecl(name="p", path=self.path, **fields), self.ctx)

    def assert_fails(self, words: str, **fields: Any) -> None:
        outcome = self.probe(**fields)
        self.assertFalse(outcome.passed)
        self.assertIn(words, outcome.failure_reason or "")
