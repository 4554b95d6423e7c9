"""Enrollment: from a bootstrap token to the first certificate, one try at a time.

``Enrollment`` knows how one try goes and what its failure means; when the next one comes is its caller's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cryptography import x509

from nixfleet_agent import __version__
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import (
    EXIT_UNREACHABLE,
    AgentError,
    EnrollmentRefusedError,
    IdentityError,
    ProtoError,
    TransportError,
    TrustError,
)
from nixfleet_agent.identity import install
from nixfleet_agent.identity.certificate import AgentCertificate, check_answer
from nixfleet_agent.identity.chain import IssuerError
from nixfleet_agent.identity.credentials import Credentials
from nixfleet_agent.identity.csr import make_csr
from nixfleet_agent.identity.host_key import HostKey, load_host_key
from nixfleet_agent.identity.token import check_token, load_token
from nixfleet_agent.net.answers import Answer, retry_after
from nixfleet_agent.net.client import ControlPlane
from nixfleet_agent.proto import enrollment as wire
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.threads.clock import Clock

#: The whole of a call; the control plane signs while we wait.
CALL_DEADLINE = 30.0
#: The report must not hold up what it reports.
_REPORT_DEADLINE = 10.0
#: What a refusal most often means. None is final: the list of tokens and the fleet reach a control plane minutes after
#: a host is installed, and whoever stands before it can say these words too.
_ADVICE = {
    401: "it does not know the token yet, or the token is not valid: is it on the fleet's list, for this host's key?",
    403: "it does not know this host yet: is the host in the fleet?",
    409: "the token was used already, maybe by this host when it was stopped before the answer came: make a new one",
}


class NotReadyError(AgentError):
    """The control plane has just started and can't enroll yet; the next try is worth making soon."""

    exit_code = EXIT_UNREACHABLE


