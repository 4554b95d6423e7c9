"""Renewal: a new certificate for the same key, and the way back when the control plane does not take it."""

from __future__ import annotations

from dataclasses import dataclass

from nixfleet_agent.certificates.enrollment import CALL_DEADLINE, Anchors, AnswerRefusedError
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import IdentityError, TransportError
from nixfleet_agent.identity import install
from nixfleet_agent.identity.certificate import AgentCertificate, check_answer
from nixfleet_agent.identity.credentials import Credentials, Identity
from nixfleet_agent.identity.csr import make_csr
from nixfleet_agent.net.answers import Answer, retry_after
from nixfleet_agent.net.client import SIGNATURE_LIMIT, ControlPlane
from nixfleet_agent.proto import enrollment as wire
from nixfleet_agent.threads.clock import Clock

#: The smallest thing that every control plane serves to its hosts and to nobody else.
_PROOF_PATH = "/v1/fleet.resolved/sig"
_PROOF_DEADLINE = 15.0
_NOT_WELCOME = (401, 403)


class NewCertificateRefusedError(IdentityError):
    """The control plane takes the old certificate and not the new one; the old one is back in use."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """What one try did. ``proven`` is False while the new certificate could not be tried, and None without one."""

    renewed: bool
    certificate: AgentCertificate
    remaining_fraction: float
    proven: bool | None = None


class Renewal:
    """Renews the certificate in ``credentials``, over connections that present it."""

    def __init__(
        self, config: Config, control_plane: ControlPlane, credentials: Credentials, clock: Clock, anchors: Anchors
    ) -> None:
        self._config = config
        self._path = config.client_cert
        self._control_plane = control_plane
        self._credentials = credentials
        self._clock = clock
        self._anchors = anchors

    def due(self, certificate: AgentCertificate) -> bool:
        """Whether less of its life is left than the configured fraction."""
        return certificate.remaining_fraction(self._clock.now()) < self._config.renewal_threshold_fraction

    def renew_once(self, *, force: bool = False) -> Renewed:
        """Renew when due, or always with ``force``; a new certificate is on disk, tried, and in use.

        Raises:
            IdentityError: nothing to renew, or the answer is not a certificate for this host
                (NewCertificateRefusedError: it was, and does not work).
            TransportError, AnswerRefusedError: try again later.
            ProtoError: the answer is not what the protocol says.
            StorageError: the certificate can't be written; the old one is in use.
        """
        current = self._credentials.current() or self._credentials.reload()
        if not force and not self.due(current.certificate):
            return self._result(False, current.certificate)
        new = self._ask(current)
        install.install(self._path, new, keep=current.certificate)
        candidate = Identity(current.generation + 1, new, current.key)
        proven = self._try_out(candidate, current)
        self._credentials.use(new, current.key)
        return self._result(True, new, proven)

    def prove(self) -> bool | None:
        """Try the certificate in use if it has not worked yet; None when there is nothing left to prove.

        Raises:
            NewCertificateRefusedError: it is refused where the one before is taken; that one is back in use.
            StorageError: the disk refused.
        """
        if not install.is_unverified(self._path):
            return None
        current = self._credentials.current() or self._credentials.reload()
        kept = install.kept(self._path)
        if kept is None or not kept.belongs_to(current.key.public_raw) or kept.expired(self._clock.now()):
            # Nothing to go back to: what is left of the old pair is in the way of the next renewal.
            install.commit(self._path)
            return None
        return self._try_out(current, Identity(0, kept, current.key))

    def _ask(self, current: Identity) -> AgentCertificate:
        anchors = self._anchors()
        body = wire.renew_body(make_csr(current.key, self._config.machine_id))
        answer = self._control_plane.post(wire.RENEW_PATH, body, deadline=CALL_DEADLINE)
        if not answer.ok:
            advice = " (was it revoked? enroll again with a new token)" if answer.status in _NOT_WELCOME else ""
            raise AnswerRefusedError(
                f"renewal answered {answer.status}: {answer.excerpt(200)}{advice}",
                answer.status,
                retry_after(answer, self._clock.now()),
            )
        return check_answer(
            wire.CertificateAnswer.parse(answer.body).cert_pem,
            public_raw=current.key.public_raw,
            machine_id=self._config.machine_id,
            current=current.certificate,
            anchors=anchors,
            now=self._clock.now(),
        )

    def _try_out(self, new: Identity, old: Identity) -> bool:
        """True: it works, and the old one is dropped. False: nobody answered either of them, both are kept.

        A refused client certificate shows as an alert, a reset or a 401 depending on what terminates TLS, and a
        control plane that is down shows as a reset too: only the old certificate working where the new one does
        not tells them apart.
        """
        refusal = self._refusal(new)
        if refusal is not None:
            if old.certificate.expired(self._clock.now()) or self._refusal(old) is not None:
                return False
            # Once more: the control plane may have come up between the two.
            refusal = self._refusal(new)
        if refusal is None:
            install.commit(self._path)
            return True
        install.go_back(self._path)
        self._credentials.use(old.certificate, old.key)
        raise NewCertificateRefusedError(
            f"the control plane refuses the renewed certificate ({refusal}): the one before is back in use"
        )

    def _refusal(self, identity: Identity) -> str | None:
        """Why a call that presents ``identity`` does not work; None when it does."""
        try:
            answer: Answer = self._control_plane.try_identity(
                identity, _PROOF_PATH, deadline=_PROOF_DEADLINE, limit=SIGNATURE_LIMIT
            )
        except TransportError as error:
            return str(error)
        return f"status {answer.status}" if answer.status in _NOT_WELCOME else None

    def _result(self, renewed: bool, certificate: AgentCertificate, proven: bool | None = None) -> Renewed:
        return Renewed(renewed, certificate, certificate.remaining_fraction(self._clock.now()), proven)
