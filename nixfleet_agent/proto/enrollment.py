"""Bodies of the identity endpoints: bootstrap token, enroll, renew, bootstrap report (all camelCase)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto import ids
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.proto.times import format_time, parse_time

ENROLL_PATH = "/v1/enroll"
RENEW_PATH = "/v1/agent/renew"
REPORT_PATH = "/v1/agent/bootstrap-report"

#: What a 503 of a control plane that has just started says; it means "soon", not "broken".
COLD_START = "control plane not ready"
#: Kinds of bootstrap reports, as the control planes of the field name them.
ENROLLMENT_FAILED = "enrollment-failed"
TRUST_ERROR = "trust-error"

#: A token file has a few hundred bytes.
TOKEN_LIMIT = 64 * 1024
_REASON_LIMIT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapToken:
    """A token that the operator made for one host; ``document`` is the secret itself, and never shown."""

    hostname: str
    fingerprint: str
    issued_at: datetime
    expires_at: datetime
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: bytes) -> BootstrapToken:
        """Read a token file.

        Raises:
            ProtoError: not a version 1 token; the message never quotes its content beyond a name.
        """
        document = loads_strict(raw, limit=TOKEN_LIMIT, what="the bootstrap token")
        if not isinstance(document, Mapping) or document.get("version") != 1:
            raise ProtoError("the bootstrap token is not a JSON object of version 1")
        claims = document.get("claims")
        if not isinstance(claims, Mapping) or not isinstance(document.get("signature"), str):
            raise ProtoError("the bootstrap token lacks claims or signature")
        fingerprint = claims.get("expectedPubkeyFingerprint")
        if not isinstance(fingerprint, str):
            raise ProtoError("the bootstrap token lacks expectedPubkeyFingerprint")
        return cls(
            hostname=ids.require(ids.HOSTNAME, claims.get("hostname"), "hostname of the bootstrap token"),
            fingerprint=fingerprint,
            issued_at=parse_time(claims.get("issuedAt")),
            expires_at=parse_time(claims.get("expiresAt")),
            document=document,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateAnswer:
    """The answer of `enroll` and `renew`; what ``notAfter`` says is not used, the certificate says it itself."""

    cert_pem: str = field(repr=False)

    @classmethod
    def parse(cls, raw: bytes) -> CertificateAnswer:
        """Raises ProtoError where the answer holds no certificate text."""
        body = loads_strict(raw, what="the certificate answer")
        pem = body.get("certPem") if isinstance(body, Mapping) else None
        if not isinstance(pem, str):
            raise ProtoError("the certificate answer has no certPem")
        return cls(cert_pem=pem)


def enroll_body(token: BootstrapToken, csr_pem: str) -> dict[str, Any]:
    """`POST /v1/enroll`; the token goes out as it was read, unknown fields included."""
    return {"token": token.document, "csrPem": csr_pem}


def renew_body(csr_pem: str) -> dict[str, Any]:
    """`POST /v1/agent/renew`."""
    return {"csrPem": csr_pem}


def report_body(
    *, hostname: str, agent_version: str, at: datetime, token: BootstrapToken | None, kind: str, reason: str
) -> dict[str, Any]:
    """`POST /v1/agent/bootstrap-report`; ``kind`` is `enrollment-failed` or `trust-error`."""
    body: dict[str, Any] = {
        "hostname": hostname,
        "agentVersion": agent_version,
        "occurredAt": format_time(at),
        "event": {"event": kind, "details": {"reason": reason[:_REASON_LIMIT]}},
    }
    if token is not None:
        body["token"] = token.document
    return body
