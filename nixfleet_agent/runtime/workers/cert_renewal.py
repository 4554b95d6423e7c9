"""The cert_renewal worker: keeps this host's certificate fresh, and gets the first one.

It owns when to enroll, renew and try again; how is in ``certificates``. Nothing that it meets on disk or on the wire
ends it: a host without a valid certificate still runs, probes and rolls back.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from nixfleet_agent.certificates.enrollment import (
    AnswerRefusedError,
    Enrollment,
    IssuerUnknownError,
    NotKnownYetError,
    NotReadyError,
)
from nixfleet_agent.certificates.renewal import Renewal
from nixfleet_agent.errors import (
    AgentError,
    EnrollmentRefusedError,
    IdentityError,
    TransportError,
)
from nixfleet_agent.identity.certificate import AgentCertificate, load_certificate
from nixfleet_agent.identity.host_key import HostKeyError, permission_warnings
from nixfleet_agent.identity.token import TokenMissingError, TokenNotYetValidError
from nixfleet_agent.net.failures import ForeignAnswerError
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.threads.backoff import Backoff
from nixfleet_agent.threads.timers import Timer
from nixfleet_agent.threads.worker import Worker

#: Renewal has half a certificate's life to succeed: its backoff is this much longer than that of the other workers.
_RENEWAL_PATIENCE = 30
#: A control plane that has just started is asked again after this many times the initial backoff.
_COLD_START_PATIENCE = 10
#: Longest that one turn may block in calls: two trials, an enrollment and its report, then a renewal and the trials
#: before and after it.
_LONGEST_TURN = 240.0
#: Reasons remembered as said; a message that differs every time must not fill the memory.
_MOST_REASONS = 16


#: The status for a token that was used already; the next try is worth less.
_SPENT = 409
#: What time mends by itself.
_PASSING = (TransportError, NotReadyError, NotKnownYetError, TokenNotYetValidError, TokenMissingError)


class CertificateRefusedError(IdentityError):
    """The control plane, or what stands before it, refuses the certificate in use, and there is no other one."""


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """The section ``certificate`` of the status board."""

    path: str
    state: str  # valid | due | expired | missing | unreadable | no_key
    not_after: datetime | None
    remaining_fraction: float | None
    serial: str | None
    failure: str | None
    next_try_secs: float | None


class CertRenewalWorker(Worker):
    """Every ``cert_check_interval`` it reads the certificate and does what its state asks for."""

    name = "cert_renewal"

    def __init__(
        self,
        services: Services,
        enrollment: Enrollment,
        renewal: Renewal,
        *,
        enrollment_refused: Callable[[EnrollmentRefusedError], None],
        rng: random.Random | None = None,
    ) -> None:
        """``enrollment_refused`` is told of a final refusal while there is no certificate at all; it may end the
        process, and when it returns the worker goes on and tries again later.
        """
        super().__init__(services.shutdown, services.clock)
        tuning = services.config.tuning
        self._config = services.config
        self._credentials = services.credentials
        self._enrollment = enrollment
        self._renewal = renewal
        self._status = services.board
        self._enrollment_refused = enrollment_refused
        self._interval = tuning.cert_check_interval
        self.limit = max(self.limit, 2 * self._interval + _LONGEST_TURN)
        self._timer = Timer(self._interval, services.clock, services.shutdown)
        first, longest = tuning.backoff_initial, tuning.backoff_max
        self._soon = Backoff(first, longest, rng)
        self._later = Backoff(_RENEWAL_PATIENCE * first, _RENEWAL_PATIENCE * longest, rng)
        self._cold_start = _COLD_START_PATIENCE * first
        #: Monotonic time of the next try after a failure; None when none is pending.
        self._next_try: float | None = None
        self._failure: str | None = None
        #: The certificate in use is refused: over as soon as it is let in again.
        self._turned_away = False
        self._said: set[str] = set()
        self._file_failure: str | None = None
        #: The certificate may be sound, and is of no use without its key.
        self._key_failed = False
        self._seen_generation = 0

    def run(self) -> None:
        for warning in permission_warnings(
            self._config.client_key, self._config.ssh_host_key_file, self._config.bootstrap_token_file
        ):
            self.log.warning(warning)
        while self._wait():
            self.alive()
            self._turn()
            self.alive()

    def kick(self) -> None:
        """Read the certificate again now, and try at once what is waiting (from any thread)."""
        self._next_try = None
        self._timer.kick()

    def _wait(self) -> bool:
        """Until the next check or the pending try, whichever is sooner; False on shutdown."""
        left = None if self._next_try is None else self._next_try - self.clock.monotonic()
        if left is None or left >= self._interval:
            return self._timer.wait()
        self.clock.wait(self._timer.kicked, max(0.0, left))
        self._timer.kicked.clear()
        return not self.shutdown.is_set

    def _turn(self) -> None:
        try:
            certificate = self._look()
            if self._turned_away and self._renewal.refusal() is None:
                self._settled()
            if self._credentials.current() is None and (held := self._enrollment.take_kept()) is not None:
                self._succeeded("enrolled", held)
                certificate = held
            keyless = self._key_failed and self._credentials.current() is None
            if self._may_try() and not keyless:
                self._act(certificate)
        except EnrollmentRefusedError as error:
            self._failed(error, self._later.next())
            # With a damaged file in its place there was a certificate: an operator may repair it.
            if not self._config.client_cert.exists():
                self._enrollment_refused(error)
        except NotReadyError as error:
            self._failed(error, self._cold_start)
        except TokenNotYetValidError as error:
            wait = (error.valid_from - self.clock.now()).total_seconds()
            self._failed(error, min(max(wait, self._cold_start), self._interval))
        except AgentError as error:
            enrolling = self._credentials.current() is None
            soon = enrolling and not (isinstance(error, AnswerRefusedError) and error.status == _SPENT)
            self._failed(error, self._pause_after(error, self._soon if soon else self._later))
        self._publish()

    def _look(self) -> AgentCertificate | None:
        """The certificate on disk, put in use when it is new; None when there is none or it is damaged."""
        certificate = None
        failure: str | None = None
        self._key_failed = False
        try:
            certificate = load_certificate(self._config.client_cert)
            self._credentials.reload()
        except IdentityError as error:
            self._key_failed = isinstance(error, HostKeyError)
            # No file is no fault before enrollment, and what follows from it is said there.
            failure = str(error) if self._key_failed or self._config.client_cert.exists() else None
            if failure is not None and self._renewal.restore():
                self.log.error("%s: the certificate before it is back in its place", failure)
                return self._look()
        if failure is not None and failure != self._file_failure:
            self.log.error("%s", failure)
        self._file_failure = failure
        if self._credentials.generation != self._seen_generation:
            # Somebody put another certificate in place: what failed with the one before says nothing about it.
            self._seen_generation = self._credentials.generation
            self._settled()
        return certificate

    def _may_try(self) -> bool:
        return self._next_try is None or self.clock.monotonic() >= self._next_try

    def _act(self, on_disk: AgentCertificate | None) -> None:
        """Enroll, renew, go back to the pair before, or finish a renewal, as the certificate asks for.

        Raises:
            AgentError: what could not be done; it is tried again.
        """
        current = self._credentials.current()
        refused = self._refused() if current is not None else None
        if current is None or refused is not None or current.certificate.expired(self.clock.now()):
            if self._enrollment.possible and self._enroll(can_renew=current is not None):
                return
            if current is None:
                raise IdentityError(
                    f"there is no usable certificate at {self._config.client_cert} and no bootstrap token:"
                    " set bootstrap_token_file, or run `nixfleet-agent enroll`"
                )
            if refused is None:
                self._say_expired(current.certificate)
        self._renewal.prove()
        # A certificate file that was lost or damaged is replaced while the one in memory still works.
        result = self._renewal.renew_once(force=on_disk is None)
        if result.renewed:
            self._succeeded("renewed", result.certificate)
        elif refused is not None:
            raise CertificateRefusedError(
                f"this host's certificate is refused ({refused}): is the host in the fleet, or was it revoked?"
                " A new bootstrap token gets another one"
            )
        else:
            self._settled()

    def _refused(self) -> str | None:
        """How the certificate in use is refused, where the one before it does not work either."""
        back = self._renewal.fall_back()
        if back is True:
            self.log.warning("the certificate in use is refused: the one before it works, and is back in use")
        return self._renewal.refusal() if back is False else None

    def _enroll(self, *, can_renew: bool) -> bool:
        """Whether a new certificate is there; a refusal is raised only where there is nothing to renew."""
        try:
            new = self._enrollment.enroll_once()
        except (EnrollmentRefusedError, AnswerRefusedError, ForeignAnswerError, IssuerUnknownError) as error:
            # The token of long ago still lies there when a host comes back after months with an expired certificate.
            if not can_renew:
                raise
            self._note(error)
            return False
        self._succeeded("enrolled", new)
        return True

    def _say_expired(self, certificate: AgentCertificate) -> None:
        self.log.error(
            "the client certificate expired at %s: trying to renew it; if the control plane refuses,"
            " put a bootstrap token in place and set bootstrap_token_file",
            format_time(certificate.not_after),
        )

    def _pause_after(self, error: AgentError, backoff: Backoff) -> float:
        asked = error.retry_after if isinstance(error, AnswerRefusedError) else None
        return backoff.next(at_least=asked or 0.0)

    def _succeeded(self, what: str, certificate: AgentCertificate) -> None:
        self.log.info("certificate %s: valid until %s", what, format_time(certificate.not_after))
        self._settled()

    def _settled(self) -> None:
        self._soon.reset()
        self._later.reset()
        self._next_try = None
        self._failure = None
        self._turned_away = False
        self._said.clear()
        self._seen_generation = self._credentials.generation

    def _failed(self, error: AgentError, pause: float) -> None:
        self._next_try = self.clock.monotonic() + pause
        self._turned_away = isinstance(error, CertificateRefusedError)
        self._note(error)

    def _note(self, error: AgentError) -> None:
        """The first failure and each change of reason in full, repeats for those who look closer."""
        reason = str(error)
        repeat = reason in self._said
        self._failure = reason
        if len(self._said) >= _MOST_REASONS:
            self._said.clear()
        self._said.add(reason)
        if repeat:
            self.log.debug("still no new certificate: %s", reason)
        elif isinstance(error, _PASSING):
            self.log.warning("no new certificate yet: %s", reason)
        else:
            self.log.error("no new certificate: %s", reason)

    def _publish(self) -> None:
        current = self._credentials.current()
        now = self.clock.now()
        next_try = None if self._next_try is None else max(0.0, self._next_try - self.clock.monotonic())
        certificate = None if current is None else current.certificate
        if certificate is None:
            state = "unreadable" if self._config.client_cert.exists() else "missing"
            state = "no_key" if self._key_failed else state
        elif certificate.expired(now):
            state = "expired"
        else:
            state = "due" if self._renewal.due(certificate) else "valid"
        self._status.publish(
            "certificate",
            CertificateStatus(
                path=str(self._config.client_cert),
                state=state,
                not_after=None if certificate is None else certificate.not_after,
                remaining_fraction=None if certificate is None else certificate.remaining_fraction(now),
                serial=None if certificate is None else format(certificate.serial, "x"),
                failure=self._failure or self._file_failure,
                next_try_secs=next_try,
            ),
        )
