"""Verification of signed artifacts: bytes in, a verified object or one typed refusal out.

The order is fixed: form of the bytes, signature, schema, what the artifact is for, then time. What comes first does
not depend on the clock and is done once for the same bytes; time (``check_fresh_*``) is judged again at each use.

The control plane that hands the bytes out holds no key. It may serve old, foreign or forged artifacts, and it must
not be able to make a host accept one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from nixfleet_agent.errors import ProtoError
from nixfleet_agent.proto.fleet import SCHEMA_VERSION, Fleet, Meta
from nixfleet_agent.proto.manifest import RolloutManifest
from nixfleet_agent.proto.strict_json import loads_strict
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.text import printable
from nixfleet_agent.trust import errors
from nixfleet_agent.trust.canonical import canonical, sha256_hex
from nixfleet_agent.trust.marks import Marks
from nixfleet_agent.trust.roots import PublicKey, TrustRoots

FLEET_LIMIT = 64 * 1024 * 1024
MANIFEST_LIMIT = 16 * 1024 * 1024
SIGNATURE_LIMIT = 4 * 1024
#: Share of its limit up to which an artifact is canonicalised: that takes ten times as long as reading it and up to
#: eleven times its size, and nothing of it is signed yet.
CANONICAL_SHARE = 3
#: How far two clocks that are both right may differ.
CLOCK_SKEW = timedelta(seconds=60)

_FLEET = "fleet.resolved"


@dataclass(frozen=True, slots=True)
class VerifiedFleet:
    """A fleet that CI signed. ``hash`` is lower-case hex SHA-256 of what was signed; ``key`` signed it."""

    fleet: Fleet
    hash: str
    signed_at: datetime
    key_name: str
    key: PublicKey


@dataclass(frozen=True, slots=True)
class VerifiedManifest:
    """A rollout manifest that CI signed for the rollout id it was asked for."""

    manifest: RolloutManifest
    hash: str
    signed_at: datetime
    key_name: str
    key: PublicKey


def verify_fleet(
    raw: bytes,
    signature: bytes,
    trust: TrustRoots,
    *,
    now: datetime,
    override_window: timedelta | None,
    marks: Marks,
) -> VerifiedFleet:
    """`fleet.resolved`, verified. ``override_window`` takes the place of the largest window of its channels.

    Raises:
        errors.Refusal: the subclass says why.
    """
    verified = open_fleet(raw, signature, trust, now=now)
    check_fresh_fleet(verified, trust, now=now, override_window=override_window, marks=marks)
    return verified


def verify_manifest(
    raw: bytes,
    signature: bytes,
    rollout_id: str,
    trust: TrustRoots,
    *,
    now: datetime,
    window: timedelta | None,
    marks: Marks,
) -> VerifiedManifest:
    """The manifest of ``rollout_id``, verified. ``window`` is how old its signature may be, None: not judged here.

    Raises:
        errors.Refusal: the subclass says why.
    """
    verified = open_manifest(raw, signature, rollout_id, trust, now=now)
    check_fresh_manifest(verified, trust, now=now, window=window, marks=marks)
    return verified


def open_fleet(raw: bytes, signature: bytes, trust: TrustRoots, *, now: datetime) -> VerifiedFleet:
    """A fleet that CI signed, of any age: enough to learn from what was accepted once, not to act on it.

    Raises:
        errors.Refusal: MalformedArtifactError, BadSignature, SchemaInvalid and their like.
    """
    value, digest, key_name, key = _signed_value(raw, signature, trust, now, FLEET_LIMIT, _FLEET)
    try:
        fleet = Fleet.parse(value, _FLEET)
    except ProtoError as error:
        raise errors.SchemaInvalidError(str(error)) from error
    _require_version(fleet.schema_version, fleet.meta, _FLEET)
    return VerifiedFleet(fleet, digest, _signed_at(fleet.meta, _FLEET), key_name, key)


def open_manifest(
    raw: bytes, signature: bytes, rollout_id: str, trust: TrustRoots, *, now: datetime
) -> VerifiedManifest:
    """The manifest that CI signed for ``rollout_id``, of any age.

    Raises:
        errors.Refusal: as ``open_fleet``, and RolloutIdMismatch.
    """
    what = _manifest_name(rollout_id)
    value, digest, key_name, key = _signed_value(raw, signature, trust, now, MANIFEST_LIMIT, what)
    try:
        manifest = RolloutManifest.parse(value, what)
    except ProtoError as error:
        raise errors.SchemaInvalidError(str(error)) from error
    _require_version(manifest.schema_version, manifest.meta, what)
    if manifest.rollout_id != rollout_id:
        raise errors.RolloutIdMismatchError(
            f"{what}: CI signed it for {manifest.rollout_id}: another manifest was served"
        )
    return VerifiedManifest(manifest, digest, _signed_at(manifest.meta, what), key_name, key)


def check_fresh_fleet(
    verified: VerifiedFleet,
    trust: TrustRoots,
    *,
    now: datetime,
    override_window: timedelta | None,
    marks: Marks,
) -> None:
    """Judge the time of a fleet again, and whether its key is still believed, without its signature.

    Raises:
        errors.Refusal: it must not be used now.
    """
    window = verified.fleet.freshness_window if override_window is None else override_window
    _check_time(verified, trust, now, window, marks.fleet, marks.newest, _FLEET)


def check_fresh_manifest(
    verified: VerifiedManifest,
    trust: TrustRoots,
    *,
    now: datetime,
    window: timedelta | None,
    marks: Marks,
) -> None:
    """Judge the time of a manifest again, and whether its key is still believed, without its signature.

    Raises:
        errors.Refusal: it must not be used now.
    """
    mark = marks.channels.get(verified.manifest.channel)
    _check_time(verified, trust, now, window, mark, marks.newest, _manifest_name(verified.manifest.rollout_id))


def _signed_value(
    raw: bytes, signature: bytes, trust: TrustRoots, now: datetime, limit: int, what: str
) -> tuple[Any, str, str, PublicKey]:
    """The parsed value, the hash of the signed bytes, and the slot and key that signed them."""
    if len(signature) > SIGNATURE_LIMIT:
        raise errors.MalformedArtifactError(f"{what}: its signature has {len(signature)} bytes, not 64")
    if len(raw) > limit:
        raise errors.MalformedArtifactError(f"{what} has more than {limit} bytes")
    keys = _supported_keys(trust, now, what)
    # Bytes that verify are what was signed; only others (indented, reordered on their way) are canonicalised. Before
    # they are parsed: what becomes of a document in memory is several times its size.
    signer = _signer(keys, signature, raw)
    signed = raw
    if signer is None and len(raw) * CANONICAL_SHARE > limit:
        raise errors.MalformedArtifactError(
            f"{what}: its {len(raw)} bytes as they are were not signed by an active CI release key, and they are too "
            f"many to look at in another form (at most {limit // CANONICAL_SHARE})"
        )
    try:
        value = loads_strict(raw, limit=limit, what=what)
    except ProtoError as error:
        raise errors.MalformedArtifactError(str(error)) from error
    if signer is None:
        signed = canonical(value)
        signer = _signer(keys, signature, signed) if signed != raw else None
    if signer is None:
        names = ", ".join(name for name, _ in keys)
        raise errors.BadSignatureError(f"{what}: not signed by an active CI release key (tried: {names})")
    return value, sha256_hex(signed), *signer


def _supported_keys(trust: TrustRoots, now: datetime, what: str) -> list[tuple[str, PublicKey]]:
    active = trust.ci_release_key.active(now)
    if not active:
        skipped = "".join(f" ({warning})" for warning in trust.warnings)
        raise errors.NoTrustRootsError(
            f"{what}: the trust file has no active ciReleaseKey: add the CI's key to it{skipped}"
        )
    supported = [(name, key) for name, key in active if key.supported]
    if not supported:
        algorithms = ", ".join(sorted({printable(key.algorithm, 40) for _, key in active}))
        raise errors.UnsupportedAlgorithmError(
            f"{what}: no active ciReleaseKey is of a known algorithm (has: {algorithms})"
        )
    return supported


def _signer(keys: list[tuple[str, PublicKey]], signature: bytes, data: bytes) -> tuple[str, PublicKey] | None:
    return next(((name, key) for name, key in keys if key.verifies(signature, data)), None)


def _require_version(version: int, meta: Meta, what: str) -> None:
    for found in (version, SCHEMA_VERSION if meta.schema_version is None else meta.schema_version):
        if found != SCHEMA_VERSION:
            raise errors.UnsupportedSchemaVersionError(
                f"{what}: schemaVersion {found}, and this agent reads {SCHEMA_VERSION}"
            )


def _signed_at(meta: Meta, what: str) -> datetime:
    if meta.signed_at is None:
        raise errors.MissingSignedAtError(f"{what}: meta.signedAt is missing")
    return meta.signed_at


def _check_time(
    verified: VerifiedFleet | VerifiedManifest,
    trust: TrustRoots,
    now: datetime,
    window: timedelta | None,
    mark: datetime | None,
    newest: datetime | None,
    what: str,
) -> None:
    signed_at, slots = verified.signed_at, trust.ci_release_key
    shown = format_time(signed_at)
    if all(key != verified.key for _, key in slots.active(now)):
        raise errors.BadSignatureError(f"{what}: the key that signed it ({verified.key_name}) is no longer trusted")
    if slots.reject_before is not None and signed_at < slots.reject_before:
        limit = format_time(slots.reject_before)
        raise errors.RejectedBeforeError(
            f"{what}: signed at {shown}, and the trust file rejects what is older than {limit}"
        )
    if window is not None and now - signed_at > window + CLOCK_SKEW:
        age, allowed = _minutes(now - signed_at), f"{_minutes(window)} minutes"
        raise errors.StaleError(f"{what}: signed at {shown}, {age} minutes ago, and its freshness window is {allowed}")
    behind = newest is not None and newest - now > CLOCK_SKEW
    if signed_at - now > CLOCK_SKEW and not behind:
        raise errors.FutureDatedError(f"{what}: signed at {shown}, and it is {format_time(now)} on this host")
    if mark is not None and signed_at < mark:
        newer = format_time(mark)
        raise errors.OlderThanAcceptedError(f"{what}: signed at {shown}, and one of {newer} was already accepted")
    if newest is not None and behind:
        raise errors.ClockBehindError(
            f"{what}: this host's clock reads {format_time(now)}, and {format_time(newest)} was already accepted: "
            "set the clock"
        )


def _minutes(span: timedelta) -> int:
    return int(span.total_seconds() // 60)


def _manifest_name(rollout_id: str) -> str:
    return f"the manifest of {printable(rollout_id, 160)}"
