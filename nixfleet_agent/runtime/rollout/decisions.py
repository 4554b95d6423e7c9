"""What one input means for the rollouts of this host: pure, and all of it, so that a model can explore it.

A ``Turn`` takes one input at one moment. It ends with the host as it is then and with deeds in order: what has to be
durable, and what is to be done once it is. Nobody may act on a deed before those above it are carried out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.proto.heartbeat import Snapshot
from nixfleet_agent.runtime.rollout.dedup import Journaled, retain_declared, should_record
from nixfleet_agent.runtime.rollout.deeds import Deed, HandedBack, Ordered, Refused, Stepped
from nixfleet_agent.runtime.rollout.evaluate import (
    Moment,
    boot_entry_taken_back,
    due_event,
    needs_probes,
    probes_mislead,
    seen_running,
)
from nixfleet_agent.runtime.rollout.orders import (
    HandOver,
    ResetProbes,
    StandDown,
    StopProbes,
    forward_order,
    rollback_order,
)
from nixfleet_agent.runtime.rollout.rollouts import SEQ_RAISE_LIMIT, Host, Rollout
from nixfleet_agent.runtime.rollout.succession import (
    as_it_runs,
    handed_back,
    has_begun,
    in_charge,
    leaves_for,
    lost_its_entry,
    may_tell,
    predecessor,
    taken_over,
    watched,
)
from nixfleet_agent.state_machine import (
    Effect,
    Event,
    FireRollbackTo,
    FireSwitch,
    ResetProbeCache,
    State,
    TransitionError,
    step,
    timing,
)
from nixfleet_agent.state_machine.events import (
    ActivationFailed,
    ActivationStarted,
    LocalActivate,
    ProbeResult,
)


@dataclass(frozen=True, slots=True)
class Rules:
    """What decisions need of the configuration and the machine."""

    threshold: float
    repeat_interval: float
    boot_id: str


class Turn:
    """See the module. ``host`` is the host so far, ``deeds`` what is to be done about it."""

    def __init__(self, host: Host, moment: Moment, rules: Rules) -> None:
        self.host = host
        self.deeds: list[Deed] = []
        self._moment = moment
        self._rules = rules

    # -- inputs -------------------------------------------------------------------------------

    def tick(self) -> None:
        """A second went by: what was superseded in vain goes on, and what is watched may come to its end."""
        self.hand_back()
        before = self.host
        # The newest first: what a reboot has brought is then no fallback of the one before it.
        for rollout_id in [rollout.rollout_id for rollout in reversed(watched(before))]:
            if self.host is before or any(rollout.rollout_id == rollout_id for rollout in watched(self.host)):
                self._look_at(rollout_id)
        active = self.host.active
        earlier = None if active is None else lost_its_entry(self.host, active)
        if active is not None and earlier is not None:
            self.step(active.rollout_id, boot_entry_taken_back(earlier, self._moment))

    def tell(self, rollout_id: str, event: Event, *, queued: bool = False) -> bool:
        """A worker's event; False when it is no news. ``queued``: its probe's last result still waits for delivery."""
        rollout = self.host.rollouts.get(rollout_id)
        if rollout is None or not may_tell(self.host, rollout, event.kind):
            return False
        if isinstance(event, ActivationStarted) and in_charge(self.host) is not rollout:
            return False
        if isinstance(event, ProbeResult) and rollout.record.state is State.SOAKING:
            return self._measure(rollout, event, queued) and self.step(rollout_id, event)
        return self.step(rollout_id, as_it_runs(rollout, event))

    def begin_switch(self, rollout_id: str) -> bool:
        """Whether a switch may start now. From here on the rollout answers for what runs, and nobody before it."""
        rollout = self.host.rollouts.get(rollout_id)
        if rollout is None or in_charge(self.host) is not rollout or rollout.record.state is not State.ACTIVATING:
            return False
        earlier = predecessor(self.host)
        if earlier is not None and earlier.probes_started:
            self.host = self.host.with_rollout(earlier.unprobed())
            self.deeds.append(StopProbes())
        self.host = self.host.with_rollout(replace(rollout, begun=True))
        return True

    def attempt_failed(self, rollout_id: str) -> None:
        """One try of a rollback failed: what waits for it may take its turn."""
        before = in_charge(self.host)
        if before is None or before.rollout_id != rollout_id:
            return
        self.host = replace(self.host, attempted=rollout_id)
        self._pass_on(before)

    def hand_over(self, rollout_id: str) -> bool:
        """The release's own agent is to go on with the soak, while no more than a reboot is waited for."""
        rollout = self.host.rollouts.get(rollout_id)
        if rollout is None or not _soaks(rollout) or rollout.hands_over:
            return False
        self.host = self.host.with_rollout(replace(rollout, hands_over=True))
        self._leave()
        return True

    def accepted(self, entry: Acceptance, hostname: str) -> None:
        """A Dispatch became durable: it is acknowledged, and supersedes whatever was active."""
        self.host = self.host.accepting(entry, hostname)
        self.acknowledge(self.host.rollouts[entry.rollout_id])

    def acknowledge(self, rollout: Rollout) -> None:
        """The first event of an accepted rollout."""
        entry = rollout.accepted
        ack = LocalActivate(current_closure_at_dispatch=entry.ran, received_at=entry.accepted_at)
        self.step(rollout.rollout_id, ack)

    def adopted(self, entry: Acceptance, hostname: str) -> None:
        """A rollout that already runs here, and whose log was lost."""
        host = self.host.accepting(entry, hostname)
        rollout = host.rollouts[entry.rollout_id]
        timers = timing.resumed(rollout.record, entry.accepted_at, self._moment.monotonic)
        begun = rollout.record.state is not State.PENDING
        rollout = replace(rollout, timers=timers, begun=begun, boot_id=self._moment.boot_id)
        self.host = host.with_rollout(rollout)
        if entry.adopted_state is State.PENDING:
            self.acknowledge(rollout)

    def resume(self) -> None:
        """A process began: the rollout in charge goes on from where its log and the host say that it is.

        What a boot did to a deferred rollout is told before anything is ordered: where it brought the target, that one
        is in charge, and what the rollout before it still owed would take the host away from under its soak.
        """
        if self.host.active is not None and self.host.active.record.state is State.DEFERRED:
            self.tick()
        active, first = self.host.active, in_charge(self.host)
        if active is None or first is None:
            return
        if active.record.state is State.PENDING:
            self.acknowledge(active)
        if not (first is active and active.record.state is State.PENDING):
            self._order(first, resume=True)
        self.tick()

    def raise_seq(self, snapshot: Snapshot, durable: int) -> bool:
        """A control plane's hint may keep us from using a number twice, and do nothing else.

        It raises by little over ``durable``, the last number on disk: hint by hint, they could be used up otherwise.
        """
        rollout = self.host.rollouts[snapshot.rollout_id]
        record = rollout.record
        raised = min(snapshot.last_event_seq, durable + SEQ_RAISE_LIMIT)
        if record.terminal or raised <= record.last_event_seq:
            return False
        self.host = self.host.with_rollout(replace(rollout, record=replace(record, last_event_seq=raised)))
        return True

    # -- one step -----------------------------------------------------------------------------

    def step(self, rollout_id: str, event: Event) -> bool:
        """One event through the machine; False when it is refused."""
        rollout, before = self.host.rollouts[rollout_id], in_charge(self.host)
        event = replace(event, seq=rollout.record.last_event_seq + 1)
        try:
            record, effects = step(rollout.record, event, self._moment.now, rollout.accepted.policy)
        except TransitionError as refused:
            self.deeds.append(Refused(rollout_id, str(refused)))
            return False
        left = timing.soak_left(rollout.record, rollout.timers, self._moment.monotonic)
        fresh = record.state is State.SOAKING and rollout.record.state is not State.SOAKING
        timers = timing.applied(rollout.timers, record, event, self._moment.monotonic)
        earlier = taken_over(self.host, rollout) if fresh and not rollout.begun else None
        after = replace(
            rollout,
            record=record,
            timers=timing.taken_over(timers, earlier.timers, self._moment.monotonic) if earlier else timers,
            last_results=retain_declared(record, rollout.last_results),
            probes_started=fresh or rollout.probes_started,
            begun=has_begun(rollout, event),
            boot_id=self._moment.boot_id if record.state is State.SOAKING else rollout.boot_id,
        )
        self.host = self.host.with_rollout(after)
        self.deeds.append(Stepped(after, event, effects, left))
        self._carry_out(after, effects, ended_soak=rollout.record.state is State.SOAKING and not _soaks(after))
        self._pass_on(before)
        if record.terminal:
            self.hand_back()
        elif record.state is State.DEFERRED:
            self._leave()  # the order for it gave way to the one that has ended here
        return True

    def hand_back(self) -> None:
        """Also at a later tick: at the end itself it may have been unreadable what runs, or an operator's own."""
        before = self.host
        self.host = handed_back(before, self._moment.current)
        ended, back = before.active_id, self.host.active
        if ended is None or back is None or back.rollout_id == ended:
            return
        self.deeds.append(HandedBack(ended, back.rollout_id))
        # Not the order of whoever goes on: one before it may owe a rollback still, which comes first.
        self._pass_on(in_charge(before), resume=True)

    def _carry_out(self, rollout: Rollout, effects: tuple[Effect, ...], *, ended_soak: bool) -> None:
        first = in_charge(self.host)
        for effect in effects:
            if isinstance(effect, FireSwitch) and first is rollout and not rollout.accepted.adopted:
                self.deeds.append(Ordered(forward_order(rollout)))
            elif isinstance(effect, FireRollbackTo) and first is rollout:  # else its turn comes
                self.deeds.append(Ordered(rollback_order(rollout, effect.closure)))
            elif isinstance(effect, ResetProbeCache):
                self.deeds.append(ResetProbes(effect.rollout_id))
        if ended_soak:
            self.deeds.append(StopProbes())

    def _pass_on(self, before: Rollout | None, *, resume: bool = False) -> None:
        """Whoever is in charge now, and was not before, gets its order; a rollback of before is not carried out."""
        first = in_charge(self.host)
        if first is None or before is None or first.rollout_id == before.rollout_id:
            return
        if any(isinstance(deed, Ordered) and deed.order.rollout_id == first.rollout_id for deed in self.deeds):
            return
        ordered = self._order(first, resume=resume or first.begun)
        if not ordered and self.host.rollouts[before.rollout_id].record.rollback_owed:
            # A deferred release may have come to life under a rollback that stood still: it is not to end its soak.
            self.deeds.append(Ordered(StandDown(before.rollout_id)))

    def _order(self, rollout: Rollout, *, resume: bool) -> bool:
        """Give out the order that a rollout waits for the end of; False when it waits for none."""
        record = rollout.record
        if record.state is State.ACTIVATING and not rollout.accepted.adopted:
            self.deeds.append(Ordered(forward_order(rollout, resume=resume)))
        elif record.rollback_owed and record.prior_closure is not None:
            self.deeds.append(Ordered(rollback_order(rollout, record.prior_closure)))
        elif _soaks(rollout) and rollout.hands_over:
            self.deeds.append(Ordered(HandOver(forward_order(rollout))))
        else:
            return False
        return True

    def _leave(self) -> None:
        rollout = leaves_for(self.host)
        if rollout is not None:
            self.deeds.append(Ordered(HandOver(forward_order(rollout))))

    # -- probes and time ----------------------------------------------------------------------

    def _look_at(self, rollout_id: str) -> None:
        moment, before = self._moment, self.host.rollouts[rollout_id]
        rollout = seen_running(before, moment)
        if rollout is not before:
            self.host = self.host.with_rollout(rollout)
        if needs_probes(rollout, moment.current):
            self.host = self.host.with_rollout(replace(rollout, probes_started=True))
            self.deeds.append(ResetProbes(rollout_id))
            return
        event = due_event(rollout, moment, self._rules.threshold)
        superseded = rollout_id != self.host.active_id
        if superseded and isinstance(event, ActivationFailed):
            return  # another boot entry took its place, or will; only what it may still bring matters
        if event is not None:
            self.step(rollout_id, event)
        elif probes_mislead(rollout, moment.current):
            self.host = self.host.with_rollout(rollout.unprobed())
            self.deeds.append(StopProbes())

    def _measure(self, rollout: Rollout, event: ProbeResult, queued: bool) -> bool:
        """Measure a probe's result; True when it is worth an event of its own."""
        if not rollout.probes_started:
            return False  # its probes were stopped meanwhile: what it looked at was another closure
        monotonic = self._moment.monotonic
        last = rollout.last_results.get(event.probe_name)
        worth = should_record(last, event, monotonic, self._rules.repeat_interval, queued)
        results = rollout.last_results
        if worth:
            kept = replace(event, seq=rollout.record.last_event_seq + 1)
            results = MappingProxyType({**results, event.probe_name: Journaled(kept, monotonic)})
        timers = timing.observed(rollout.timers, event.probe_name, event.status, monotonic)
        self.host = self.host.with_rollout(replace(rollout, timers=timers, last_results=results))
        return worth


def _soaks(rollout: Rollout) -> bool:
    return rollout.record.state is State.SOAKING
