"""Whether a certificate chains to given issuers: signature, validity and basic constraints, and nothing more.

Agent certificates need no subject alternative name and follow no web profile, so a web verifier would refuse them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from nixfleet_agent.errors import IdentityError

#: Issuers between a leaf and its anchor; a longer path is a loop or an attack on our time.
_DEEPEST = 6
#: What `cryptography` raises for extensions that are malformed, stand twice, or hold a kind of name that it knows of
#: and does not read; the last two are no ValueErrors.
UNREADABLE = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


class ChainError(IdentityError):
    """No path of valid issuers leads from the certificate to an anchor."""


def verify_chain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    now: datetime,
) -> None:
    """Return when ``leaf`` chains to one of ``anchors``; a path may lead through ``intermediates``.

    Raises:
        ChainError: with the reason of the path that came furthest.
    """
    if not _within(leaf, now):
        raise ChainError("the certificate is not valid now")
    constraints = _basic_constraints(leaf)
    if constraints is not None and constraints.ca:
        raise ChainError("the certificate is a CA certificate, and an agent's must not be")
    reasons: list[str] = []
    if not _reaches(leaf, intermediates, anchors, now, reasons):
        reason = reasons[-1] if reasons else "none of the trusted issuers signed it"
        raise ChainError(f"the certificate does not chain to issuanceCaPems or ca_cert: {reason}")


def _reaches(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    now: datetime,
    reasons: list[str],
) -> bool:
    """Climb level by level until an anchor is among the issuers.

    An intermediate counts at the first level that it is found on, where the fewest are below it. Path by path, seven
    that had all signed one another took thousands of signature checks, with keys that their sender had chosen.
    """
    level, left = [leaf], list(intermediates)
    for below in range(_DEEPEST + 1):
        found = []
        for issuer in (*anchors, *left):
            if not any(_signed_by(child, issuer) for child in level):
                continue
            refusal = _issuer_refusal(issuer, below, now)
            if refusal is not None:
                reasons.append(f"{issuer.subject.rfc4514_string()[:200]} {refusal}")
            elif issuer in anchors:
                return True
            else:
                found.append(issuer)
        level, left = found, [other for other in left if other not in found]
    return False


def _signed_by(child: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _issuer_refusal(issuer: x509.Certificate, below: int, now: datetime) -> str | None:
    """Why ``issuer`` may not issue, or None."""
    if not _within(issuer, now):
        return "is not valid now"
    constraints = _basic_constraints(issuer)
    if constraints is None or not constraints.ca:
        return "is not a CA certificate"
    if constraints.path_length is not None and below > constraints.path_length:
        return f"allows {constraints.path_length} CA certificates below it, and the path has {below}"
    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return None
    return None if usage.key_cert_sign else "may not sign certificates"


def _within(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _basic_constraints(certificate: x509.Certificate) -> x509.BasicConstraints | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return None
