"""Who gets a certificate: bootstrap tokens that the org root key signed and lists, each good once; renewals by key."""

from __future__ import annotations

import base64
import binascii
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.identity.host_key import fingerprint_of
from nixfleet_agent.local_cp.ca import CertificateAuthority, Issued, check_csr, public_bytes
from nixfleet_agent.local_cp.catalogue import Catalogue
from nixfleet_agent.local_cp.errors import RequestRefused
from nixfleet_agent.local_cp.server import Peer
from nixfleet_agent.local_cp.store import Store
from nixfleet_agent.local_cp.wire import read_object, text
from nixfleet_agent.proto import ids
from nixfleet_agent.proto.times import format_time, parse_time
from nixfleet_agent.text import clip
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.trust.canonical import canonical

TOKEN_VERSION = 1
#: As agents name what they report, and as those before version 0.3 did.
REPORT_KINDS = {"enrollment-failed": "EnrollmentFailed", "trust-error": "TrustError"}


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token promises: this host, with this key, once, within this time."""

    hostname: str
    fingerprint: str
    issued_at: datetime
    expires_at: datetime
    nonce: str


class Registrar:
    """Issues and revokes. Thread-safe; revocations are kept in memory too, because every request asks for them."""

    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        authority: CertificateAuthority,
        org_root: bytes,
        lifetime: timedelta,
        clock: Clock,
        on_revoke: Callable[[str], None] = lambda hostname: None,
    ) -> None:
        self._store = store
        self._on_revoke = on_revoke
        self._catalogue = catalogue
        self._authority = authority
        self._org_root = Ed25519PublicKey.from_public_bytes(org_root)
        self._lifetime = lifetime
        self._clock = clock
        self._lock = threading.Lock()
        self._revocations = store.revocations()

    def enroll(self, body: Mapping[str, Any]) -> dict[str, str]:
        """Answer of ``/v1/enroll``.

        Raises:
            RequestRefused: 401 the token is not valid, 409 it was used before, 400 or 403 the CSR is not, 503 CI's
                list of nonces is not here or not good.
        """
        now = self._clock.now()
        claims = self._claims(body.get("token"))
        if not claims.issued_at <= now < claims.expires_at:
            raise RequestRefused(HTTPStatus.UNAUTHORIZED, "the token is not valid at this time")
        csr_pem = text(body, "csrPem")
        public_raw = public_bytes(check_csr(csr_pem, claims.hostname).public_key())
        if fingerprint_of(public_raw) != claims.fingerprint:
            raise RequestRefused(HTTPStatus.UNAUTHORIZED, "the token is for another key")
        if self._listed().get(claims.nonce) != claims.hostname:
            raise RequestRefused(HTTPStatus.UNAUTHORIZED, "the token is not on the list that CI published")
        if not self._store.use_nonce(claims.nonce, claims.hostname, now):
            raise RequestRefused(HTTPStatus.CONFLICT, "the token was used before")
        return self._issue(csr_pem, claims.hostname, now)

    def renew(self, peer: Peer, body: Mapping[str, Any]) -> dict[str, str]:
        """Answer of ``/v1/agent/renew``.

        Raises:
            RequestRefused: the CSR is not for the caller's own name and key.
        """
        csr_pem = text(body, "csrPem")
        if public_bytes(check_csr(csr_pem, peer.hostname).public_key()) != peer.public_raw:
            raise RequestRefused(HTTPStatus.FORBIDDEN, "csrPem is for another key than the certificate in use")
        return self._issue(csr_pem, peer.hostname, self._clock.now())

    def revoke(self, hostname: str) -> None:
        """Refuse every certificate that the host has now; one issued from the next second on is good again."""
        now = self._clock.now()
        not_before = datetime.fromtimestamp(math.ceil(now.timestamp()), now.tzinfo)
        with self._lock:
            self._store.revoke(hostname, not_before)
            self._revocations = {**self._revocations, hostname: not_before}
        self._on_revoke(hostname)

    def revoked(self, peer: Peer) -> bool:
        """Whether the caller's certificate is older than the host's revocation."""
        not_before = self._revocations.get(peer.hostname)
        return not_before is not None and peer.not_before < not_before

    def _listed(self) -> dict[str, str]:
        """Nonce -> host name of the tokens that CI lets enroll."""
        signed = self._catalogue.nonces
        if signed is None:
            raise RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, "control plane not ready")
        try:
            self._org_root.verify(signed.signature, signed.body)
            entries = read_object(signed.body, "the list of nonces").get("nonces")
            return {text(entry, "nonce"): text(entry, "hostname") for entry in entries or ()}
        except (InvalidSignature, ProtoError) as error:
            reason = str(error) or "it is not signed by the org root key"
            message = f"the list of nonces can't be used: {reason}"
            raise RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, message) from error

    def _issue(self, csr_pem: str, hostname: str, now: datetime) -> dict[str, str]:
        issued: Issued = self._authority.issue(csr_pem, hostname, now, self._lifetime)
        self._store.log_certificate(issued.serial, hostname, issued.not_before, issued.not_after)
        return {"certPem": issued.pem, "notAfter": format_time(issued.not_after)}

    def _claims(self, token: object) -> Claims:
        if not isinstance(token, Mapping) or token.get("version") != TOKEN_VERSION:
            raise RequestRefused(HTTPStatus.UNAUTHORIZED, f"token is not of version {TOKEN_VERSION}")
        claims = token.get("claims")
        try:
            signature = base64.b64decode(str(token.get("signature")), validate=True)
            if not isinstance(claims, Mapping):
                raise ProtoError("claims is not an object")
            self._org_root.verify(signature, canonical(dict(claims)))
            return Claims(
                hostname=ids.require(ids.HOSTNAME, claims.get("hostname"), "hostname of the token"),
                fingerprint=text(claims, "expectedPubkeyFingerprint"),
                issued_at=parse_time(claims.get("issuedAt")),
                expires_at=parse_time(claims.get("expiresAt")),
                nonce=text(claims, "nonce"),
            )
        except (binascii.Error, InvalidSignature, ProtoError) as error:
            reason = str(error) or "it is not signed by the org root key"
            raise RequestRefused(HTTPStatus.UNAUTHORIZED, f"the token is not valid: {reason}") from error


def read_bootstrap_report(body: Mapping[str, Any]) -> dict[str, Any]:
    """What an operator is shown of a report: unauthenticated, so cut and of a known form; raises ProtoError.

    The token that the report carries is left out: it may still be good.
    """
    event = body.get("event")
    if not isinstance(event, Mapping):
        raise ProtoError("event is not an object")
    details = event.get("details", event)
    kind = REPORT_KINDS.get(str(event.get("event")), event.get("kind"))
    if kind not in REPORT_KINDS.values() or not isinstance(details, Mapping):
        raise ProtoError(f"event.event is not one of {', '.join(REPORT_KINDS)}")
    return {
        "hostname": ids.require(ids.HOSTNAME, body.get("hostname"), "hostname"),
        "agentVersion": clip(text(body, "agentVersion"), 64),
        "occurredAt": format_time(parse_time(body.get("occurredAt"))),
        "event": {"kind": kind, "reason": clip(text(details, "reason"), 1024)},
    }
