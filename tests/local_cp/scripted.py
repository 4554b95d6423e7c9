"""A scripted agent: speaks the wire protocol over real mutual TLS, one call at a time, and decides nothing."""

from __future__ import annotations

import http.client
import json
import ssl
import tempfile
import unittest
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nixfleet_agent.identity.csr import make_csr
from nixfleet_agent.identity.host_key import HostKey, from_private
from nixfleet_agent.journal import chain
from nixfleet_agent.local_cp.catalogue import write_nonces
from nixfleet_agent.local_cp.ci import ChannelDescription, ContinuousIntegration, FleetDescription, WaveDescription
from nixfleet_agent.local_cp.dispatcher import Options
from nixfleet_agent.local_cp.service import PUBLISHED, LocalControlPlane
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.trust.canonical import canonical
from tests.support.signing import closure_name

PROMPT = 60.0  # seconds that an answer may take before a test is a failure


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class ScriptedAgent:
    """One host. Call ``enroll`` first; then each method is one request on one keep-alive connection."""

    def __init__(self, hostname: str, port: int, ca_file: Path, folder: Path) -> None:
        self.hostname = hostname
        self.key: HostKey = from_private(Ed25519PrivateKey.generate())
        self.seqs: dict[str, int] = {}
        self.tails: dict[str, str] = {}
        self._port = port
        self._ca_file = ca_file
        self._folder = folder
        self._connection = self.connect()

    def connect(self) -> http.client.HTTPSConnection:
        """A connection of its own, with the certificate that there is."""
        context = ssl.create_default_context(cafile=str(self._ca_file))
        if self.certificate_file.exists():
            context.load_cert_chain(self.certificate_file, self._key_file)
        return http.client.HTTPSConnection("127.0.0.1", self._port, context=context, timeout=PROMPT)

    @property
    def certificate_file(self) -> Path:
        return self._folder / f"{self.hostname}.pem"

    @property
    def _key_file(self) -> Path:
        return self._folder / f"{self.hostname}.key"

    def close(self) -> None:
        self._connection.close()

    def call(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Reply:
        raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        sent = {"X-Nixfleet-Protocol": "1", "Accept": "application/json", **(headers or {})}
        self._connection.request(method, path, body=raw, headers=sent)
        answer = self._connection.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def enroll(self, token: bytes) -> Reply:
        reply = self.call(
            "POST", "/v1/enroll", {"token": json.loads(token), "csrPem": make_csr(self.key, self.hostname)}
        )
        if reply.status == 200:
            self.install(reply.json()["certPem"])
        return reply

    def install(self, certificate_pem: str) -> None:
        """Use this certificate from the next request on."""
        self.certificate_file.write_text(certificate_pem)
        self._key_file.write_bytes(self.key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._connection.close()
        self._connection = self.connect()

    def poll(self, wait: float = 0) -> dict[str, Any] | None:
        reply = self.call("GET", f"/v1/agent/dispatch?wait={wait}")
        assert reply.status in (200, 204), reply
        return reply.json() if reply.status == 200 else None

    def beat(
        self, rollout_id: str | None = None, closure: str | None = None, seqs: Mapping[str, int] | None = None
    ) -> Reply:
        body = {
            "hostname": self.hostname,
            "rollout_id": rollout_id,
            "current_closure": closure,
            "at": format_time(datetime.now(timezone.utc)),
            "agent_version": "0.1.0",
            "uptime_secs": 1,
            "last_event_seq_by_rollout": dict(self.seqs if seqs is None else seqs),
        }
        return self.call("POST", "/v1/agent/heartbeat", {k: v for k, v in body.items() if v is not None})

    def event(
        self,
        rollout_id: str,
        kind: str,
        *,
        seq: int | None = None,
        sign: bool = False,
        link: bool = False,
        **fields: object,
    ) -> Reply:
        """Send one event; without ``seq`` the next of its rollout. ``link`` adds what it follows, as ``tails`` says."""
        if seq is None:
            seq = self.seqs[rollout_id] = self.seqs.get(rollout_id, 0) + 1
        event = {"kind": kind, "seq": seq, **fields}
        body: dict[str, object] = {"hostname": self.hostname, "rolloutId": rollout_id, "event": event}
        if sign:
            body["signature"] = self.key.sign(canonical(event)).hex()
        if link:
            previous = self.tails.get(rollout_id) or chain.beginning(self.hostname, rollout_id)
            said = chain.statement(self.hostname, rollout_id, event, previous)
            body |= {"previous": previous, "chainSignature": self.key.sign(canonical(said)).hex()}
            self.tails[rollout_id] = chain.link(self.hostname, rollout_id, event, previous)
        return self.call("POST", "/v1/agent/events", body)


def now() -> str:
    return format_time(datetime.now(timezone.utc))


def until_soaking(target: str, prior: str | None = None) -> list[tuple[str, dict[str, object]]]:
    """The events of an activation that goes well, up to and with a declared topology of one enforce probe."""
    ack: dict[str, object] = {"receivedAt": now()}
    if prior:
        ack["currentClosureAtDispatch"] = prior
    return [
        ("DispatchAck", ack),
        ("ActivationStarted", {"startedAt": now(), "switchMethod": "setsid"}),
        ("ActivationCompleted", {"observedCurrentClosure": target, "exitCode": 0, "completedAt": now()}),
        (
            "ProbeTopologyDeclared",
            {"probes": [{"probeName": "app", "kind": "exec", "mode": "enforce"}], "declaredAt": now()},
        ),
    ]


def result(status: str) -> tuple[str, dict[str, object]]:
    return ("ProbeResult", {"probeName": "app", "mode": "enforce", "status": status, "observedAt": now()})


def to_converged(target: str, prior: str | None = None) -> list[tuple[str, dict[str, object]]]:
    """All events of a rollout that converges."""
    return [
        *until_soaking(target, prior),
        result("pass"),
        ("Converged", {"convergedAt": now(), "currentClosure": target}),
    ]


def to_reverted(target: str, prior: str) -> list[tuple[str, dict[str, object]]]:
    """All events of a rollout whose probe fails and that is rolled back."""
    failed: dict[str, object] = {
        "failedAt": now(),
        "sustainedDurationSecs": 2,
        "failingProbes": ["app"],
        "policyApplied": "rollback-and-halt",
    }
    back: dict[str, object] = {"revertedToClosure": prior, "exitCode": 0, "completedAt": now()}
    return [*until_soaking(target, prior), result("fail"), ("Failed", failed), ("RollbackComplete", back)]


class ControlPlaneCase(unittest.TestCase):
    """A control plane that runs, a CI, and agents that have enrolled."""

    OPTIONS = Options()

    def setUp(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="local-cp-")
        self.addCleanup(self._scratch.cleanup)
        self.folder = Path(self._scratch.name)
        self.ci = ContinuousIntegration()
        self.cp = LocalControlPlane(self.folder / "cp", SystemClock(), self.ci.org_root_public, options=self.OPTIONS)
        self.cp.start()
        self.addCleanup(self.cp.stop)

    def publish(self, commit: str, *waves: tuple[str, ...], signed_at: datetime | None = None, **options: Any) -> str:
        """Publish one commit of the channel `stable` with these waves; its rollout id."""
        channel = ChannelDescription(waves=tuple(WaveDescription(wave) for wave in waves))
        closures = {hostname: closure_name(f"{hostname}-{commit}") for hostname in channel.hosts}
        fleet = FleetDescription(channels={"stable": channel}, **options)
        self.cp.control.publish(self.ci.release(fleet, commit, closures, signed_at or datetime.now(timezone.utc)))
        return f"stable@{commit}"

    def agent(self, hostname: str, *, enrolled: bool = True) -> ScriptedAgent:
        agent = ScriptedAgent(hostname, self.cp.server.port, self.cp.ca_file, self.folder)
        self.addCleanup(agent.close)
        if enrolled:
            self.assertEqual(agent.enroll(self.token(agent)).status, 200)
        return agent

    def token(self, agent: ScriptedAgent, *, lifetime: timedelta = timedelta(hours=1)) -> bytes:
        """A token for the agent's own key, on the list that is out."""
        moment = datetime.now(timezone.utc)
        token = self.ci.token(agent.hostname, agent.key.fingerprint, moment, lifetime)
        self.list_nonces(moment)
        return token

    def list_nonces(self, moment: datetime) -> None:
        write_nonces(self.cp.folder / PUBLISHED, self.ci.nonces(moment))
        self.cp.control.reload()

    def target(self, rollout_id: str, hostname: str) -> str:
        found = self.cp.control.catalogue.target(rollout_id, hostname)
        assert found is not None
        return found

    def play(
        self, agent: ScriptedAgent, rollout_id: str, events: list[tuple[str, dict[str, object]]], *, link: bool = False
    ) -> None:
        """Send events in order; each must be taken."""
        for kind, fields in events:
            reply = agent.event(rollout_id, kind, link=link, **fields)
            self.assertEqual(reply.status, 204, (kind, reply.body))

    def logged(self, hostname: str, rollout_id: str) -> list[tuple[int, str]]:
        """(seq, kind) of the events that the control plane holds."""
        return [(event["seq"], event["kind"]) for event in self.cp.control.store.events(hostname, rollout_id)]
