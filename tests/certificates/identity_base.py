"""What the tests of enrollment, renewal and the worker share: a host with a key, a control plane that signs."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from nixfleet_agent.certificates.enrollment import Enrollment
from nixfleet_agent.certificates.renewal import Renewal
from nixfleet_agent.config.model import Config, TuningConfig
from nixfleet_agent.identity.anchors import load_anchors
from nixfleet_agent.identity.credentials import Credentials
from nixfleet_agent.identity.host_key import HostKey, load_host_key
from nixfleet_agent.net.client import ControlPlane
from nixfleet_agent.proto.times import format_time
from tests.net.base import NetTestCase
from tests.support.behaviours import Reply, Request
from tests.support.clock import FakeClock
from tests.support.https_server import HttpsServer
from tests.support.tls import DAY, new_host_key, now, pem_of

ENROLL = ("POST", "/v1/enroll")
RENEW = ("POST", "/v1/agent/renew")
REPORT = ("POST", "/v1/agent/bootstrap-report")
PROOF = ("GET", "/v1/fleet.resolved/sig")
NONCE = "a-nonce-that-nobody-may-log"


class IdentityTestCase(NetTestCase):
    """A server that asks for client certificates where it gets them, signs what it is asked to, and takes reports."""

    def setUp(self) -> None:
        super().setUp()
        self.token_path = self.folder / "token"
        self.clock = FakeClock(now())
        self.server = self.serve(client_optional=True)
        self.issued: list[x509.Certificate] = []
        self.server.route(*ENROLL, self.sign)
        self.server.route(*RENEW, self.sign)
        self.server.route(*REPORT, Reply(204))
        self.server.route(*PROOF, Reply(200, bytes(64)))

    def sign(self, request: Request, **options: Any) -> Reply:
        """The answer of a proper control plane; ``options`` make it improper."""
        options.setdefault("not_after", now() + 60 * DAY)
        certificate = self.fleet.issue_for_csr(request.json()["csrPem"], **options)
        self.issued.append(certificate)
        return self.answer(certificate)

    def answer(self, certificate: x509.Certificate) -> Reply:
        return Reply(200, json.dumps({"certPem": pem_of(certificate), "notAfter": "ignored"}).encode())

    def config(self, **options: Any) -> Config:
        options.setdefault("tuning", TuningConfig(cert_check_interval=60, backoff_initial=1, backoff_max=60))
        settings: dict[str, Any] = {
            "control_plane_url": self.server.url,
            "machine_id": "web-01",
            "ca_cert": self.ca,
            "client_cert": self.cert_path,
            "client_key": self.folder / "key",
            "ssh_host_key_file": self.folder / "key",
            "state_dir": self.folder,
        }
        return Config(**{**settings, **options})

    def parts(self, config: Config, server: HttpsServer | None = None) -> tuple[Enrollment, Renewal, Credentials]:
        """The pieces as the agent builds them, with the pieces' clock in the test's hand."""
        credentials = Credentials(config.client_cert, config.client_key)
        control_plane = self.connect(server or self.server, credentials=credentials)
        assert isinstance(control_plane, ControlPlane)

        def anchors() -> tuple[x509.Certificate, ...]:
            return load_anchors((), config.ca_cert)

        enrollment = Enrollment(config, control_plane, credentials, self.clock, anchors)
        return enrollment, Renewal(config, control_plane, credentials, self.clock, anchors), credentials

    def write_token(self, key: HostKey | None = None, **claims: Any) -> Path:
        values = {
            "hostname": "web-01",
            "expectedPubkeyFingerprint": (key or load_host_key(self.folder / "key")).fingerprint,
            "issuedAt": self.stamp(timedelta(hours=-1)),
            "expiresAt": self.stamp(timedelta(hours=1)),
            "nonce": NONCE,
            **claims,
        }
        self.token_path.write_text(json.dumps({"version": 1, "claims": values, "signature": "c2ln", "extra": 1}))
        self.token_path.chmod(0o600)
        return self.token_path

    def stamp(self, offset: timedelta) -> str:
        at: datetime = self.clock.now() + offset
        return format_time(at)

    def asked(self, endpoint: tuple[str, str], server: HttpsServer | None = None) -> list[Request]:
        """The requests that the server got for one endpoint."""
        requests = (server or self.server).requests
        return [request for request in requests if (request.method, request.path) == endpoint]

    def other_key(self) -> HostKey:
        return new_host_key()