class AnswerRefusedError(AgentError):
    """The control plane answered with a status that gives no certificate; ``retry_after`` is in seconds or None."""

    exit_code = EXIT_UNREACHABLE

    def __init__(self, message: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class NotKnownYetError(AnswerRefusedError):
    """The control plane does not take this host or its token, which is how the first minutes of a new host begin."""


class IssuerUnknownError(IdentityError):
    """A certificate for this host came whose issuer is not known here: it is kept, and tried when that changes."""


Anchors = Callable[[], Sequence[x509.Certificate]]


class Enrollment:
    """One host's enrollment with one control plane."""

    def __init__(
        self, config: Config, control_plane: ControlPlane, credentials: Credentials, clock: Clock, anchors: Anchors
    ) -> None:
        self._config = config
        self._control_plane = control_plane
        self._credentials = credentials
        self._clock = clock
        self._anchors = anchors
        self._reported: str | None = None

    @property
    def possible(self) -> bool:
        """Whether a token is configured."""
        return self._config.bootstrap_token_file is not None

    def enroll_once(self) -> AgentCertificate:
        """Ask once; on success the certificate is on disk and in use.

        Raises:
            EnrollmentRefusedError: final, by a local check: the token can never work; says what to do.
            NotReadyError: cold start.
            TransportError, AnswerRefusedError: try again later.
            IdentityError: key, token file or answer can't be used (TokenNotYetValidError: wait; IssuerUnknownError:
                the answer is kept).
            TrustError: the trust file, which names the issuers to expect, can't be used.
            StorageError: the certificate can't be written.
        """
        path = self._config.bootstrap_token_file
        if path is None:
            raise EnrollmentRefusedError("no bootstrap token: set bootstrap_token_file to enroll this host")
        key = load_host_key(self._config.client_key)
        token = None
        try:
            if (held := self.take_kept()) is not None:
                return held
            token = load_token(path)
            check_token(token, machine_id=self._config.machine_id, key=key, now=self._clock.now())
            return self._ask(token, key)
        except EnrollmentRefusedError as error:
            self.report(wire.ENROLLMENT_FAILED, str(error), token)
            raise
        except TrustError as error:
            self.report(wire.TRUST_ERROR, str(error), token)
            raise

    def take_kept(self) -> AgentCertificate | None:
        """The certificate that a token was spent for already, in use once the trust file or ca_cert vouches for it.

        Raises:
            StorageError: it can't be written; it is in use all the same.
        """
        pem = install.unverified_answer(self._config.client_cert)
        if pem is None:
            return None
        try:
            key = load_host_key(self._config.client_key)
            new = self._checked(pem, key, self._anchors())
        except (IdentityError, TrustError):
            return None
        return self._install(new, key)

    def report(self, kind: str, reason: str, token: wire.BootstrapToken | None = None) -> bool:
        """Tell the operator through the control plane, once for each reason; True when it was taken.

        Best effort: the failure that is reported is the caller's news, and one on top of it changes nothing.
        """
        if self._reported == f"{kind} {reason}":
            return False
        body = wire.report_body(
            hostname=self._config.machine_id,
            agent_version=__version__,
            at=self._clock.now(),
            token=token,
            kind=kind,
            reason=reason,
        )
        try:
            answer = self._control_plane.post(
                wire.REPORT_PATH, body, deadline=_REPORT_DEADLINE, client_certificate=False
            )
        except TransportError:
            return False
        if answer.ok or answer.status == 404:
            # A control plane without this endpoint will not have it at the next try either.
            self._reported = f"{kind} {reason}"
        return answer.ok

    def _ask(self, token: wire.BootstrapToken, key: HostKey) -> AgentCertificate:
        # Before the call: a token is used up by it, and an anchor that can't be read would waste it.
        anchors = self._anchors()
        body = wire.enroll_body(token, make_csr(key, self._config.machine_id))
        answer = self._control_plane.post(wire.ENROLL_PATH, body, deadline=CALL_DEADLINE, client_certificate=False)
        self._require_certificate(answer, token)
        try:
            pem = wire.CertificateAnswer.parse(answer.body).cert_pem
            new = self._checked(pem, key, anchors)
        except IssuerError as error:
            raise self._keep(pem, error, token) from error
        except (IdentityError, ProtoError) as error:
            self.report(wire.ENROLLMENT_FAILED, str(error), token)
            raise
        return self._install(new, key)

    def _checked(self, pem: str, key: HostKey, anchors: Sequence[x509.Certificate]) -> AgentCertificate:
        return check_answer(
            pem,
            public_raw=key.public_raw,
            machine_id=self._config.machine_id,
            current=None,
            anchors=anchors,
            now=self._clock.now(),
        )

    def _install(self, new: AgentCertificate, key: HostKey) -> AgentCertificate:
        # In use before it is on disk: the token is spent, and a full disk must not cost the host its identity.
        self._credentials.use(new, key)
        install.install(self._config.client_cert, new, keep=None)
        install.drop_unverified(self._config.client_cert)
        return new

    def _keep(self, pem: str, error: IssuerError, token: wire.BootstrapToken) -> IssuerUnknownError:
        place = install.keep_unverified(self._config.client_cert, pem)
        reason = f"{error}: add its issuer to issuanceCaPems or ca_cert; what came is kept in {place} and is used then"
        self.report(wire.ENROLLMENT_FAILED, reason, token)
        return IssuerUnknownError(reason)

    def _require_certificate(self, answer: Answer, token: wire.BootstrapToken) -> None:
        if answer.ok:
            return
        if answer.status == 503 and wire.COLD_START in answer.excerpt(200):
            raise NotReadyError("the control plane has just started and is not ready to enroll hosts")
        message = f"enrollment answered {answer.told()}"
        if answer.status in _ADVICE:
            until = format_time(token.expires_at)
            message += f": {_ADVICE[answer.status]} (tried again until the token expires at {until})"
        kind = NotKnownYetError if answer.status in (401, 403) else AnswerRefusedError
        raise kind(message, answer.status, retry_after(answer, self._clock.now()))
