"""The canonical bytes of a JSON value (RFC 8785, "JCS") and their hash: what CI signs and what pins are made of."""

from __future__ import annotations

from typing import Any

import rfc8785
from cryptography.hazmat.primitives import hashes

from nixfleet_agent.trust.errors import MalformedArtifactError


def canonical(value: Any) -> bytes:
    """The one way to write ``value``: keys by UTF-16 code unit, numbers as ECMAScript writes them, no spaces.

    Raises:
        MalformedArtifact: the value holds what JCS has no form for (a lone surrogate, an inexact integer).
    """
    try:
        return rfc8785.dumps(value)
    except ValueError as error:
        # Its own errors are ValueErrors; for half a surrogate in a key it lets the codec's UnicodeEncodeError out.
        raise MalformedArtifactError(f"the value has no canonical form: {error}") from error


def sha256_hex(data: bytes) -> str:
    """Lower-case hex SHA-256, by the one OpenSSL that the agent loads: without, `hashlib` is several times slower."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize().hex()
