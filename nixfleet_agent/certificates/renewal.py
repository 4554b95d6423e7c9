"""Renewal: a new certificate for the same key, and the way back when the control plane does not take it.

Nothing that the control plane says makes this host let go of a pair that works: a new one is proven only by the 2xx
that the old one gets, and the old one stays until it expires, to be tried whenever the new one is refused.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from nixfleet_agent.certificates.enrollment import CALL_DEADLINE, Anchors, AnswerRefusedError
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import IdentityError, TransportError
from nixfleet_agent.identity import install
from nixfleet_agent.identity.certificate import AgentCertificate, CertificateError, check_answer, load_certificate
from nixfleet_agent.identity.credentials import Credentials, Identity
from nixfleet_agent.identity.csr import make_csr
from nixfleet_agent.net.answers import Answer, retry_after
from nixfleet_agent.net.client import ControlPlane
from nixfleet_agent.proto import enrollment as wire
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.trust.verify import SIGNATURE_LIMIT

#: The smallest thing that every control plane serves to its hosts and to nobody else.
_PROOF_PATH = "/v1/fleet.resolved/sig"
_PROOF_DEADLINE = 15.0
_NOT_WELCOME = (401, 403)
#: Certificates taken in one day: enough for those that live for an hour, and an end to a control plane that answers
#: with ever new ones that are due at once.
MOST_A_DAY = 100
_DAY = 24 * 3600.0


class TooManyRenewalsError(IdentityError):
    """The control plane hands out certificates that are due at once; the present one is used meanwhile."""


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
        self._renewed_at: deque[float] = deque(maxlen=MOST_A_DAY)

    def due(self, certificate: AgentCertificate) -> bool:
        """Whether less of its life is left than the configured fraction."""
        return certificate.remaining_fraction(self._clock.now()) < self._config.renewal_threshold_fraction

    def renew_once(self, *, force: bool = False) -> Renewed:
        """Renew when due, or always with ``force``; a new certificate is on disk, tried, and in use.

        Raises:
            IdentityError: nothing to renew, or the answer is not a certificate for this host
                (NewCertificateRefusedError: it was, and does not work; TooManyRenewalsError: not today).
            TransportError, AnswerRefusedError: try again later.
            ProtoError: the answer is not what the protocol says.
            StorageError: the certificate can't be written; the old one is in use.
        """
        current = self._credentials.current() or self._credentials.reload()
        if not force and not self.due(current.certificate):
            return self._result(False, current.certificate)
        self._count()
        new = self._ask(current)
        install.install(self._path, new, keep=current.certificate)
        self._renewed_at.append(self._clock.monotonic())
        candidate = Identity(current.generation + 1, new, current.key)
        proven = self._try_out(candidate, current)
        self._credentials.use(new, current.key)
        return self._result(True, new, proven)

    def prove(self) -> bool | None:
        """Try the certificate in use if it has not worked yet; None when there is nothing left to prove.

        Raises:
            NewCertificateRefusedError: it does not get what the one before gets; that one is back in use.
            StorageError: the disk refused.
        """
        if not install.previous_path(self._path).exists():
            return None
        current = self._credentials.current() or self._credentials.reload()
        old = self._way_back(current)
        if old is None:
            # What is left of the old pair is in the way of the next renewal.
            install.forget_previous(self._path)
            return None
        return self._try_out(current, old) if install.is_unverified(self._path) else None

    def fall_back(self) -> bool | None:
        """Use the pair before while the present one is refused; None when it is not, False when that one is too.

        Raises:
            StorageError: the disk refused.
        """
        current = self._credentials.current()
        if current is None or self.refusal() is None or self._failure(current) is None:
            return None
        old = self._way_back(current)
        if old is None or self._failure(old) is not None:
            return False
        install.exchange(self._path, current.certificate, old.certificate)
        self._credentials.use(old.certificate, old.key)
        return True

    def refusal(self) -> str | None:
        """How the certificate in use was refused, by whomever, since it last worked; None when it was not."""
        current = self._credentials.current()
        return None if current is None else self._control_plane.welcome.refusal(current.generation)

    def restore(self) -> bool:
        """Put the pair before in place of a file that is damaged, as a write into a mount point may leave it.

        Raises:
            StorageError: the disk refused.
        """
        old = install.kept(self._path)
        if old is None or old.expired(self._clock.now()):
            return False
        try:
            load_certificate(self._path)
        except CertificateError:
            install.go_back(self._path)
            return True
        return False

    def _way_back(self, current: Identity) -> Identity | None:
        """The pair before, where it can still work."""
        old = install.kept(self._path)
        if old is None or not old.belongs_to(current.key.public_raw) or old.expired(self._clock.now()):
            return None
        return Identity(0, old, current.key)

    def _count(self) -> None:
        first = self._renewed_at[0] if len(self._renewed_at) == MOST_A_DAY else None
        if first is not None and self._clock.monotonic() - first < _DAY:
            raise TooManyRenewalsError(
                f"{MOST_A_DAY} certificates came within a day, each due again at once: none is asked for until"
                " tomorrow; look at the lifetime that the control plane gives them"
            )

    def _ask(self, current: Identity) -> AgentCertificate:
        anchors = self._anchors()
        body = wire.renew_body(make_csr(current.key, self._config.machine_id))
        answer = self._control_plane.post(wire.RENEW_PATH, body, deadline=CALL_DEADLINE)
        if not answer.ok:
            advice = " (was it revoked? enroll again with a new token)" if answer.status in _NOT_WELCOME else ""
            raise AnswerRefusedError(
                f"renewal answered {answer.told()}{advice}",
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
        """True: it works, and the old one is kept beside. False: neither got a 2xx, so nothing is proven.

        A refused client certificate shows as an alert, a reset, a 401 or a page depending on what terminates TLS,
        and a control plane that is down shows as a reset too: only the old certificate getting a 2xx where the new
        one does not tells them apart.
        """
        failure = self._failure(new)
        if failure is not None:
            if old.certificate.expired(self._clock.now()) or self._failure(old) is not None:
                return False
            # Once more: the control plane may have come up between the two.
            failure = self._failure(new)
        if failure is None:
            install.commit(self._path, new.certificate)
            return True
        install.go_back(self._path)
        self._credentials.use(old.certificate, old.key)
        raise NewCertificateRefusedError(
            f"the control plane does not take the renewed certificate ({failure}): the one before is back in use"
        )

    def _failure(self, identity: Identity) -> str | None:
        """Why a call that presents ``identity`` gets no 2xx; None when it does."""
        try:
            answer: Answer = self._control_plane.try_identity(
                identity, _PROOF_PATH, deadline=_PROOF_DEADLINE, limit=SIGNATURE_LIMIT
            )
        except TransportError as error:
            return str(error)
        return None if answer.ok else answer.told()

    def _result(self, renewed: bool, certificate: AgentCertificate, proven: bool | None = None) -> Renewed:
        return Renewed(renewed, certificate, certificate.remaining_fraction(self._clock.now()), proven)
