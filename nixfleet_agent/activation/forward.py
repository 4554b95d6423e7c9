"""The way forward, step by step; and how to take it up again after a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nixfleet_agent.activation import host, inhibitors, profile, realise, script_words, verify_poll, way_back
from nixfleet_agent.activation.consent import await_consent
from nixfleet_agent.activation.errors import PhaseFailed
from nixfleet_agent.activation.model import EXIT_THIRD_CLOSURE, Completed, Deferred, Forward
from nixfleet_agent.activation.patience import Patience
from nixfleet_agent.activation.records import BOOT, EXIT_NEXT_BOOT, FORWARD, GUARD, Record, left_by
from nixfleet_agent.activation.steps import Parts, require_names, switch_until_unlocked, update_bootloader
from nixfleet_agent.activation.switches import Job, Status

NOOP = "noop"
#: How often a switch is fired again after one that had started was lost with the agent or the machine.
MAX_REFIRES = 2


@dataclass(frozen=True, slots=True)
class Telling:
    """Whom the pipeline tells: ``started`` once at the beginning, with how it is planned to switch, ``switching``
    just before each switch.

    What ``switching`` raises keeps the switch from being fired: until it returns, another one answers for what runs.
    """

    started: Callable[[str], None]
    switching: Callable[[], None]


class ForwardRun:
    """One call of the forward pipeline."""

    def __init__(self, parts: Parts, intent: Forward, tell: Telling) -> None:
        self._parts = parts
        self._context = parts.context
        self._intent = intent
        self._started = tell.started
        self._announced = False
        self._switching = tell.switching

    def run(self) -> Completed | Deferred:
        """From the beginning.

        Raises:
            PhaseFailed, PhaseInterrupted, StorageError
        """
        context, intent = self._context, self._intent
        self._announce()
        require_names(intent.rollout_id, intent.target, intent.prior)
        self._parts.guard.disarm(keep_hand_over=True)
        patience = Patience(context, intent.target, intent.fresh_until)
        with context.phase("way-back"):
            way_back.secure(context, self._parts.backend, intent, patience)
        with context.phase("lock"):
            self._parts.switches.wait_for_lock()
        if self._runs_already(host.read_current(context.config)):
            return self._noop()
        self._realise(patience)
        found = inhibitors.between(context, host.read_current(context.config), intent.target)
        if found is None:
            # A veto may stand for hours: until it is lifted, a reboot must bring the system that the profile names.
            with context.phase("consent"):
                await_consent(context, intent)
        before = host.read_profile(context.config.profile)
        try:
            with context.phase("profile"):
                profile.point_at(context, intent.target, patience)
            return self._switch() if found is None else self._defer(found.component)
        except PhaseFailed:
            self._restore_profile(before)
            raise

    def resume(self) -> Completed | Deferred:
        """After a restart: from what the records and the host say (raises as ``run``)."""
        context, intent = self._context, self._intent
        self._announce()
        require_names(intent.rollout_id, intent.target, intent.prior)
        self._parts.guard.raise_if_acted(intent.rollout_id)
        record = self._last_attempt()
        if record is None:
            self._await_older()
        current = self._readable_current()
        if record is None:
            if self._runs_already(current):
                return self._noop()
            self._refuse_third(current, (intent.prior, *self._left_by_ours()) if intent.prior else (current,))
            return self.run()
        status = self._parts.switches.status(record)
        if status is not Status.LOST or current == intent.target:
            self._switching()
            try:
                return self._verify(record, record.intent.fired_at if self._same_boot(record) else None)
            except PhaseFailed:
                self._restore_profile(record.intent.running)
                raise
        self._refuse_third(current, (intent.prior, record.intent.running))
        if len(self._parts.switches.attempts(intent.rollout_id)) > MAX_REFIRES:
            said = f"lost {MAX_REFIRES + 1} times, each time with the agent or the machine\n"
            raise PhaseFailed("switch", said + record.output(verify_poll.TAIL_BYTES), observed=current)
        context.log.warning("the switch was lost with the agent or the machine: firing it again")
        return self.run()

    def _announce(self) -> None:
        """The work begins: told before anything can fail, be deferred or complete, and so as it is planned."""
        if self._announced:
            return
        nothing_to_do = self._runs_already(host.read_current(self._context.config))
        self._started(NOOP if nothing_to_do else self._parts.backend.method)
        self._announced = True

    def _runs_already(self, current: str | None) -> bool:
        """Whether there is nothing to switch: the target is current, and nothing has left it half switched.

        The last switch of this boot that may have touched a unit may have flipped the link and then failed, for another
        rollout: its units were stopped and never started, and only another switch does that.
        """
        fired = [r for r in self._parts.records.all() if r.intent.action != "boot" and self._same_boot(r)]
        code = next((record.exit_code for record in reversed(fired) if record.live_changed), 0)
        whole = code == 0 or (code in verify_poll.DONE and self._context.config.failed_units != "fail")
        return whole and current == self._intent.target

    def _switch(self) -> Completed | Deferred:
        self._parts.switches.wait_for_lock()
        self._context.check()
        self._switching()
        return switch_until_unlocked(self._parts, self._fire, self._verify)

    def _restore_profile(self, before: str | None) -> None:
        """Nothing that runs was changed, so what boots next is as before: the profile must not name another system."""
        if before is None or self._parts.switches.attempts(self._intent.rollout_id):
            return
        try:
            profile.point_at(self._context, before)
        except PhaseFailed as failure:
            self._context.log.warning("%s; the profile stays where it is", failure, extra={"closure": before})

    def _realise(self, patience: Patience) -> None:
        context, intent = self._context, self._intent
        with context.phase("realise"):
            way_back.make_roots_folder(context.state_dir)
            root = way_back.root_of(context.state_dir, intent.rollout_id, "target")
            realise.realise(context, intent.target, root, patience)
        if (reason := way_back.script_missing(context, self._parts.backend, intent.target)) is not None:
            raise PhaseFailed("no-switch-script", reason)

    def _noop(self) -> Completed:
        """The target runs already: at most the profile and the bootloader's entry are behind."""
        intent = self._intent
        with self._context.phase("profile"):
            moved = profile.point_at(self._context, intent.target)
        if moved or self._other_boots_next():
            update_bootloader(self._parts, intent.rollout_id, intent.target)
        self._stand_down()
        return Completed(intent.target, 0, ())

    def _other_boots_next(self) -> bool:
        """The last thing done to this host was to defer another closure to the next boot."""
        done = [r for r in self._parts.records.all() if r.intent.direction != "guard" and r.started is not None]
        if not done:
            return False
        last = done[-1].intent
        deferred = last.direction == BOOT or done[-1].exit_code == EXIT_NEXT_BOOT
        return deferred and last.target != self._intent.target and self._parts.records.same_boot(done[-1])

    def _defer(self, component: str) -> Deferred:
        """It takes a reboot: leave the running system alone, make the next boot bring the target."""
        records = self._parts.records.of(self._intent.rollout_id, BOOT)
        if not any(self._same_boot(record) and record.exit_code == 0 for record in records):
            update_bootloader(self._parts, self._intent.rollout_id, self._intent.target)
        return Deferred(component, self._parts.records.boot)

    def _fire(self) -> Record:
        intent, guard = self._intent, self._parts.guard
        with self._context.phase("fire"):
            try:
                return self._parts.switches.fire(
                    Job(intent.rollout_id, FORWARD, intent.target, "switch"), lambda forward: guard.arm(intent, forward)
                )
            except PhaseFailed:
                guard.disarm(keep_hand_over=True)
                raise

    def _verify(self, record: Record, fired_at: float | None = None) -> Completed | Deferred:
        try:
            return self._follow(record, fired_at)
        except PhaseFailed as failure:
            if failure.phase != "switch" or failure.observed != record.intent.running or record.live_changed:
                raise
            return self._unchanged(record, failure)

    def _unchanged(self, record: Record, failure: PhaseFailed) -> Deferred:
        """The script itself has found that nothing may be changed live (raises PhaseFailed where it found a fault)."""
        if record.lock_refused:
            raise failure
        self._parts.guard.disarm()
        self._parts.guard.raise_if_acted(self._intent.rollout_id)
        if record.exit_code == EXIT_NEXT_BOOT:
            return Deferred(inhibitors.INIT_INTERFACE, self._parts.records.boot)
        words = record.output(verify_poll.TAIL_BYTES)
        if components := script_words.inhibited_by(words):
            return self._defer(inhibitors.Inhibition(components).component)
        raise PhaseFailed("pre-switch-check", failure.tail, failure.exit_code, failure.observed) from failure

    def _follow(self, record: Record, fired_at: float | None) -> Completed:
        intent, config, now = self._intent, self._context.config, self._context.clock.monotonic()
        watched = verify_poll.Watched(
            record=record,
            target=intent.target,
            expected=(intent.prior, record.intent.running),
            fired_at=now if fired_at is None else min(now, fired_at),
            watch=lambda: self._parts.guard.raise_if_acted(intent.rollout_id),
        )
        with self._context.phase("verify"):
            ended = verify_poll.follow(self._context, self._parts.switches, watched)
        if ended.exit_code != 0:
            self._context.log.warning("%s is current; its switch ended with %d", ended.observed, ended.exit_code)
            # After a reboot into the target its units have been started anew, whatever the switch had said of them.
            if self._same_boot(record) and (config.failed_units == "fail" or not ended.complete):
                if ended.killed and len(self._parts.switches.attempts(intent.rollout_id)) == 1:
                    return self._again()
                raise PhaseFailed("switch", verify_poll.last_words(record), ended.exit_code, ended.observed)
        profile.correct(self._context, intent.target)
        self._stand_down()
        return Completed(ended.observed, ended.exit_code, ended.failed_units)

    def _again(self) -> Completed:
        """Killed after the flip: the host is half switched, and the script goes on from there when it is run again."""
        self._context.log.warning("the switch was killed after the flip: firing it again")
        self._parts.guard.disarm()
        self._parts.guard.raise_if_acted(self._intent.rollout_id)
        return self._follow(self._fire(), None)

    def _stand_down(self) -> None:
        """The report of success follows: from there on nobody may take the host back but the agent itself."""
        self._parts.guard.disarm()
        self._parts.guard.raise_if_acted(self._intent.rollout_id)

    def _await_older(self) -> None:
        """A switch that a superseded rollout fired goes on without us: awaited up to its budget, never raced."""
        context, switches = self._context, self._parts.switches
        while (older := switches.running()) is not None and older.intent.direction != GUARD:
            flipped = host.read_current(context.config) == older.intent.target
            budget = context.config.poll_budget_secs + (context.config.settle_budget_secs if flipped else 0)
            if context.clock.monotonic() - older.intent.fired_at >= budget:
                return  # it hangs: whatever fires next ends it first
            context.pause(context.config.poll_interval_secs, fired=True)

    def _last_attempt(self) -> Record | None:
        """The last forward switch that has started; one that has not is taken back, so that it never will."""
        for record in reversed(self._parts.records.of(self._intent.rollout_id, FORWARD)):
            if record.withdraw():
                self._parts.records.remove(record)
            elif not record.lock_refused:
                return record
        return None

    def _left_by_ours(self) -> tuple[str | None, ...]:
        """What the last switch of ours may have left: one that this rollout superseded ends after its acceptance."""
        return left_by(self._parts.records.all())

    def _readable_current(self) -> str | None:
        """What runs; a link that is being replaced, or not there yet this early in a boot, is waited for."""
        clock, config = self._context.clock, self._context.config
        deadline = clock.monotonic() + config.poll_budget_secs
        while (current := host.read_current(config)) is None and clock.monotonic() < deadline:
            self._context.pause(config.poll_interval_secs)
        return current

    def _refuse_third(self, current: str | None, expected: tuple[str | None, ...]) -> None:
        if current is not None and current not in expected:
            said = f"{current} is current, neither {self._intent.target} nor what ran before"
            raise PhaseFailed("third-closure", said, EXIT_THIRD_CLOSURE, current)

    def _same_boot(self, record: Record) -> bool:
        return self._parts.records.same_boot(record)
