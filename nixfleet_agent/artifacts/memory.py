"""The verified artifacts that this process knows, in memory, and their way to the disk and back.

Newer replaces older and never the other way round. What is read from disk is verified again: a file that somebody
changed there is worth no more than one that came over the wire.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, TypeVar

from nixfleet_agent.artifacts.fetch import Fetched, Tags
from nixfleet_agent.artifacts.files import ArtifactFiles
from nixfleet_agent.errors import StorageError
from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.threads.threads import SYSTEM_THREADS, Threads
from nixfleet_agent.trouble import Trouble
from nixfleet_agent.trust.errors import VerificationError
from nixfleet_agent.trust.marks import ManifestMark
from nixfleet_agent.trust.roots import TrustRoots
from nixfleet_agent.trust.seen import SeenFleet, SeenManifest
from nixfleet_agent.trust.verify import open_fleet, open_manifest

#: Manifests that are kept beside those of the current fleet: rollouts that were dispatched a moment ago.
EXTRA_MANIFESTS = 4

log = logging.getLogger("nixfleet_agent.manifest_cache")

Seen = TypeVar("Seen", SeenFleet, SeenManifest)


@dataclass(frozen=True, slots=True)
class CachedArtifact(Generic[Seen]):
    """One artifact with the ETags it came with; ``saved`` when exactly these bytes are on disk."""

    seen: Seen
    tags: Tags
    saved: bool = False

    def fetched(self) -> Fetched:
        """As it was served."""
        return Fetched(self.seen.raw, self.seen.signature, self.tags)


class ArtifactCache:
    """One fleet and a handful of manifests; every method may be called from any thread."""

    def __init__(self, files: ArtifactFiles, board: StatusBoard, threads: Threads = SYSTEM_THREADS) -> None:
        self._files = files
        self._board = board
        self._lock = threading.Lock()
        self._writing = threads.lock()
        self._fleet: CachedArtifact[SeenFleet] | None = None
        self._manifests: dict[str, CachedArtifact[SeenManifest]] = {}
        self._trouble = Trouble(log, "verified artifacts are not on disk yet")

    def fleet(self) -> CachedArtifact[SeenFleet] | None:
        """The newest fleet that verified, of any age."""
        with self._lock:
            return self._fleet

    def manifest(self, rollout_id: str) -> CachedArtifact[SeenManifest] | None:
        """The newest manifest of a rollout that verified, of any age."""
        with self._lock:
            return self._manifests.get(rollout_id)

    def put_fleet(self, seen: SeenFleet, tags: Tags, *, saved: bool = False) -> None:
        """Remember a fleet, unless a newer one came meanwhile."""
        with self._lock:
            self._fleet = _newer(self._fleet, CachedArtifact(seen, tags, saved))

    def put_manifest(self, seen: SeenManifest, tags: Tags, *, saved: bool = False) -> None:
        """Remember a manifest as the one used last, unless a newer one of its rollout came meanwhile."""
        rollout_id = seen.verified.manifest.rollout_id
        with self._lock:
            self._manifests[rollout_id] = _newer(
                self._manifests.pop(rollout_id, None), CachedArtifact(seen, tags, saved)
            )

    def forget_tags(self, kept: CachedArtifact[Any]) -> None:
        """The server objected to a request that carried them: the next one asks for the whole of it."""
        with self._lock:
            if self._fleet is kept:
                self._fleet = replace(self._fleet, tags=Tags())
            for rollout_id, manifest in self._manifests.items():
                if manifest is kept:
                    self._manifests[rollout_id] = replace(manifest, tags=Tags())

    def load(self, trust: TrustRoots, now: datetime) -> None:
        """Take up what the last process left; what does not verify any more is left out, counted and said."""
        pair = self._files.fleet()
        if pair is not None:
            try:
                self.put_fleet(SeenFleet(*pair, open_fleet(*pair, trust, now=now)), Tags(), saved=True)
            except VerificationError as refusal:
                self._not_used("fleet.resolved", refusal)
        for rollout_id in self._files.rollout_ids():
            pair = self._files.manifest(rollout_id)
            if pair is None:
                continue
            try:
                verified = open_manifest(*pair, rollout_id, trust, now=now)
                self.put_manifest(SeenManifest(*pair, verified), Tags(), saved=True)
            except VerificationError as refusal:
                self._not_used(rollout_id, refusal)

    def signing_times(self) -> tuple[datetime | None, dict[str, datetime]]:
        """When the fleet and the newest manifest of each channel were signed: high-water marks that CI vouches for."""
        with self._lock:
            fleet = None if self._fleet is None else self._fleet.seen.verified.signed_at
            channels: dict[str, datetime] = {}
            for kept in self._manifests.values():
                verified = kept.seen.verified
                channel = verified.manifest.channel
                channels[channel] = max(verified.signed_at, channels.get(channel, verified.signed_at))
        return fleet, channels

    def newest_of(self, hostname: str) -> ManifestMark | None:
        """The newest manifest that names the host: what it may have accepted, where marks and logs were lost."""
        with self._lock:
            verified = [kept.seen.verified for kept in self._manifests.values()]
        marks = [ManifestMark(each.signed_at, each.hash) for each in verified if each.manifest.entries(hostname)]
        return max(marks, default=None)

    def flush(self) -> None:
        """Write what is not on disk yet, and drop the manifests that nobody asks for any more.

        A disk that refuses is said once for each reason: what is here can be fetched again.
        """
        with self._writing:
            try:
                self._write()
            except StorageError as error:
                self._trouble.failed(error)
            else:
                self._trouble.over()

    def _write(self) -> None:
        for rollout_id in self._drop_old():
            self._files.remove_manifest(rollout_id)
        fleet = self.fleet()
        if fleet is not None and not fleet.saved:
            self._files.write_fleet(fleet.seen.raw, fleet.seen.signature)
            with self._lock:
                if self._fleet is fleet:
                    self._fleet = replace(fleet, saved=True)
        with self._lock:
            unsaved = [(rollout_id, kept) for rollout_id, kept in self._manifests.items() if not kept.saved]
        for rollout_id, manifest in unsaved:
            self._files.write_manifest(rollout_id, manifest.seen.raw, manifest.seen.signature)
            with self._lock:
                if self._manifests.get(rollout_id) is manifest:
                    self._manifests[rollout_id] = replace(manifest, saved=True)

    def _drop_old(self) -> list[str]:
        """Forget the manifests that are neither of the current fleet nor among the last ones used."""
        with self._lock:
            current = _current_rollouts(self._fleet)
            others = [rollout_id for rollout_id in self._manifests if rollout_id not in current]
            for rollout_id in others[:-EXTRA_MANIFESTS]:
                del self._manifests[rollout_id]
            known = set(self._manifests)
        return [rollout_id for rollout_id in self._files.rollout_ids() if rollout_id not in known]

    def _not_used(self, name: str, refusal: VerificationError) -> None:
        self._board.count("verification_failures", reason=refusal.reason)
        log.warning("what is cached as %s is not used: %s", name, refusal)


def _newer(known: CachedArtifact[Seen] | None, new: CachedArtifact[Seen]) -> CachedArtifact[Seen]:
    if known is None or new.seen.verified.signed_at >= known.seen.verified.signed_at:
        return replace(new, saved=new.saved or (known is not None and known.saved and known.seen is new.seen))
    return known


def _current_rollouts(fleet: CachedArtifact[SeenFleet] | None) -> Iterable[str]:
    if fleet is None:
        return ()
    signed = fleet.seen.verified.fleet
    return {f"{channel}@{signed.meta.ci_commit}" for channel in signed.channels_in_use}
