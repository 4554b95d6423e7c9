"""The way back: to the last closure that was proven when the rollout was accepted, by its own script.

A host is back when that closure runs, with its units started anew, and is what boots next. Each half is tried for
itself: a full boot partition does not keep the release running, a part that only a boot can change not its boot entry.
"""

from __future__ import annotations

from nixfleet_agent.activation import host, inhibitors, profile, realise, verify_poll, way_back
from nixfleet_agent.activation.errors import PhaseFailed
from nixfleet_agent.activation.model import Rollback, RollbackDeferred, RollbackDrift, RolledBack
from nixfleet_agent.activation.records import BOOT, EXIT_NEXT_BOOT, FORWARD, GUARD, ROLLBACK, Record
from nixfleet_agent.activation.steps import Parts, require_names, switch_until_unlocked, update_bootloader
from nixfleet_agent.activation.switches import FIRE_PHASE, LOCK_PHASE, Job


class RollbackRun:
    """One attempt at a rollback; the caller tries again when it fails."""

    def __init__(self, parts: Parts, intent: Rollback) -> None:
        self._parts = parts
        self._context = parts.context
        self._intent = intent

    def run(self) -> RolledBack | RollbackDeferred | RollbackDrift:
        """Get back, or find that somebody else has switched this host meanwhile.

        Raises:
            PhaseFailed, PhaseInterrupted, StorageError
        """
        context, intent = self._context, self._intent
        require_names(intent.rollout_id, intent.target, intent.failed)
        self._parts.guard.disarm(keep_hand_over=True)
        if not (intent.forward_fired or self._parts.switches.attempts(intent.rollout_id)):
            return self._profile_only()
        self._parts.guard.disarm()
        current = host.read_current(context.config)
        if self._operator_acted(current):
            assert current is not None
            return RollbackDrift(current)
        self._realise()
        trouble = self._try_profile()
        # Read anew: the switch of an agent that was killed may have ended while Nix was at work.
        back = self._go(host.read_current(context.config))
        if trouble:
            self._point_profile()
        return back

    def _go(self, current: str | None) -> RolledBack | RollbackDeferred:
        """What is still to be done, of what runs and of what boots next."""
        target = self._intent.target
        if current == target and self._runs_anew():
            if not self._boots(target):
                self._write_entry(target)
            return RolledBack(target, 0)
        found = inhibitors.under(self._context, current, target)
        if found is None:
            return self._live()
        if not self._boots(target):
            self._write_entry(target)
        return RollbackDeferred(found.component, self._parts.records.boot)

    def _live(self) -> RolledBack | RollbackDeferred:
        """By a switch; when that fails, at least what boots next is to be good, or what runs, before the next try."""
        try:
            return self._switch("switch")
        except PhaseFailed as failure:
            last = self._parts.records.of(self._intent.rollout_id, ROLLBACK)[-1:]
            if failure.phase in {LOCK_PHASE, FIRE_PHASE} or not last or last[0].exit_code is None:
                raise  # it was not fired, has changed nothing, or still runs
            if last[0].exit_code == EXIT_NEXT_BOOT:
                return RollbackDeferred(inhibitors.INIT_INTERFACE, self._parts.records.boot)
            self._salvage(failure)
            raise

    def _salvage(self, failure: PhaseFailed) -> None:
        """Write the boot entry alone; where that is what fails, go back without it."""
        try:
            self._write_entry(self._intent.target)
        except PhaseFailed as of_entry:
            self._context.log.error("%s; then %s: going back without a boot entry", failure, of_entry)
            self._switch("test")
            raise of_entry from failure

    def _switch(self, action: str) -> RolledBack:
        return switch_until_unlocked(self._parts, lambda: self._fire(action), self._verify)

    def _write_entry(self, closure: str) -> None:
        update_bootloader(self._parts, self._intent.rollout_id, closure, unchecked=True)

    def _runs_anew(self) -> bool:
        """The target's units have been started: by a switch of ours, maybe unheard, or by a boot into it since."""
        ours = self._parts.records.of(self._intent.rollout_id, ROLLBACK)
        if ours and ours[-1].exit_code == 0:
            return True
        entries = self._parts.records.of(self._intent.rollout_id, BOOT)
        ours = [record for record in entries if record.intent.target == self._intent.target]
        return any(record.wrote_entry and not self._parts.records.same_boot(record) for record in ours)

    def _boots(self, closure: str) -> bool:
        """The last switch of this rollout that wrote a boot entry wrote that of ``closure``."""
        records = [r for r in self._parts.records.all() if r.intent.rollout_id == self._intent.rollout_id]
        started = [r for r in records if r.started is not None and r.intent.direction != GUARD and not r.refused]
        wrote = [r for r in started if r.intent.action != "test"]
        return bool(wrote) and wrote[-1].wrote_entry and wrote[-1].intent.target == closure

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
        if self._entry_in_doubt(stays):
            self._write_entry(stays)
        return RolledBack(stays, 0)

    def _entry_in_doubt(self, stays: str) -> bool:
        """A deferred release had begun to write its boot entry: the next boot must bring what runs."""
        rollout_id, records = self._intent.rollout_id, self._parts.records
        begun = [r for direction in (FORWARD, BOOT) for r in records.of(rollout_id, direction) if r.started is not None]
        return any(not r.refused for r in begun) and not self._boots(stays)

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

    def _fire(self, action: str) -> Record:
        """The prior system's own script, whatever still runs of the release and whatever its own checks would say."""
        job = Job(self._intent.rollout_id, ROLLBACK, self._intent.target, action, unchecked=True)
        with self._context.phase("fire"):
            return self._parts.switches.fire(job)

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
        if ended.killed and self._parts.records.same_boot(record):
            raise PhaseFailed("switch", verify_poll.last_words(record), ended.exit_code, ended.observed)
        if ended.exit_code != 0:
            self._context.log.warning("%s runs again; its switch ended with %d", ended.observed, ended.exit_code)
        profile.correct(self._context, self._intent.target)
        return RolledBack(ended.observed, ended.exit_code)
