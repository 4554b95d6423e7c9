"""The trust file as types: which keys are believed, from when and until when."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto import schemas
from nixfleet_agent.proto.strict_json import BODY_LIMIT, loads_strict
from nixfleet_agent.proto.times import parse_time
from nixfleet_agent.text import printable
from nixfleet_agent.trust.errors import TrustFileError

ED25519 = "ed25519"
ECDSA_P256 = "ecdsa-p256"
#: Both algorithms: R||S of Ed25519, r||s of ECDSA over P-256.
_SIGNATURE_BYTES = 64
_KEY_NAMES = ("current", "previous", "successor")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One key. The algorithm is the key's own: an artifact can't choose how it is verified.

    ``handle`` is None for an algorithm that this agent does not know; two keys are equal when their bytes are.
    """

    algorithm: str
    public: bytes
    handle: Ed25519PublicKey | EllipticCurvePublicKey | None = field(compare=False, repr=False)

    @property
    def supported(self) -> bool:
        """Whether this agent can verify with it."""
        return self.handle is not None

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether ``signature`` (64 raw bytes) over ``data`` is this key's."""
        if len(signature) != _SIGNATURE_BYTES:
            return False
        try:
            if isinstance(self.handle, Ed25519PublicKey):
                self.handle.verify(signature, data)
            elif isinstance(self.handle, EllipticCurvePublicKey):
                # Both s and n-s are accepted: signers in the field (TPMs, HSMs) do not normalise to the lower one.
                r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
                self.handle.verify(encode_dss_signature(r, s), data, ECDSA(hashes.SHA256()))
            else:
                return False
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class KeySlots:
    """The keys for one purpose, through a rotation. ``successor`` counts only together with ``retire_at``."""

    current: PublicKey | None = None
    previous: PublicKey | None = None
    successor: PublicKey | None = None
    reject_before: datetime | None = None
    retire_at: datetime | None = None

    def active(self, now: datetime) -> tuple[tuple[str, PublicKey], ...]:
        """Slot names and keys to try, in order: current, previous, and successor while ``now < retire_at``."""
        announced = self.retire_at is not None and now < self.retire_at
        slots = (
            ("current", self.current),
            ("previous", self.previous),
            ("successor", self.successor if announced else None),
        )
        return tuple((name, key) for name, key in slots if key is not None)


@dataclass(frozen=True, slots=True)
class TrustRoots:
    """What this host believes, as its trust file says."""

    ci_release_key: KeySlots
    org_root_key: KeySlots = KeySlots()
    cache_keys: tuple[str, ...] = ()
    issuance_ca_pems: tuple[str, ...] = ()
    root_ca_pem: str | None = None
    #: Keys that can't be read and were skipped, because others are left: what to tell the operator.
    warnings: tuple[str, ...] = ()


def parse_trust(raw: bytes, what: str = "the trust file") -> TrustRoots:
    """The trust roots in the bytes of a trust file; ``null`` counts as absent, unknown members are ignored.

    `rootCAPem` and `issuanceCAPems` are other spellings of `rootCaPem` and `issuanceCaPems`. A key that can't be read
    is skipped with a warning while the same purpose has another that can be used: one slip in a rotation must not cut
    a fleet off.

    Raises:
        TrustFileError: it can't be believed as it is; the message names the place.
    """
    try:
        value = loads_strict(raw, limit=BODY_LIMIT, what=what)
        schemas.check("trust", value, what)
        warnings: list[str] = []
        return TrustRoots(
            ci_release_key=_slots(value.get("ciReleaseKey"), f"{what}: ciReleaseKey", warnings),
            org_root_key=_slots(value.get("orgRootKey"), f"{what}: orgRootKey", warnings),
            cache_keys=tuple(value.get("cacheKeys") or ()),
            issuance_ca_pems=(*(value.get("issuanceCaPems") or ()), *(value.get("issuanceCAPems") or ())),
            root_ca_pem=value.get("rootCaPem") or value.get("rootCAPem"),
            warnings=tuple(warnings),
        )
    except ProtoError as error:
        raise TrustFileError(str(error)) from error


def _slots(value: Mapping[str, Any] | None, where: str, warnings: list[str]) -> KeySlots:
    value = value or {}
    faults: list[str] = []
    keys = {name: _key_or_fault(value.get(name), f"{where}.{name}", faults) for name in _KEY_NAMES}
    slots = KeySlots(
        **keys,
        reject_before=_time(value.get("rejectBefore"), f"{where}.rejectBefore"),
        retire_at=_time(value.get("retireAt"), f"{where}.retireAt"),
    )
    # A successor that is announced counts: whether it still does is judged at each use.
    left = (slots.current, slots.previous, slots.successor if slots.retire_at else None)
    if faults and not any(key is not None and key.supported for key in left):
        raise TrustFileError("; ".join(faults))
    warnings += (f"{fault}: skipped, because another key is left" for fault in faults)
    return slots


def _key_or_fault(value: object, where: str, faults: list[str]) -> PublicKey | None:
    try:
        return _key(value, where)
    except TrustFileError as error:
        faults.append(str(error))
        return None


def _time(value: str | None, where: str) -> datetime | None:
    try:
        return None if value is None else parse_time(value)
    except ProtoError as error:
        raise TrustFileError(f"{where}: {error}") from error


def _key(value: object, where: str) -> PublicKey | None:
    if value is None:
        return None
    algorithm, public = (value.get("algorithm"), value.get("public")) if isinstance(value, Mapping) else (None, None)
    if not isinstance(algorithm, str) or not isinstance(public, str):
        raise TrustFileError(f"{where} is not an object with the texts algorithm and public")
    if algorithm not in (ED25519, ECDSA_P256):
        # Kept, not refused: a file may name the key of a newer agent beside the one that this agent uses.
        return PublicKey(algorithm, public.encode("utf-8"), None)
    try:
        raw = base64.b64decode(public, validate=True)
        return PublicKey(algorithm, raw, _handle(algorithm, raw))
    except (ValueError, binascii.Error) as error:
        shown = printable(public, 120)
        raise TrustFileError(f"{where}.public is no {algorithm} key in base64: {shown!r} ({error})") from error


def _handle(algorithm: str, raw: bytes) -> Ed25519PublicKey | EllipticCurvePublicKey:
    """Raises ValueError for a wrong length or a point that is not on the curve."""
    if algorithm == ED25519:
        return Ed25519PublicKey.from_public_bytes(raw)
    if len(raw) != 64:
        raise ValueError(f"X||Y has {len(raw)} bytes instead of 64")
    x, y = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    return EllipticCurvePublicNumbers(x, y, SECP256R1()).public_key()
