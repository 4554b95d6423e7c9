"""The agent's certificate: reading it, how much of its life is left, and the checks on a new one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from nixfleet_agent.errors import IdentityError
from nixfleet_agent.identity.chain import UNREADABLE, check_leaf, issuers_of, verify_chain
from nixfleet_agent.proto.ids import case_hint
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.reading import read_regular
from nixfleet_agent.text import printable

#: Largest certificate file or answer that is read; a leaf with its chain takes a few kilobytes.
SIZE_LIMIT = 256 * 1024
#: A leaf and the issuers below the anchor; more than these is no chain that a fleet uses.
_MOST_CERTIFICATES = 8
#: How far the issuer's clock may be ahead of ours: a token is used up by its answer, and many issuers date their
#: certificates from the very second.
_CLOCK_SKEW = timedelta(seconds=60)
#: A longer life is no renewal policy: it would never come due again, and nobody could end it but by revocation.
_LONGEST_LIFE = timedelta(days=3660)
#: What is installed goes out with every handshake, and servers read little more than this.
_INSTALLED_LIMIT = 32 * 1024
_SUFFIX = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")


class CertificateError(IdentityError):
    """A certificate can't be read, or is not one that this host may use."""


@dataclass(frozen=True, slots=True)
class AgentCertificate:
    """A leaf certificate and the issuers that came with it in the same PEM text."""

    leaf: x509.Certificate
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def not_before(self) -> datetime:
        return self.leaf.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        return self.leaf.not_valid_after_utc

    @property
    def serial(self) -> int:
        return self.leaf.serial_number

    @property
    def common_name(self) -> str | None:
        """The subject's common name when there is exactly one, as text."""
        names = self.leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        value = names[0].value if len(names) == 1 else None
        return value if isinstance(value, str) else None

    @property
    def public_raw(self) -> bytes | None:
        """The 32-byte Ed25519 public key, or None for a key of another algorithm."""
        try:
            public = self.leaf.public_key()
        except (ValueError, UnsupportedAlgorithm):
            return None
        if not isinstance(public, Ed25519PublicKey):
            return None
        return public.public_bytes(Encoding.Raw, PublicFormat.Raw)

    def pem(self) -> bytes:
        """The certificates alone, written anew: whatever else stood in the text they came from is left behind."""
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in (self.leaf, *self.chain))

    def remaining_fraction(self, now: datetime) -> float:
        """How much of its life is left, from 1.0 (not begun) to 0.0 (expired)."""
        life = (self.not_after - self.not_before).total_seconds()
        left = (self.not_after - now).total_seconds()
        return min(1.0, max(0.0, left / life)) if life > 0 else 0.0

    def expired(self, now: datetime) -> bool:
        return now > self.not_after

    def belongs_to(self, public_raw: bytes) -> bool:
        """Whether its public key is this one."""
        return self.public_raw == public_raw


def parse_certificates(pem: bytes, what: str) -> AgentCertificate:
    """The certificates of a PEM text, the leaf first; ``what`` names it in messages.

    Raises:
        CertificateError: empty, too large, not PEM, or not X.509.
    """
    if len(pem) > SIZE_LIMIT:
        raise CertificateError(f"{what} is larger than {SIZE_LIMIT // 1024} KiB")
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        for certificate in certificates:
            # Read now what the properties read later: a field that can't be decoded is refused here, once.
            _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
            _ = certificate.subject, certificate.issuer, certificate.extensions
    except (*UNREADABLE, UnsupportedAlgorithm) as error:
        raise CertificateError(f"{what} is not a PEM certificate: {str(error)[:200]}") from error
    if not 1 <= len(certificates) <= _MOST_CERTIFICATES:
        raise CertificateError(f"{what} has {len(certificates)} certificates, not 1 to {_MOST_CERTIFICATES}")
    return AgentCertificate(certificates[0], tuple(certificates[1:]))


def load_certificate(path: Path) -> AgentCertificate:
    """Read a certificate file.

    Raises:
        CertificateError: missing, unreadable, or as for ``parse_certificates``.
    """
    try:
        raw = read_regular(path, SIZE_LIMIT)
    except FileNotFoundError as error:
        raise CertificateError(f"there is no certificate at {path}: run `nixfleet-agent enroll`") from error
    except OSError as error:
        raise CertificateError(f"can't read {path}: {error.strerror}") from error
    return parse_certificates(raw, str(path))


def check_answer(
    pem: str,
    *,
    public_raw: bytes,
    machine_id: str,
    current: AgentCertificate | None,
    anchors: Sequence[x509.Certificate],
    now: datetime,
) -> AgentCertificate:
    """The certificate that a control plane answered with, once it is known to be ours to use, and its verified path.

    The control plane is not trusted here either: a certificate for another key would cut the host off, one for
    another name would make it speak for another host. ``anchors`` empty: no chain is asked for. A certificate that
    begins within a minute from now is valid: two clocks that are right may differ by that.

    Raises:
        CertificateError: unreadable, for another key or name, not valid now or for absurdly long, no newer than
            ``current``, or too large to present.
        ChainError: not for client authentication, with critical extensions that are not understood, or not chaining
            to ``anchors``.
    """
    new = parse_certificates(pem.encode("utf-8", "surrogatepass"), "the certificate in the answer")
    if not new.belongs_to(public_raw):
        raise CertificateError("the certificate in the answer is for another key than this host's")
    if not name_is_ours(new.common_name, machine_id):
        raise CertificateError(
            f"the certificate in the answer names {printable(new.common_name, 200)!r},"
            f" not {machine_id!r} or 'agent-{machine_id}.<suffix>'{case_hint(new.common_name, machine_id)}"
        )
    judged_at = _check_lifetime(new, now)
    if current is not None and new.not_after <= current.not_after:
        raise CertificateError(
            f"the certificate in the answer expires at {format_time(new.not_after)},"
            f" no later than the present one ({format_time(current.not_after)})"
        )
    check_leaf(new.leaf)
    if anchors:
        path = verify_chain(new.leaf, new.chain, anchors, judged_at)
    else:
        path = issuers_of(new.leaf, new.chain, judged_at)
    installed = AgentCertificate(new.leaf, path)
    if len(installed.pem()) > _INSTALLED_LIMIT:
        raise CertificateError(f"the certificate in the answer takes more than {_INSTALLED_LIMIT // 1024} KiB")
    return installed


def _check_lifetime(new: AgentCertificate, now: datetime) -> datetime:
    """The moment at which its chain is to be valid (raises CertificateError)."""
    judged_at = max(now, min(new.not_before, now + _CLOCK_SKEW))
    if not new.not_before <= judged_at <= new.not_after:
        raise CertificateError(
            f"the certificate in the answer is valid from {format_time(new.not_before)}"
            f" to {format_time(new.not_after)}, and this host's clock reads {format_time(now)}"
        )
    if new.not_after - new.not_before > _LONGEST_LIFE:
        raise CertificateError(
            f"the certificate in the answer lives for {(new.not_after - new.not_before).days} days,"
            f" and more than {_LONGEST_LIFE.days} is no lifetime of an agent's"
        )
    return judged_at


def name_is_ours(common_name: str | None, machine_id: str) -> bool:
    """Whether a common name is the machine id, or ``agent-<machine id>.<suffix>``."""
    if common_name == machine_id:
        return True
    prefix = f"agent-{machine_id}."
    if common_name is None or not common_name.startswith(prefix):
        return False
    return _SUFFIX.fullmatch(common_name[len(prefix) :]) is not None
