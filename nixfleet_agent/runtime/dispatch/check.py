"""One try of a Dispatch: all that is asked of this host, of the signed artifacts and of the reducer, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nixfleet_agent.artifacts.cache import Terms
from nixfleet_agent.errors import AgentError
from nixfleet_agent.proto import ids
from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.runtime.dispatch import decision
from nixfleet_agent.runtime.dispatch.decision import Outcome, Pending, Retry
from nixfleet_agent.runtime.rollout.inputs import Ack, Activate
from nixfleet_agent.runtime.services import Services

#: Seconds between two signs of life while the reducer has not answered yet.
_NAP = 30.0
#: Seconds that what was just verified may wait for the reducer. A disk that refuses an event can hold it up for days,
#: and a key may be taken out of the trust file meanwhile.
GOOD_FOR = 60.0


def _always_open() -> str | None:
    """No maintenance windows."""
    return None


def _noted_nowhere(rollout_id: str) -> None:
    """Nobody asked what was accepted."""


@dataclass(frozen=True, slots=True)
class Gates:
    """What this host itself has to say to a Dispatch. The callables must not raise.

    ``knows(rollout_id)``: it ran here already. ``hold()`` and ``quarantined(channel, closure)``: the reason, if any.
    ``window()``: why it waits for a maintenance window, if it does; ``accepted(rollout_id)`` is told what was accepted.
    ``read_current()``: the closure that runs now; whether it is the way back, the reducer decides.
    """

    knows: Callable[[str], bool]
    hold: Callable[[], str | None]
    quarantined: Callable[[str, str], str | None]
    read_current: Callable[[], str | None]
    window: Callable[[], str | None] = _always_open
    accepted: Callable[[str], None] = _noted_nowhere

    @classmethod
    def of(cls, services: Services) -> Gates:
        """Those of the running agent."""

        def hold() -> str | None:
            current = services.hold.current()
            return current.reason if current else None

        def quarantined(channel: str, closure: str) -> str | None:
            hours, now, running = services.config.quarantine_hours, services.clock.now(), services.read_current()
            entry = services.quarantine.refusal(channel, closure, now=now, hours=hours, running=running)
            return f"{entry.reason} in {entry.rollout_id}, until {format_time(entry.until(hours))}" if entry else None

        return cls(
            services.journal.knows,
            hold,
            quarantined,
            services.read_current,
            services.maintenance.reason,
            services.maintenance.accepted,
        )


class DispatchCheck:
    """Used by the long poll worker, in its thread; ``alive`` is its sign of life.

    ``settle`` returns once the Dispatch is on disk: the reducer hears of none that a crash would lose.
    """

    def __init__(self, services: Services, gates: Gates, alive: Callable[[], None], settle: Callable[[], None]) -> None:
        self._machine_id = services.config.machine_id
        self._cache = services.cache
        self._gates = gates
        self._inputs = services.inputs
        self._shutdown = services.shutdown
        self._clock = services.clock
        self._alive = alive
        self._settle = settle

    def ran_here(self, dispatch: Dispatch) -> bool:
        """Whether its rollout ran on this host already, and so will not run again."""
        return self._gates.knows(dispatch.rollout_id)

    def outcome(self, pending: Pending, *, anew: bool, gated: bool) -> Outcome:
        """What has become of ``pending`` now; never raises for anything that was foreseen.

        Args:
            anew: fetch everything again, whatever is remembered.
            gated: at the last try only a gate stood in the way.
        """
        dispatch = pending.dispatch
        if self.ran_here(dispatch):
            return decision.REPEAT
        try:
            self._cache.load()
            expired = decision.expiry(pending, self._cache.window_of(ids.channel_of(dispatch.rollout_id)))
            if expired is not None:
                return expired
            gate = self._gate(dispatch)
            if gate is not None and gated:
                return gate  # no request is needed to know that it still stands in the way
            terms = self._cache.terms(dispatch.rollout_id, self._machine_id, dispatch.target_closure, anew=anew)
            return self._gate(dispatch) or self._hand_over(pending, terms)
        except AgentError as error:
            return decision.of_failure(error)

    def _gate(self, dispatch: Dispatch) -> Retry | None:
        channel = ids.channel_of(dispatch.rollout_id)
        quarantined = self._gates.quarantined(channel, dispatch.target_closure)
        return decision.of_gates(self._gates.hold(), self._gates.window(), quarantined)

    def _hand_over(self, pending: Pending, terms: Terms) -> Outcome:
        """Ask the reducer, which makes it durable or says why not."""
        dispatch = pending.dispatch
        wanted = decision.acceptance(
            dispatch.rollout_id,
            dispatch.target_closure,
            terms,
            soak_due_at=dispatch.soak_due_at,
            received_at=pending.received_at,
            current_closure=self._gates.read_current(),
        )
        self._settle()
        ack = Ack(self._shutdown.wakeup())
        try:
            self._inputs.put(Activate(wanted, ack, self._clock.monotonic() + GOOD_FOR), self._alive)
            while not self._clock.wait(ack.event, _NAP):
                self._alive()
        finally:
            self._shutdown.forget(ack.event)
        outcome = decision.of_answer(ack.value, ack.reason)
        if outcome is decision.ACCEPTED:
            self._gates.accepted(dispatch.rollout_id)
        return outcome
