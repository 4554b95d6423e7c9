"""The signed artifacts that workers act on: fetched from the control plane, verified, remembered, judged again at use.

Nothing is written on the way to a decision: ``flush`` does that once its caller has done everything urgent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

from nixfleet_agent.artifacts import fetch
from nixfleet_agent.artifacts.fetch import Fetched, Tags, UnavailableError, fetch_pair
from nixfleet_agent.artifacts.files import ArtifactFiles
from nixfleet_agent.artifacts.memory import ArtifactCache, CachedArtifact, Seen
from nixfleet_agent.artifacts.trust_store import TrustStore
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import TransportError
from nixfleet_agent.net.client import ControlPlane
from nixfleet_agent.proto import ids
from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.threads import SYSTEM_THREADS, Threads
from nixfleet_agent.trust.errors import BadSignatureError, FleetPinMismatchError, VerificationError
from nixfleet_agent.trust.marks import ManifestMark, Marks
from nixfleet_agent.trust.resolve import Resolved, check_order, require_entry, require_pin, resolve_dispatch
from nixfleet_agent.trust.seen import SeenFleet, SeenManifest, Signed, see_fleet, see_manifest
from nixfleet_agent.trust.verify import (
    FLEET_LIMIT,
    MANIFEST_LIMIT,
    VerifiedFleet,
    VerifiedManifest,
    check_fresh_fleet,
    check_fresh_manifest,
)

FLEET_PATH = "/v1/fleet.resolved"
ROLLOUTS_PATH = "/v1/rollouts"


@dataclass(frozen=True, slots=True)
class Terms:
    """Everything signed that one host's part in a rollout rests on, good at the moment it was resolved.

    ``window`` is how old the artifacts may be; ``marks`` are the high-water marks with these counted in.
    """

    manifest: VerifiedManifest
    fleet: VerifiedFleet
    resolved: Resolved
    window: timedelta
    marks: Marks


class ManifestCache:
    """Shared by all workers; every method may be called from any thread, and blocks it for the requests it makes."""

    def __init__(
        self,
        config: Config,
        control_plane: ControlPlane,
        store: TrustStore,
        clock: Clock,
        board: StatusBoard,
        threads: Threads = SYSTEM_THREADS,
    ) -> None:
        seconds = config.manifest_freshness_window_secs
        self._override = None if seconds is None else timedelta(seconds=seconds)
        self._machine_id = config.machine_id
        self._control_plane = control_plane
        self._store = store
        self._clock = clock
        self._board = board
        self._shelf = ArtifactCache(ArtifactFiles(config.state_dir), board, threads)
        self._loading = threading.Lock()
        self._loaded = False
        self._fetching = threads.lock()

    def load(self) -> None:
        """Take up, once, what the last process left on disk; done by the first fetch where nobody did before.

        Raises:
            TrustFileError: nothing can be verified now; the next call tries again.
        """
        with self._loading:
            if self._loaded:
                return
            self._shelf.load(self._store.trust(), self._clock.now())
            fleet, channels = self._shelf.signing_times()
            self._store.raise_marks(fleet=fleet, manifest=self._shelf.newest_of(self._machine_id))
            for channel in channels.items():
                self._store.raise_marks(channel=channel)
            self._loaded = True

    def window_of(self, channel: str) -> timedelta | None:
        """How long an artifact of ``channel`` stays fresh; None while no fleet was seen that has the channel."""
        if self._override is not None:
            return self._override
        kept = self._shelf.fleet()
        entry = kept.seen.verified.fleet.channels.get(channel) if kept else None
        return entry.freshness_window if entry else None

    def fetch_fleet(self, *, anew: bool = False) -> VerifiedFleet:
        """`fleet.resolved` as served now; ``anew`` asks for its bytes even where the server could say "unchanged".

        Raises:
            TransportError: it can't be had (UnavailableError: by the server's own word).
            Refusal: it was refused.
        """
        self.load()
        last = self._shelf.fleet()

        def see(fetched: Fetched) -> SeenFleet:
            return see_fleet(
                Signed(fetched.raw, fetched.signature),
                last.seen if last else None,
                self._store.trust(),
                now=self._clock.now(),
                override_window=self._override,
                marks=self._store.marks,
            )

        seen, tags = self._fetch(FLEET_PATH, FLEET_LIMIT, last, see, anew)
        self._shelf.put_fleet(seen, tags)
        self._store.raise_marks(fleet=seen.verified.signed_at)
        return seen.verified

    def fetch_manifest(self, rollout_id: str, *, window: timedelta | None, anew: bool = False) -> VerifiedManifest:
        """The manifest of ``rollout_id`` as served now; ``window`` is how old it may be, None: not judged here.

        Its channel's mark is not raised: it is accepted only together with its fleet.

        Raises:
            TransportError, Refusal: as ``fetch_fleet``.
        """
        self.load()
        last = self._shelf.manifest(rollout_id)

        def see(fetched: Fetched) -> SeenManifest:
            return see_manifest(
                Signed(fetched.raw, fetched.signature),
                last.seen if last else None,
                rollout_id,
                self._store.trust(),
                now=self._clock.now(),
                window=window,
                marks=self._store.marks,
            )

        path = f"{ROLLOUTS_PATH}/{ids.require(ids.ROLLOUT_ID, rollout_id, 'rollout id')}"
        seen, tags = self._fetch(path, MANIFEST_LIMIT, last, see, anew)
        self._shelf.put_manifest(seen, tags)
        return seen.verified

    def fetch_pinned(self, rollout_id: str, fleet: VerifiedFleet) -> VerifiedManifest:
        """The manifest of ``rollout_id``, which must pin exactly ``fleet``; fetched once more where a cache did not.

        Raises:
            TransportError, Refusal: as ``fetch_fleet``; FleetPinMismatch.
        """
        window = self.window_of(ids.channel_of(rollout_id))
        manifest = self.fetch_manifest(rollout_id, window=window)
        if manifest.manifest.fleet_resolved_hash != fleet.hash:
            manifest = self.fetch_manifest(rollout_id, window=window, anew=True)
        pinned = manifest.manifest.fleet_resolved_hash
        with self._counting():
            if pinned != fleet.hash:
                what = f"the manifest of {rollout_id} pins the fleet {pinned[:12]}"
                raise FleetPinMismatchError(f"{what}, and {fleet.hash[:12]} is served")
        self._store.raise_marks(channel=(manifest.manifest.channel, manifest.signed_at))
        return manifest

    def terms(self, rollout_id: str, hostname: str, target_closure: str, *, anew: bool = False) -> Terms:
        """Fetch, verify and resolve all that a Dispatch rests on; with ``anew`` nothing remembered is relied on.

        Raises:
            TransportError, Refusal: as ``fetch_fleet``, and those of ``resolve_dispatch``.
        """
        manifest = self.fetch_manifest(rollout_id, window=None, anew=anew)
        with self._counting():
            require_entry(manifest.manifest, hostname, target_closure)
        fleet = self._fleet_for(manifest, hostname, anew)
        with self._counting():
            terms = self._resolved(manifest, fleet, hostname, target_closure)
        accepted = ManifestMark(manifest.signed_at, manifest.hash)
        channel = (manifest.manifest.channel, manifest.signed_at)
        raised = self._store.raise_marks(fleet=fleet.signed_at, channel=channel, manifest=accepted)
        return replace(terms, marks=raised)

    def known_terms(self, rollout_id: str, hostname: str, target_closure: str) -> Terms:
        """As ``terms``, of what is remembered and as it is judged now; asks nobody and raises no mark.

        Raises:
            TransportError: it is not remembered.
            Refusal: those of ``terms``; a Dispatch of this moment would be refused.
        """
        manifest, fleet = self._shelf.manifest(rollout_id), self._shelf.fleet()
        if manifest is None or fleet is None:
            raise TransportError(f"the manifest of {rollout_id} is not at hand", "unknown")
        return self._resolved(manifest.seen.verified, fleet.seen.verified, hostname, target_closure)

    def flush(self) -> None:
        """Write caches and marks that changed; a disk that refuses is said and changes nothing else."""
        if self._loaded:
            self._shelf.flush()
        self._store.flush_or_say()

    def _resolved(self, manifest: VerifiedManifest, fleet: VerifiedFleet, hostname: str, target_closure: str) -> Terms:
        """The terms that both give this host, judged at this moment."""
        resolved = resolve_dispatch(manifest, fleet, hostname, target_closure)
        window = resolved.freshness_window if self._override is None else self._override
        now, trust, marks = self._clock.now(), self._store.trust(), self._store.marks
        terms = Terms(manifest, fleet, resolved, window, marks)
        check_fresh_manifest(terms.manifest, trust, now=now, window=terms.window, marks=marks)
        check_fresh_fleet(terms.fleet, trust, now=now, override_window=self._override, marks=marks)
        check_order(terms.manifest, marks)
        return terms

    def _fleet_for(self, manifest: VerifiedManifest, hostname: str, anew: bool) -> VerifiedFleet:
        kept = self._shelf.fleet()
        if not anew and kept is not None and self._serves(kept.seen.verified, manifest):
            return kept.seen.verified
        fleet = self.fetch_fleet(anew=anew)
        try:
            require_pin(manifest, fleet, hostname)
        except FleetPinMismatchError:
            # A publication in progress: the manifest was there a moment before its fleet, or a cache stood between.
            fleet = self.fetch_fleet(anew=True)
        return fleet

    def _serves(self, fleet: VerifiedFleet, manifest: VerifiedManifest) -> bool:
        """Whether the remembered fleet is the very one that the manifest pins, and still fresh."""
        if fleet.hash != manifest.manifest.fleet_resolved_hash:
            return False
        now, trust, marks = self._clock.now(), self._store.trust(), self._store.marks
        try:
            check_fresh_fleet(fleet, trust, now=now, override_window=self._override, marks=marks)
        except VerificationError:
            return False  # what is fetched now may be signed again, and says what is wrong where it is not
        return True

    def _fetch(
        self, path: str, limit: int, last: CachedArtifact[Seen] | None, see: Callable[[Fetched], Seen], anew: bool
    ) -> tuple[Seen, Tags]:
        known = None if last is None or anew else last.fetched()
        try:
            with self._turn() as waited, self._counting():
                fetched = fetch_pair(self._control_plane, path, limit, known, self._clock, waited)
                try:
                    return see(fetched), fetched.tags
                except BadSignatureError:
                    # Body and signature are two requests, and a publication may have come between: both once more.
                    del fetched
                    fetched = fetch_pair(self._control_plane, path, limit, None, self._clock)
                    return see(fetched), fetched.tags
        except UnavailableError as error:
            if error.objects and last is not None:
                self._shelf.forget_tags(last)
            raise

    @contextmanager
    def _turn(self) -> Iterator[float]:
        """One artifact at a time in memory before it is verified, for three of 64 MiB are more than a small host has.

        The seconds waited are the next request's: no call takes longer than it did alone. The shutdown ends the call
        that everybody waits for, and with it every wait.

        Raises:
            TransportError: another artifact took all of the time.
        """
        began = self._clock.monotonic()
        if not self._fetching.acquire(timeout=fetch.BODY_DEADLINE):
            raise TransportError("another artifact took all of the time to fetch this one", "timeout")
        try:
            yield min(self._clock.monotonic() - began, fetch.BODY_DEADLINE - fetch.LEAST_SECS)
        finally:
            self._fetching.release()

    @contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except VerificationError as refusal:
            self._board.count("verification_failures", reason=refusal.reason)
            raise
