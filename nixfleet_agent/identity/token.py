"""The bootstrap token: reading its file, and the checks that need no control plane."""

from __future__ import annotations

import hmac
from datetime import datetime
from pathlib import Path

from nixfleet_agent.errors import EnrollmentRefusedError, IdentityError, ProtoError
from nixfleet_agent.identity.host_key import HostKey
from nixfleet_agent.proto.enrollment import TOKEN_LIMIT, BootstrapToken
from nixfleet_agent.proto.ids import case_hint
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.reading import read_regular


class TokenMissingError(IdentityError):
    """The token file can't be read now; a secrets manager may put it there later."""


class TokenNotYetValidError(IdentityError):
    """The token's validity begins in the future; ``valid_from`` says when."""

    def __init__(self, message: str, valid_from: datetime) -> None:
        super().__init__(message)
        self.valid_from = valid_from


def load_token(path: Path) -> BootstrapToken:
    """Read a token file.

    Raises:
        TokenMissingError: it can't be read.
        EnrollmentRefusedError: it is no token.
    """
    try:
        raw = read_regular(path, TOKEN_LIMIT)
    except OSError as error:
        raise TokenMissingError(f"can't read the bootstrap token {path}: {error.strerror}") from error
    try:
        return BootstrapToken.parse(raw)
    except ProtoError as error:
        raise EnrollmentRefusedError(f"{path}: {error}: make a new token for this host") from error


def check_token(token: BootstrapToken, *, machine_id: str, key: HostKey, now: datetime) -> None:
    """Refuse before the network does what the control plane would refuse: a token is used up by one try.

    Raises:
        EnrollmentRefusedError: for another host or key, or expired.
        TokenNotYetValidError: not valid yet.
    """
    if token.hostname != machine_id:
        remedy = case_hint(token.hostname, machine_id) or ": set machine_id, or make a token for this host"
        raise EnrollmentRefusedError(
            f"the bootstrap token is for {token.hostname!r}, and this host is {machine_id!r}{remedy}"
        )
    if not hmac.compare_digest(token.fingerprint.encode("utf-8", "replace"), key.fingerprint.encode("ascii")):
        raise EnrollmentRefusedError(
            f"the bootstrap token expects another host key than this host's (fingerprint {key.fingerprint}):"
            " make a token for this key"
        )
    if now >= token.expires_at:
        raise EnrollmentRefusedError(
            f"the bootstrap token expired at {format_time(token.expires_at)}:"
            " make a new one, and check this host's clock"
        )
    if now < token.issued_at:
        raise TokenNotYetValidError(
            f"the bootstrap token is valid from {format_time(token.issued_at)} on, and this host's clock reads"
            f" {format_time(now)}: wait, or set the clock",
            token.issued_at,
        )
