"""What CI signed for this host, and whether the control plane ever gave the turn: the host itself holds the proof."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from nixfleet_agent.proto.manifest import RolloutManifest
from nixfleet_agent.state_machine import State
from nixfleet_agent.telemetry.status import RolloutsView, Section


@dataclass(frozen=True, slots=True)
class SignedRelease:
    """The newest verified release of this host's channel; both times are CI's own.

    ``first_signed_at`` is when the target was signed as this process first saw it: a fleet is signed again and again.
    """

    rollout_id: str
    target_closure: str
    signed_at: datetime
    first_signed_at: datetime


#: Published by the manifest poll; None while nothing was verified, or no release names this host.
RELEASE: Section[SignedRelease | None] = Section("signed_release", None)


@dataclass(frozen=True, slots=True)
class ReleaseStatus:
    """The section `release`: ``behind_since`` is set while the release's turn has not come."""

    rollout_id: str
    target_closure: str
    signed_at: datetime
    behind_since: datetime | None


def signed_release(
    manifest: RolloutManifest, signed_at: datetime, hostname: str, known: SignedRelease | None
) -> SignedRelease | None:
    """What a verified manifest names for this host; None where it does not name it."""
    entries = manifest.entries(hostname)
    if len(entries) != 1:
        return None
    target = entries[0].target_closure
    same = known is not None and (known.rollout_id, known.target_closure) == (manifest.rollout_id, target)
    first = known.first_signed_at if known is not None and same else signed_at
    return SignedRelease(manifest.rollout_id, target, signed_at, first)


def release_status(
    release: SignedRelease | None, current: str | None, view: RolloutsView | None, kept: str | None
) -> ReleaseStatus | None:
    """Where the host stands to what CI signed for it; ``kept`` is the rollout of a Dispatch that waits.

    Its turn has come where the release runs, where a Dispatch for it waits here, or where the host took part in a
    rollout of that closure, however that ended. What can't be read counts for nothing.
    """
    if release is None:
        return None
    records = view.records if view is not None else ()
    had_its_turn = (
        current in (None, release.target_closure)
        or kept == release.rollout_id
        or any(record.target_closure == release.target_closure for record in records)
    )
    since = None if had_its_turn else release.first_signed_at
    return ReleaseStatus(release.rollout_id, release.target_closure, release.signed_at, since)


def next_way_back(view: RolloutsView, current: str | None) -> str | None:
    """What a rollout accepted now would go back to, as far as what is published tells: the reducer has the last word.

    What runs where it converged here, or where no rollout of ours brought it and none is open; else what the newest
    rollout left, or goes back to.
    """
    active = view.active
    if active is None:
        return current
    brought = [record for record in view.records if record.target_closure == current]
    if any(record.state is State.CONVERGED for record in brought) or (not brought and active.terminal):
        return current
    return active.target_closure if active.state is State.CONVERGED else active.prior_closure
