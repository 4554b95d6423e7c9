"""The one thread that changes rollout state: it reads inputs, steps, makes events durable, and only then acts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType

from nixfleet_agent.errors import StorageError
from nixfleet_agent.journal import header
from nixfleet_agent.journal.entries import Entry, entry_of
from nixfleet_agent.journal.header import DISPATCH_KIND, Accepted
from nixfleet_agent.runtime.rollout.applier import Applier, forward_order, rollback_order
from nixfleet_agent.runtime.rollout.dedup import Journaled, retain_declared, should_record
from nixfleet_agent.runtime.rollout.evaluate import (
    Moment,
    due_event,
    expected_closure,
    needs_probes,
    probes_mislead,
)
from nixfleet_agent.runtime.rollout.event_writer import RetryingEventWriter
from nixfleet_agent.runtime.rollout.inputs import (
    Activate,
    AdvanceTick,
    Answer,
    BootstrapHost,
    HealthChecksReload,
    HostEvent,
    ManifestSetUpdated,
    ReplayRequested,
    RollbackAttemptFailed,
)
from nixfleet_agent.runtime.rollout.orders import Release
from nixfleet_agent.runtime.rollout.replays import Replays
from nixfleet_agent.runtime.rollout.rollouts import (
    SEQ_RAISE_LIMIT,
    Host,
    Rollout,
    handed_back,
    prunable,
    rollback_target,
    why_not_now,
)
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.state_machine import EmitEvent, Event, State, TransitionError, step, timing
from nixfleet_agent.state_machine.events import LocalActivate, ProbeResult
from nixfleet_agent.threads.worker import Worker

#: Longest sleep on an empty queue, in seconds; a tick comes every second, this is for when it does not.
IDLE = 30.0
#: A snapshot with a seq above this is not adopted: it would leave no numbers for the host's own events.
ADOPTED_SEQ_LIMIT = 1 << 48


@dataclass(frozen=True, slots=True)
class Rules:
    """What the reducer needs of the configuration and the machine."""

    threshold: float
    repeat_interval: float
    boot_id: str


class Reducer(Worker):
    """See the module. ``host`` is the state as recovered."""

    name = "reducer"
    limit = 120.0

    def __init__(self, services: Services, applier: Applier, rules: Rules, host: Host) -> None:
        super().__init__(services.shutdown, services.clock)
        self._journal = services.journal
        self._writer = RetryingEventWriter(services, self.alive)
        self._applier = applier
        self._rules = rules
        self._host = host
        self._read_current = services.read_current
        self._attempted: str | None = None
        self._replays = Replays(services.journal, services.clock)
        self._drift: str | None = None
        self._handlers: dict[type, Callable[..., None]] = {
            HostEvent: self._on_event,
            AdvanceTick: self._on_tick,
            Activate: self._on_activate,
            RollbackAttemptFailed: self._on_attempt_failed,
            ReplayRequested: self._on_replay,
            BootstrapHost: self._on_snapshot,
            ManifestSetUpdated: self._on_manifests,
            HealthChecksReload: self._on_health_checks,
        }

    def run(self) -> None:
        """Take up what the last process left, then one input after the other until shutdown."""
        self._publish()
        self._resume()
        while not self.shutdown.is_set:
            self.alive()
            item = self._writer.next_input(IDLE)
            if item is not None:
                self._handlers[type(item)](item)

    # -- after a restart ----------------------------------------------------------------------

    def _resume(self) -> None:
        """The active rollout, and only that one, goes on from where its log and the host say that it is."""
        active = self._host.active
        if active is None:
            return
        if active.record.state is State.PENDING:
            self._acknowledge(active)
        elif not self._order_again(active):
            if active.record.terminal:
                # What it held may not have been let go of yet: the end and the letting go are two steps.
                self._applier.activation.put(Release(active.rollout_id))
            self._on_tick(AdvanceTick(self._read_current()))

    def _order_again(self, rollout: Rollout) -> bool:
        """Give out the order that a rollout waits for the end of; False when it waits for none."""
        record = rollout.record
        if record.state is State.ACTIVATING and not rollout.accepted.adopted:
            self._applier.activation.put(forward_order(rollout, resume=True))
        elif record.rollback_owed and record.prior_closure is not None:
            self._applier.activation.put(rollback_order(rollout, record.prior_closure))
        else:
            return False
        return True

    # -- inputs -------------------------------------------------------------------------------

    def _on_event(self, item: HostEvent) -> None:
        applied = False
        if item.rollout_id == self._host.active_id:
            applied = not self._is_mere_repeat(item) and self._apply(item.rollout_id, item.event)
        else:
            self.log.info(
                "dropped a late %s of a superseded rollout", item.event.kind, extra={"rollout_id": item.rollout_id}
            )
        if item.ack is not None:
            item.ack.reply(Answer.ACCEPTED if applied else Answer.NOT_NOW)

    def _is_mere_repeat(self, item: HostEvent) -> bool:
        """Measure a probe's result; True when it says nothing new and goes no further."""
        event, rollout = item.event, self._host.active
        if not isinstance(event, ProbeResult) or rollout is None or rollout.record.state is not State.SOAKING:
            return False
        if not rollout.probes_started:
            return True  # its probes were stopped meanwhile: what it looked at was another closure
        self._applier.board.count("probe_results", probe=event.probe_name, status=str(event.status))
        monotonic = self.clock.monotonic()
        timers = timing.observed(rollout.timers, event.probe_name, event.status, monotonic)
        last = rollout.last_results.get(event.probe_name)
        queued = last is not None and self._journal.is_queued(item.rollout_id, last.result.seq)
        worth = should_record(last, event, monotonic, self._rules.repeat_interval, queued)
        results = rollout.last_results
        if worth:
            kept = replace(event, seq=rollout.record.last_event_seq + 1)
            results = MappingProxyType({**results, event.probe_name: Journaled(kept, monotonic)})
        self._host = self._host.with_rollout(replace(rollout, timers=timers, last_results=results))
        return not worth

    def _on_tick(self, tick: AdvanceTick) -> None:
        self._hand_back(tick.current_closure)
        self._look_for_drift(tick.current_closure)
        active = self._host.active
        if active is None:
            return
        moment = Moment(self.clock.now(), self.clock.monotonic(), tick.current_closure, self._rules.boot_id)
        if needs_probes(active, moment.current):
            self._host = self._host.with_rollout(replace(active, probes_started=True))
            self._applier.start_probes(active.rollout_id)
            return
        if probes_mislead(active, moment.current):
            self._host = self._host.with_rollout(active.unprobed())
            self._applier.stop_probes()
            return
        event = due_event(active, moment, self._rules.threshold)
        if event is not None:
            self._apply(active.rollout_id, event)

    def _on_activate(self, item: Activate) -> None:
        acceptance = item.acceptance
        if self._journal.knows(acceptance.rollout_id):
            self.log.info("a repeated Dispatch was dropped", extra={"rollout_id": acceptance.rollout_id})
            item.ack.reply(Answer.REPEAT, "this host has run that rollout already; going back needs a new commit")
            return
        if self.clock.monotonic() > item.until:
            # A disk that refused an event held us up: keys, hold and freshness may have changed since it was verified.
            item.ack.reply(Answer.NOT_NOW, "the journal could not be written for a while, so it is verified again")
            return
        reason = why_not_now(self._host, self._attempted)
        if reason is not None:
            item.ack.reply(Answer.NOT_NOW, reason)
            return
        superseded = self._host.active
        # Read anew: since the asker looked, a rollback may have come to its end.
        current = self._read_current() or acceptance.current_closure
        prior, inherited = rollback_target(self._host, current)
        entry = header.accepted(acceptance, self._host.newest_number + 1, prior, inherited=inherited)
        try:
            self._journal.accept(self._header_entry(entry))
        except StorageError as error:
            item.ack.reply(Answer.NOT_NOW, str(error))
            return
        self._host = self._host.accepting(entry, self._journal.hostname)
        item.ack.reply(Answer.ACCEPTED)
        if superseded is not None and superseded.record.state is State.SOAKING:
            self._applier.stop_probes()
        self._acknowledge(self._host.rollouts[entry.rollout_id])

    def _acknowledge(self, rollout: Rollout) -> None:
        entry = rollout.accepted
        ack = LocalActivate(current_closure_at_dispatch=entry.prior_closure, received_at=entry.accepted_at)
        self._apply(rollout.rollout_id, ack)

    def _header_entry(self, entry: Accepted) -> Entry:
        return Entry(
            seq=0,
            hostname=self._journal.hostname,
            rollout_id=entry.rollout_id,
            kind=DISPATCH_KIND,
            created_at=entry.accepted_at,
            event=entry.to_json(),
        )

    def _on_attempt_failed(self, item: RollbackAttemptFailed) -> None:
        if item.rollout_id == self._host.active_id:
            self._attempted = item.rollout_id

    def _on_replay(self, item: ReplayRequested) -> None:
        self._replays.run(item)
        self._applier.kick_outbound()

    def _on_snapshot(self, item: BootstrapHost) -> None:
        snapshot, known = item.snapshot, self._host.rollouts.get(item.snapshot.rollout_id)
        if known is not None:
            self._raise_seq(known, snapshot.last_event_seq)
            self._replays.behind(snapshot.rollout_id, snapshot.last_event_seq, known.record.last_event_seq)
            self._applier.kick_outbound()
        elif item.acceptance is not None and self._host.active_id is None:
            self._adopt(item)

    def _raise_seq(self, rollout: Rollout, seq: int) -> None:
        """A hint may keep us from using a number twice, and do nothing else."""
        record = rollout.record
        # Counted from what is on disk: hint by hint, the numbers could be used up otherwise.
        durable = max(self._journal.last_seq(record.rollout_id), rollout.accepted.adopted_seq)
        raised = min(seq, durable + SEQ_RAISE_LIMIT)
        if record.terminal or raised <= record.last_event_seq:
            return
        self.log.warning(
            "the control plane has seq %d, the log ends at %d: going on from %d",
            seq,
            record.last_event_seq,
            raised,
            extra={"rollout_id": record.rollout_id},
        )
        self._host = self._host.with_rollout(replace(rollout, record=replace(record, last_event_seq=raised)))
        self._publish()

    def _adopt(self, item: BootstrapHost) -> None:
        acceptance, snapshot = item.acceptance, item.snapshot
        if (
            acceptance is None
            or not self._journal.may_adopt(snapshot.rollout_id)
            or snapshot.state in (State.CONVERGED, State.FAILED, State.REVERTED)
            or snapshot.last_event_seq > ADOPTED_SEQ_LIMIT
            or self._read_current() != acceptance.target_closure
        ):
            return
        # Events that another agent left undelivered are taken too: their numbers are used.
        last_seq = max(snapshot.last_event_seq, self._journal.last_seq(snapshot.rollout_id))
        entry = header.adopted(acceptance, snapshot.state, last_seq)
        try:
            self._journal.accept(self._header_entry(entry))
        except StorageError as error:
            self.log.error("could not adopt a rollout: %s", error, extra={"rollout_id": entry.rollout_id})
            return
        self.log.info("adopted a rollout that already runs here", extra={"rollout_id": entry.rollout_id})
        self._host = self._host.accepting(entry, self._journal.hostname)
        rollout = self._host.rollouts[entry.rollout_id]
        timers = timing.resumed(rollout.record, entry.accepted_at, self.clock.monotonic())
        self._host = self._host.with_rollout(replace(rollout, timers=timers))
        if entry.adopted_state is State.PENDING:
            self._acknowledge(rollout)
        self._publish()

    def _on_manifests(self, item: ManifestSetUpdated) -> None:
        self._applier.board.publish("manifests", item)

    def _on_health_checks(self, item: HealthChecksReload) -> None:
        active = self._host.active
        if active is not None and active.probes_started and active.record.state is State.SOAKING:
            self._applier.start_probes(active.rollout_id)

    # -- one event ----------------------------------------------------------------------------

    def _apply(self, rollout_id: str, event: Event) -> bool:
        """Step, make durable, act; False when the machine refuses the event, or shutdown came before it was durable."""
        rollout = self._host.rollouts[rollout_id]
        event = replace(event, seq=rollout.record.last_event_seq + 1)
        now = self.clock.now()
        try:
            record, effects = step(rollout.record, event, now, rollout.accepted.policy)
        except TransitionError as refused:
            self.log.warning("%s", refused, extra={"rollout_id": rollout_id})
            return False
        emitted = [effect.event for effect in effects if isinstance(effect, EmitEvent)]
        for written in emitted:
            left = timing.soak_left(rollout.record, rollout.timers, self.clock.monotonic())
            entry = entry_of(written, self._journal.hostname, rollout_id, now, left)
            if not self._writer.write(entry, written):
                return False
        timers = timing.applied(rollout.timers, record, event, self.clock.monotonic())
        fresh = record.state is State.SOAKING and rollout.record.state is not State.SOAKING
        rollout = replace(
            rollout,
            record=record,
            timers=timers,
            last_results=retain_declared(record, rollout.last_results),
            probes_started=fresh or rollout.probes_started,
        )
        self._host = self._host.with_rollout(rollout)
        self._applier.carry_out(effects, rollout)
        if record.terminal:
            self._after_the_end(now)
        self._publish()
        return True

    # -- after a change -----------------------------------------------------------------------

    def _hand_back(self, current: str | None) -> None:
        """Also at a later tick: at the end itself it may have been unreadable what runs, or an operator's own."""
        ended, self._host = self._host.active_id, handed_back(self._host, current)
        back = self._host.active
        if back is None or back.rollout_id == ended:
            return
        fields = {"rollout_id": back.rollout_id}
        self.log.info("%s never fired a switch: %s goes on", ended, back.rollout_id, extra=fields)
        self._order_again(back)
        self._publish()

    def _after_the_end(self, now: datetime) -> None:
        self._hand_back(self._read_current())
        for rollout_id in prunable(self._host, now, frozenset(self._journal.waiting())):
            try:
                self._journal.prune(rollout_id, now)
                self._host = self._host.without(rollout_id)
            except StorageError as error:
                self.log.warning("could not prune the log of %s: %s", rollout_id, error)

    def _look_for_drift(self, current: str | None) -> None:
        active = self._host.active
        expected = expected_closure(active) if active else None
        drift = current if expected is not None and current is not None and current != expected else None
        if drift == self._drift:
            return
        self._drift = drift
        if drift is not None and active is not None:
            self.log.warning(
                "drift: %s runs, %s is what the rollout left", drift, expected, extra={"rollout_id": active.rollout_id}
            )
        else:
            self.log.info("no drift any more")
        self._applier.board.publish("drift", drift)

    def _publish(self) -> None:
        active = self._host.active
        self._applier.publish(self._host, expected_closure(active) if active else None)
