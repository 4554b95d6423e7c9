"""The one thread that changes rollout state: it reads inputs, steps, makes events durable, and only then acts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from nixfleet_agent.activation.host import read_link
from nixfleet_agent.errors import StorageError
from nixfleet_agent.journal.entries import Entry, entry_of
from nixfleet_agent.journal.header import DISPATCH_KIND, Acceptance
from nixfleet_agent.runtime.rollout.acceptances import accept, adopt
from nixfleet_agent.runtime.rollout.applier import Applier
from nixfleet_agent.runtime.rollout.decisions import Rules, Turn
from nixfleet_agent.runtime.rollout.deeds import HandedBack, Ordered, Refused, Stepped
from nixfleet_agent.runtime.rollout.evaluate import Moment, expected_of
from nixfleet_agent.runtime.rollout.event_writer import RetryingEventWriter
from nixfleet_agent.runtime.rollout.inputs import (
    Activate,
    AdvanceTick,
    AgentReady,
    Answer,
    BootstrapHost,
    HealthChecksReload,
    HostEvent,
    ManifestSetUpdated,
    ReplayRequested,
    RollbackAttemptFailed,
    SuccessorTried,
    SwitchStarting,
)
from nixfleet_agent.runtime.rollout.orders import Release, ResetProbes, StopProbes
from nixfleet_agent.runtime.rollout.replays import Replays
from nixfleet_agent.runtime.rollout.rollouts import Host, prunable
from nixfleet_agent.runtime.rollout.succession import watched
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.state_machine import EmitEvent, State
from nixfleet_agent.state_machine.events import ProbeResult
from nixfleet_agent.threads.worker import Worker

#: Longest sleep on an empty queue, in seconds; a tick comes every second, this is for when it does not.
IDLE = 30.0


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
        self._current_system = services.config.activation.current_system
        self._replays = Replays(services.journal, services.clock)
        self._drift: str | None = None
        self._handlers: dict[type, Callable[..., None]] = {
            HostEvent: self._on_event,
            SwitchStarting: self._on_switch,
            AdvanceTick: self._on_tick,
            Activate: self._on_activate,
            RollbackAttemptFailed: self._on_attempt_failed,
            SuccessorTried: self._on_successor,
            AgentReady: self._on_ready,
            ReplayRequested: self._on_replay,
            BootstrapHost: self._on_snapshot,
            ManifestSetUpdated: self._on_manifests,
            HealthChecksReload: self._on_health_checks,
        }

    @property
    def host(self) -> Host:
        """The rollouts as they are at this moment."""
        return self._host

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
        """What is in charge, and only that, goes on from where its log and the host say that it is."""
        active = self._host.active
        if active is not None and active.record.terminal:
            # What it held may not have been let go of yet: the end and the letting go are two steps.
            self._applier.activation.put(Release(active.rollout_id))
        self._take(lambda turn: turn.resume())
        self._look_for_drift(self._read_current())

    # -- inputs -------------------------------------------------------------------------------

    def _on_event(self, item: HostEvent) -> None:
        event, queued = item.event, False
        rollout = self._host.rollouts.get(item.rollout_id)
        if isinstance(event, ProbeResult) and rollout is not None and rollout.probes_started:
            self._applier.board.count("probe_results", probe=event.probe_name, status=str(event.status))
            last = rollout.last_results.get(event.probe_name)
            queued = last is not None and self._journal.is_queued(item.rollout_id, last.result.seq)
        applied = self._take(lambda turn: turn.tell(item.rollout_id, event, queued=queued))
        if not applied and rollout not in watched(self._host):
            fields = {"rollout_id": item.rollout_id}
            self.log.info("dropped a late %s of a superseded rollout", event.kind, extra=fields)
        if item.ack is not None:
            item.ack.reply(Answer.ACCEPTED if applied else Answer.NOT_NOW)

    def _on_switch(self, item: SwitchStarting) -> None:
        may = self._take(lambda turn: turn.begin_switch(item.rollout_id))
        item.ack.reply(Answer.ACCEPTED if may else Answer.NOT_NOW)

    def _on_tick(self, tick: AdvanceTick) -> None:
        self._take(lambda turn: turn.tick(), lambda: tick.current_closure)
        self._look_for_drift(tick.current_closure)

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
        # Read anew: since the asker looked, a rollback may have come to its end.
        current = self._read_current() or acceptance.current_closure
        unreadable = "" if current is not None else read_link(self._current_system)[1]
        entry = accept(self._host, acceptance, current, unreadable)
        if isinstance(entry, str):
            item.ack.reply(Answer.NOT_NOW, entry)
            return
        try:
            self._journal.accept(self._header_entry(entry))
        except StorageError as error:
            item.ack.reply(Answer.NOT_NOW, str(error))
            return
        item.ack.reply(Answer.ACCEPTED)
        self._take(lambda turn: turn.accepted(entry, self._journal.hostname))

    def _header_entry(self, entry: Acceptance) -> Entry:
        return Entry(
            seq=0,
            hostname=self._journal.hostname,
            rollout_id=entry.rollout_id,
            kind=DISPATCH_KIND,
            created_at=entry.accepted_at,
            event=entry.to_json(),
        )

    def _on_attempt_failed(self, item: RollbackAttemptFailed) -> None:
        self._take(lambda turn: turn.attempt_failed(item.rollout_id))

    def _on_successor(self, item: SuccessorTried) -> None:
        self._take(lambda turn: turn.hand_over(item.rollout_id))

    def _on_ready(self, item: AgentReady) -> None:
        self._host = self._host.ready(item.rollout_id)

    def _on_replay(self, item: ReplayRequested) -> None:
        self._replays.run(item)
        self._applier.kick_outbound()

    def _on_snapshot(self, item: BootstrapHost) -> None:
        snapshot, known = item.snapshot, self._host.rollouts.get(item.snapshot.rollout_id)
        if known is not None:
            # Counted from what is on disk: hint by hint, the numbers could be used up otherwise.
            durable = max(self._journal.last_seq(snapshot.rollout_id), known.accepted.adopted_seq)
            if self._take(lambda turn: turn.raise_seq(snapshot, durable)):
                self.log.warning(
                    "the control plane has seq %d, the log ends at %d: going on from %d",
                    snapshot.last_event_seq,
                    known.record.last_event_seq,
                    self._host.rollouts[snapshot.rollout_id].record.last_event_seq,
                    extra={"rollout_id": snapshot.rollout_id},
                )
            self._replays.behind(snapshot.rollout_id, snapshot.last_event_seq, known.record.last_event_seq)
            self._applier.kick_outbound()
        elif item.acceptance is not None and self._host.active_id is None:
            self._adopt(item)

    def _adopt(self, item: BootstrapHost) -> None:
        rollout_id = item.snapshot.rollout_id
        if item.acceptance is None or not self._journal.may_adopt(rollout_id):
            return
        entry = adopt(item.acceptance, item.snapshot, self._read_current(), self._journal.last_seq(rollout_id))
        if entry is None:
            return
        try:
            self._journal.accept(self._header_entry(entry))
        except StorageError as error:
            self.log.error("could not adopt a rollout: %s", error, extra={"rollout_id": entry.rollout_id})
            return
        self.log.info("adopted a rollout that already runs here", extra={"rollout_id": entry.rollout_id})
        self._take(lambda turn: turn.adopted(entry, self._journal.hostname))

    def _on_manifests(self, item: ManifestSetUpdated) -> None:
        self._applier.board.publish("manifests", item)

    def _on_health_checks(self, item: HealthChecksReload) -> None:
        for rollout in self._host.rollouts.values():
            if rollout.probes_started and rollout.record.state is State.SOAKING:
                self._applier.probe(ResetProbes(rollout.rollout_id))

    # -- one turn -----------------------------------------------------------------------------

    def _take(self, act: Callable[[Turn], bool | None], read: Callable[[], str | None] | None = None) -> bool:
        """Decide, make durable, act; False when ``act`` says so, or shutdown came before all of it was durable."""
        current = (read or self._read_current)()
        moment = Moment(self.clock.now(), self.clock.monotonic(), current, self._rules.boot_id)
        before, turn = self._host, Turn(self._host, moment, self._rules)
        answer = act(turn)
        for deed in turn.deeds:
            if not self._do(deed, moment.now):
                return False
        self._host = turn.host
        if self._host is not before:
            self._after(moment.now, ended=any(isinstance(d, Stepped) and d.rollout.record.terminal for d in turn.deeds))
        return answer is not False

    def _do(self, deed: object, now: datetime) -> bool:
        """One deed; False when shutdown came before its event was durable."""
        match deed:
            case Stepped():
                return self._make_durable(deed, now)
            case Ordered():
                self._applier.order(deed)
            case Refused(rollout_id, reason):
                self.log.warning("%s", reason, extra={"rollout_id": rollout_id})
            case HandedBack(ended, back):
                self.log.info("%s never fired a switch: %s goes on", ended, back, extra={"rollout_id": back})
            case ResetProbes() | StopProbes():
                self._applier.probe(deed)
        return True

    def _make_durable(self, stepped: Stepped, now: datetime) -> bool:
        rollout_id = stepped.rollout.rollout_id
        for effect in stepped.effects:
            if isinstance(effect, EmitEvent):
                boot = self._rules.boot_id if stepped.rollout.record.state is State.SOAKING else ""
                entry = entry_of(effect.event, self._journal.hostname, rollout_id, now, stepped.soak_left, boot)
                if not self._writer.write(entry, effect.event):
                    return False
        self._applier.carry_out(stepped)
        return True

    # -- after a change -----------------------------------------------------------------------

    def _after(self, now: datetime, *, ended: bool) -> None:
        if ended:
            for rollout_id in prunable(self._host, now, frozenset(self._journal.waiting())):
                try:
                    self._journal.prune(rollout_id, now)
                    self._host = self._host.without(rollout_id)
                except StorageError as error:
                    self.log.warning("could not prune the log of %s: %s", rollout_id, error)
        self._publish()

    def _look_for_drift(self, current: str | None) -> None:
        active, expected = self._host.active, expected_of(self._host)
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
        self._applier.publish(self._host)
