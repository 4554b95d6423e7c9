"""The issuers that a new agent certificate must chain to: those of the trust file, and the fleet's CA file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from nixfleet_agent.errors import EXIT_CONFIG, IdentityError
from nixfleet_agent.reading import read_regular

_SIZE_LIMIT = 4 * 1024 * 1024


class AnchorError(IdentityError):
    """The trust file or ca_cert holds something else than certificates."""

    exit_code = EXIT_CONFIG


def load_anchors(issuance_ca_pems: Iterable[str], ca_cert: Path | None) -> tuple[x509.Certificate, ...]:
    """All certificates in the PEM texts and in the file; empty when neither is given.

    Raises:
        AnchorError: one of them can't be read; an anchor that is lost must not become "no check".
    """
    found: list[x509.Certificate] = []
    for index, pem in enumerate(issuance_ca_pems):
        found += _parse(pem.encode("utf-8", "surrogatepass"), f"issuanceCaPems[{index}] of the trust file")
    if ca_cert is not None:
        try:
            raw = read_regular(ca_cert, _SIZE_LIMIT)
        except OSError as error:
            raise AnchorError(f"can't read ca_cert {ca_cert}: {error.strerror}") from error
        found += _parse(raw, f"ca_cert {ca_cert}")
    return tuple(found)


def _parse(pem: bytes, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        # The library's words end in an address of its documentation, on several lines.
        raise AnchorError(f"{what} is not a PEM certificate: put the fleet's CA there") from error
