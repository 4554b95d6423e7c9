"""Manifest poll worker: keeps the verified fleet and the manifests of its channels at hand, and tells the reducer."""

from __future__ import annotations

from nixfleet_agent.errors import AgentError, TransportError
from nixfleet_agent.proto import ids
from nixfleet_agent.runtime.first_signed import FirstSigned
from nixfleet_agent.runtime.release import RELEASE, SignedRelease, signed_release
from nixfleet_agent.runtime.rollout.inputs import ManifestSetUpdated
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.text import printable
from nixfleet_agent.threads.timers import Timer
from nixfleet_agent.threads.worker import Worker
from nixfleet_agent.trouble import Trouble
from nixfleet_agent.trust.errors import VerificationError
from nixfleet_agent.trust.verify import VerifiedFleet

#: Longest that one turn may be without a sign of life: an artifact that is fetched once more for its pin, its requests
#: twice for its signature, each to its deadline (300 s), with room.
LONGEST_FETCH = 350.0


class ManifestPollWorker(Worker):
    """A fleet that fails leaves the set as it was; a manifest that fails leaves its channel as it was."""

    name = "manifest_poll"

    def __init__(self, services: Services) -> None:
        super().__init__(services.shutdown, services.clock)
        interval = services.config.tuning.manifest_poll_interval
        self.limit = LONGEST_FETCH + 3 * interval
        self._inputs = services.inputs
        self._cache = services.cache
        self._board = services.board
        self._prefetch = services.prefetch
        self._first_signed = FirstSigned(services.config.state_dir)
        self._hostname = services.config.machine_id
        self._timer = Timer(interval, services.clock, services.shutdown)
        self._backoff = services.backoff()
        self._set: dict[str, str] = {}
        self._troubles: dict[str, Trouble] = {}

    def run(self) -> None:
        """One turn at once, then one each interval; sooner with backoff while no fleet can be had."""
        again: float | None = None
        while self._timer.wait(again):
            self.alive()
            again = None if self.poll() else self.clock.monotonic() + self._backoff.next()

    def poll(self) -> bool:
        """Fetch and verify the set as it is published now, and cache it; False when no fleet could be had."""
        updated = self._update()
        # Without a fleet too: the long poll leaves the artifacts of what it accepted to this turn.
        self._cache.flush()
        return updated

    def _update(self) -> bool:
        try:
            fleet = self._cache.fetch_fleet()
        except (TransportError, VerificationError) as error:
            self._say("fleet.resolved", error)
            return False
        self._say("fleet.resolved", None)
        self._backoff.reset()
        self._set = self._rollouts(fleet)
        rollouts = tuple(self._set[channel] for channel in sorted(self._set))
        self._inputs.put_latest(ManifestSetUpdated(fleet.hash, fleet.signed_at, rollouts))
        return True

    def _rollouts(self, fleet: VerifiedFleet) -> dict[str, str]:
        """The rollout of each channel with hosts: the new one where it verifies, else the one before."""
        found: dict[str, str] = {}
        own = fleet.fleet.host(self._hostname)
        if own is None:
            self._publish(None, None)
        for channel in sorted(fleet.fleet.channels_in_use & fleet.fleet.channels.keys()):
            self.alive()
            if self.shutdown.is_set:
                break
            rollout_id = f"{channel}@{fleet.fleet.meta.ci_commit}"
            try:
                if not ids.ROLLOUT_ID.fullmatch(rollout_id):
                    raise AgentError(f"the fleet's ciCommit makes no rollout id: {printable(rollout_id, 200)!r}")
                manifest = self._cache.fetch_pinned(rollout_id, fleet)
            except AgentError as error:
                self._say(channel, error)
                if channel in self._set:
                    found[channel] = self._set[channel]
                continue
            self._say(channel, None)
            found[channel] = rollout_id
            if own is not None and own.channel == channel:
                known = self._board.read(RELEASE) or self._first_signed.read()
                self._publish(signed_release(manifest.manifest, manifest.signed_at, self._hostname, known), known)
        self._troubles = {name: said for name, said in self._troubles.items() if name in found or said.reason}
        return found

    def _publish(self, release: SignedRelease | None, known: SignedRelease | None) -> None:
        """What CI signed for this host; whoever fetches it before its turn hears of it when it is another."""
        if release is not None and (known is None or known.first_signed_at != release.first_signed_at):
            self._first_signed.keep(release)
        news = release != self._board.read(RELEASE) or not self._prefetch.announced
        self._board.publish(RELEASE, release)
        if news:
            self._prefetch.announce()

    def _say(self, name: str, error: AgentError | None) -> None:
        if self.shutdown.is_set:
            return
        trouble = self._troubles.get(name) or Trouble(self.log, f"{name} is not updated", f"{name} is up to date again")
        self._troubles[name] = trouble
        if error is None:
            trouble.over()
        else:
            trouble.failed(error, _kind(error))


def _kind(error: AgentError) -> str:
    """What makes two failures the same: not their text, which may tell an age that grows."""
    if isinstance(error, VerificationError):
        return error.reason
    return error.kind if isinstance(error, TransportError) else str(error)
