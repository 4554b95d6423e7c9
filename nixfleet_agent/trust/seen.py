"""Artifacts beside the bytes they were verified from: the same bytes again cost a comparison, not a verification.

Only what does not change with time is remembered. Age, order, clock and whether the key is still believed are judged
at each use.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from nixfleet_agent.trust.marks import Marks
from nixfleet_agent.trust.roots import TrustRoots
from nixfleet_agent.trust.verify import (
    VerifiedFleet,
    VerifiedManifest,
    check_fresh_fleet,
    check_fresh_manifest,
    verify_fleet,
    verify_manifest,
)


@dataclass(frozen=True, slots=True)
class Signed:
    """Bytes and their signature as they came; nothing of it is believed yet."""

    raw: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class SeenFleet:
    """A fleet, and the exact bytes that verified as it."""

    raw: bytes
    signature: bytes
    verified: VerifiedFleet


@dataclass(frozen=True, slots=True)
class SeenManifest:
    """A rollout manifest, and the exact bytes that verified as it."""

    raw: bytes
    signature: bytes
    verified: VerifiedManifest


def see_fleet(
    signed: Signed,
    last: SeenFleet | None,
    trust: TrustRoots,
    *,
    now: datetime,
    override_window: timedelta | None,
    marks: Marks,
) -> SeenFleet:
    """``verify_fleet``, or only its judgement of time where ``last`` came from the same bytes.

    Raises:
        Refusal: as ``verify_fleet``.
    """
    raw, signature = signed.raw, signed.signature
    if last is not None and raw == last.raw and signature == last.signature:
        check_fresh_fleet(last.verified, trust, now=now, override_window=override_window, marks=marks)
        return last
    verified = verify_fleet(raw, signature, trust, now=now, override_window=override_window, marks=marks)
    return SeenFleet(raw, signature, verified)


def see_manifest(
    signed: Signed,
    last: SeenManifest | None,
    rollout_id: str,
    trust: TrustRoots,
    *,
    now: datetime,
    window: timedelta | None,
    marks: Marks,
) -> SeenManifest:
    """``verify_manifest``, or only its judgement of time where ``last`` came from the same bytes for the same id.

    Raises:
        Refusal: as ``verify_manifest``.
    """
    raw, signature = signed.raw, signed.signature
    same = last is not None and raw == last.raw and signature == last.signature
    if last is not None and same and last.verified.manifest.rollout_id == rollout_id:
        check_fresh_manifest(last.verified, trust, now=now, window=window, marks=marks)
        return last
    verified = verify_manifest(raw, signature, rollout_id, trust, now=now, window=window, marks=marks)
    return SeenManifest(raw, signature, verified)
