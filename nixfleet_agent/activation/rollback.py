"""The way back: to the closure that ran when the rollout was accepted, by that closure's own script."""

from __future__ import annotations

from nixfleet_agent.activation import host, profile, realise, verify_poll, way_back
from nixfleet_agent.activation.errors import PhaseFailed
from nixfleet_agent.activation.model import Rollback, RollbackDrift, RolledBack
from nixfleet_agent.activation.records import BOOT, ROLLBACK, Record
from nixfleet_agent.activation.steps import Parts, require_names, switch_until_unlocked, update_bootloader
from nixfleet_agent.activation.switches import Job


class RollbackRun:
    """One attempt at a rollback; the caller tries again when it fails."""

    def __init__(self, parts: Parts, intent: Rollback) -> None:
        self._parts = parts
        self._context = parts.context
        self._intent = intent

    def run(self) -> RolledBack | RollbackDrift:
        """Get back, or find that somebody else has switched this host meanwhile.

        Raises:
            PhaseFailed, PhaseInterrupted, StorageError
        """
        context, intent = self._context, self._intent
        require_names(intent.rollout_id, intent.target, intent.failed)
        self._parts.guard.disarm()
        if not (intent.forward_fired or self._parts.switches.attempts(intent.rollout_id)):
            return self._profile_only()
        current = host.read_current(context.config)
        if self._operator_acted(current):
            assert current is not None
            return RollbackDrift(current)
        self._realise()
        trouble = self._try_profile()
        # Read anew: the switch of an agent that was killed may have ended while Nix was at work.
        current = host.read_current(context.config)
        if current == intent.target and self._finished():
            back = RolledBack(current, 0)
        else:
            back = switch_until_unlocked(self._parts, self._fire, self._verify)
        if trouble:
            self._point_profile()
        return back

    def _operator_acted(self, current: str | None) -> bool:
        """What runs is nothing that this rollout has left: neither end of it, nor what ran when it failed."""
        intent, records = self._intent, self._parts.records
        known = {
            intent.target,
            intent.failed,
            intent.observed_at_failure,
            records.observed_at_failure(intent.rollout_id),
        }
        return current is not None and current not in known

    def _finished(self) -> bool:
        """A rollback of this rollout has succeeded, and the agent went down before it could say so."""
        done = self._parts.records.of(self._intent.rollout_id, ROLLBACK)
        return bool(done) and done[-1].exit_code == 0

    def _profile_only(self) -> RolledBack:
        """The release was never switched to: no unit has changed, and none is to.

        What runs stays, also where it is itself a release that soaks here and whose way back is another system.
        """
        intent, config = self._intent, self._context.config
        stays = host.read_current(config) or intent.target
        if host.read_profile(config.profile) != stays:
            if stays == intent.target:
                self._realise()
            with self._context.phase("profile"):
                profile.point_at(self._context, stays)
        if any(record.started is not None for record in self._parts.records.of(intent.rollout_id, BOOT)):
            self._restore_bootloader(stays)
        return RolledBack(stays, 0)

    def _restore_bootloader(self, stays: str) -> None:
        """A deferred release had begun to write its boot entry: the next boot must bring what runs."""
        last = [r for r in self._parts.records.of(self._intent.rollout_id, BOOT) if r.exit_code == 0]
        if last and last[-1].intent.target == stays:
            return
        update_bootloader(self._parts, self._intent.rollout_id, stays)

    def _realise(self) -> None:
        """The prior closure, with its script. Nix may be what the release broke: our root has held it since before."""
        context, intent = self._context, self._intent
        root = way_back.root_of(context.state_dir, intent.rollout_id, "prior")
        with context.phase("realise"):
            way_back.make_roots_folder(context.state_dir)
            try:
                realise.realise(context, intent.target, root)
            except PhaseFailed as failure:
                if not way_back.leads_to(root, intent.target):
                    raise
                context.log.warning("%s; going back to it all the same", failure, extra={"closure": intent.target})
        if (reason := way_back.script_missing(context, self._parts.backend, intent.target)) is not None:
            raise PhaseFailed("no-switch-script", reason)

    def _point_profile(self) -> None:
        with self._context.phase("profile"):
            profile.point_at(self._context, self._intent.target)

    def _try_profile(self) -> bool:
        """Set the profile; True when that has to wait for the prior system, whose Nix works."""
        try:
            self._point_profile()
        except PhaseFailed as failure:
            self._context.log.warning("%s; after the switch again", failure, extra={"closure": self._intent.target})
            return True
        return False

    def _fire(self) -> Record:
        """The prior system's own script, whatever still runs of the release."""
        with self._context.phase("fire"):
            return self._parts.switches.fire(Job(self._intent.rollout_id, ROLLBACK, self._intent.target, "switch"))

    def _verify(self, record: Record) -> RolledBack:
        current = host.read_current(self._context.config)
        watched = verify_poll.Watched(
            record=record,
            target=self._intent.target,
            expected=(self._intent.failed, self._intent.observed_at_failure, record.intent.running, current),
            fired_at=self._context.clock.monotonic(),
            watch=lambda: None,
        )
        with self._context.phase("verify"):
            ended = verify_poll.follow(self._context, self._parts.switches, watched)
        if ended.killed and record.intent.boot == self._parts.records.boot:
            raise PhaseFailed("switch", verify_poll.last_words(record), ended.exit_code, ended.observed)
        if ended.exit_code != 0:
            self._context.log.warning("%s runs again; its switch ended with %d", ended.observed, ended.exit_code)
        profile.correct(self._context, self._intent.target)
        return RolledBack(ended.observed, ended.exit_code)
