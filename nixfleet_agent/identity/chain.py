"""Whether a certificate chains to given issuers: signature, validity, constraints and usage, and nothing more.

Agent certificates need no subject alternative name and follow no web profile, so a web verifier would refuse them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from nixfleet_agent.errors import IdentityError
from nixfleet_agent.text import printable

#: Issuers between a leaf and its anchor; a longer path is a loop or an attack on our time.
_DEEPEST = 6
#: What `cryptography` raises for extensions that are malformed, stand twice, or hold a kind of name that it knows of
#: and does not read; the last two are no ValueErrors.
UNREADABLE = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
#: Critical extensions that are looked at here, or bind nothing of ours; any other one must not be passed over
#: (RFC 5280, section 4.2).
_UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
_FOR_CLIENTS = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
_Kind = TypeVar("_Kind", bound=x509.ExtensionType)
Issuers = tuple[x509.Certificate, ...]


class ChainError(IdentityError):
    """No path of valid issuers leads from the certificate to an anchor, or it is not one for an agent."""


class IssuerError(ChainError):
    """Nobody who is trusted here issued it: another CA file or trust file may change that."""


def verify_chain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    now: datetime,
) -> Issuers:
    """Those of ``intermediates`` through which ``leaf`` chains to one of ``anchors``, in order.

    Whatever else came along is nothing that anybody vouches for.

    Raises:
        ChainError: with the reason of the path that came furthest.
    """
    if not _within(leaf, now):
        raise ChainError("the certificate is not valid now")
    reasons: list[str] = []
    path = _climb(leaf, intermediates, anchors, now, reasons)
    if path is None:
        reason = reasons[-1] if reasons else f"none of the trusted issuers signed it, but {_name(leaf.issuer)}"
        raise IssuerError(f"the certificate does not chain to issuanceCaPems or ca_cert: {reason}")
    return path


def check_leaf(leaf: x509.Certificate) -> None:
    """What a certificate must be to serve an agent, whoever issued it.

    Raises:
        ChainError: a CA's, not for client authentication, or with a critical extension that is not understood here.
    """
    constraints = _extension(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise ChainError("the certificate is a CA certificate, and an agent's must not be")
    usage = _extension(leaf, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise ChainError("the certificate's key usage does not allow to sign, which a TLS client must")
    if (refusal := _purpose_refusal(leaf)) is not None:
        raise ChainError(f"the certificate {refusal}")


def issuers_of(leaf: x509.Certificate, candidates: Sequence[x509.Certificate], now: datetime) -> Issuers:
    """The issuers above ``leaf`` among ``candidates``, as far up as they lead: where no anchor is known."""
    path: list[x509.Certificate] = []
    child, left = leaf, list(candidates)
    while len(path) < _DEEPEST:
        fits = (c for c in left if _signed_by(child, c) and _issuer_refusal(c, len(path), now) is None)
        issuer = next(fits, None)
        if issuer is None or issuer.subject == issuer.issuer:
            break
        path.append(issuer)
        left.remove(issuer)
        child = issuer
    return tuple(path)


def _climb(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    now: datetime,
    reasons: list[str],
) -> Issuers | None:
    """Climb level by level until an anchor is among the issuers.

    An intermediate counts at the first level that it is found on, where the fewest are below it. Path by path, seven
    that had all signed one another took thousands of signature checks, with keys that their sender had chosen.
    """
    level: dict[x509.Certificate, Issuers] = {leaf: ()}
    left = list(dict.fromkeys(intermediates))
    for below in range(_DEEPEST + 1):
        found: dict[x509.Certificate, Issuers] = {}
        for issuer in dict.fromkeys((*anchors, *left)):
            path = next((path for child, path in level.items() if _signed_by(child, issuer)), None)
            if path is None:
                continue
            refusal = _issuer_refusal(issuer, below, now)
            if refusal is None and issuer not in anchors:
                refusal = _purpose_refusal(issuer)
            if refusal is not None:
                reasons.append(f"{_name(issuer.subject)} {refusal}")
            elif issuer in anchors:
                # A server may know the root alone: an anchor below it that came along goes along.
                sent = issuer in left and issuer.subject != issuer.issuer
                return (*path, issuer) if sent else path
            else:
                found[issuer] = (*path, issuer)
        level, left = found, [other for other in left if other not in found]
    return None


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
    constraints = _extension(issuer, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        return "is not a CA certificate"
    if constraints.path_length is not None and below > constraints.path_length:
        return f"allows {constraints.path_length} CA certificates below it, and the path has {below}"
    usage = _extension(issuer, x509.KeyUsage)
    return None if usage is None or usage.key_cert_sign else "may not sign certificates"


def _purpose_refusal(certificate: x509.Certificate) -> str | None:
    """Why it can't authenticate a TLS client, or None; without any usage it may do all (RFC 5280, 4.2.1.12)."""
    critical = (found.oid for found in certificate.extensions if found.critical)
    strange = [oid.dotted_string for oid in critical if oid not in _UNDERSTOOD]
    if strange:
        return f"has critical extensions that are not understood here: {', '.join(strange)[:200]}"
    usage = _extension(certificate, x509.ExtendedKeyUsage)
    if usage is not None and not any(purpose in usage for purpose in _FOR_CLIENTS):
        return "is not for client authentication"
    return None


def _within(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _name(name: x509.Name) -> str:
    return printable(name.rfc4514_string(), 200)


def _extension(certificate: x509.Certificate, kind: type[_Kind]) -> _Kind | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return None
