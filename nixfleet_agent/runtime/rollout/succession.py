"""Which rollout follows which on this host, who is in charge of what runs, and where the way back leads: pure rules.

The invariant that they keep: what runs is proven (it converged here, or it ran before any open rollout of ours), or it
is watched, with a proven closure to go back to. So a rollout that was superseded stays watched until the switch of its
successor begins, and an unproven closure is never anybody's way back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nixfleet_agent.runtime.rollout.rollouts import Host, Rollout, age
from nixfleet_agent.state_machine import Event, State
from nixfleet_agent.state_machine.events import ActivationCompleted, ActivationDeferred, ActivationFailed


def rollback_target(host: Host, current: str | None) -> tuple[str | None, bool]:
    """The way back of a Dispatch accepted now, and whether it takes over what an unfinished rollback owes."""
    return last_proven(host, current), _takes_over_debt(host, current)


def last_proven(host: Host, current: str | None) -> str | None:
    """The last closure that is proven on this host, None where there is none: what runs, or what it would go back to.

    An agent before this rule took what ran for the way back: what its logs name is believed only as far as the logs
    before it do not say that it failed, or never came to its end.
    """
    active = host.active
    if active is None or (current is not None and _is_proven(host, current)):
        return current
    if active.record.state is State.CONVERGED:
        return active.record.target_closure
    closure, number = active.accepted.prior_closure, active.accepted.number
    while (brought := _brought(host, closure, number)) is not None and not _proves(brought):
        closure, number = brought.accepted.prior_closure, brought.accepted.number
    return closure


def _is_proven(host: Host, current: str) -> bool:
    """What no rollout of ours has brought is an operator's own; it is believed only where nothing of ours is open.

    The active one may have failed before it changed anything, while one before it still waits for its reboot or soaks.
    """
    brought = _brought(host, current)
    return _nothing_open(host) if brought is None else _proves(brought)


def _nothing_open(host: Host) -> bool:
    return all(rollout.record.terminal for rollout in watched(host))


def _proves(rollout: Rollout) -> bool:
    """It converged; or it was adopted, so that its target ran here before anything that the logs know."""
    state = rollout.record.state
    return state is State.CONVERGED or (rollout.accepted.adopted and state is not State.FAILED)


def _brought(host: Host, closure: str | None, before: int | None = None) -> Rollout | None:
    """The latest rollout, of those accepted before number ``before``, that brought the closure to life here."""
    found = [
        rollout
        for rollout in host.rollouts.values()
        if rollout.record.target_closure == closure
        and (before is None or rollout.accepted.number < before)
        and (rollout.begun or rollout.record.activation_completed_at is not None or rollout.accepted.adopted)
    ]
    return max(found, key=age, default=None)


def _takes_over_debt(host: Host, current: str | None) -> bool:
    """An unfinished rollback is taken over, also from an heir that was superseded before its own switch began."""
    active, brought = host.active, _brought(host, current)
    if active is not None and active.record.rollback_owed:
        return True
    if active is not None and active.begun and active.record.state is State.ACTIVATING:
        return False  # its own switch runs: what comes of that, and not the debt before it, is next
    if active is not None and active.accepted.inherited and not (active.begun or active.record.terminal):
        return True
    return brought is not None and brought.record.rollback_owed


def predecessor(host: Host) -> Rollout | None:
    """The rollout before the active one that answers for what runs, until the switch of the active one begins.

    It soaks, it owes a rollback, or its own switch still runs.
    """
    active = host.active
    if active is None or active.begun or active.record.state in (State.SOAKING, State.CONVERGED):
        return None
    if active.accepted.inherited and not _waits_for_boot(active):
        return None  # it has taken over the debt; but no reboot may be waited for with a host that is to go back
    for rollout in _not_overtaken(host, active):
        if _answers(rollout):
            return rollout
    return None


def _answers(rollout: Rollout) -> bool:
    record = rollout.record
    switching = record.state is State.ACTIVATING and rollout.begun
    return record.state is State.SOAKING or record.rollback_owed or switching


def _not_overtaken(host: Host, active: Rollout) -> Iterator[Rollout]:
    """The rollouts before ``active``, newest first, down to the one that changed the host last."""
    for rollout in sorted(host.rollouts.values(), key=age, reverse=True):
        if rollout.accepted.number >= active.accepted.number:
            continue
        yield rollout
        if rollout.begun or rollout.record.converged_at is not None or _paid(rollout):
            return


def _paid(rollout: Rollout) -> bool:
    return rollout.accepted.inherited and rollout.record.state is State.REVERTED


def watched(host: Host) -> tuple[Rollout, ...]:
    """The rollouts that a tick looks at, the active one last: its predecessor, and what a reboot may still bring."""
    active = host.active
    if active is None:
        return ()
    if active.begun or active.record.state in (State.SOAKING, State.CONVERGED):
        return (active,)
    answers = predecessor(host)
    earlier = [r for r in _not_overtaken(host, active) if r is answers or r.record.state is State.DEFERRED]
    return (*reversed(earlier), active)


def may_tell(host: Host, rollout: Rollout, kind: str) -> bool:
    """Whether an event of the rollout is news. One that was superseded while it wrote its boot entry has written it."""
    if rollout.rollout_id == host.active_id or any(each is rollout for each in watched(host)):
        return True
    active = host.active
    under_way = rollout.record.state is State.ACTIVATING and kind == "ActivationDeferred"
    return active is not None and under_way and not active.begun and rollout in _not_overtaken(host, active)


def in_charge(host: Host) -> Rollout | None:
    """The rollout whose order the activation worker has: a switch that began, then a debt, and then the newest.

    A debt that could not be paid at the first attempt does not keep the newest from bringing the cure.
    """
    earlier = predecessor(host)
    if earlier is None or earlier.record.state is State.SOAKING:
        return host.active
    active = host.active
    tried = earlier.record.rollback_owed and earlier.rollout_id == host.attempted
    return active if tried and active is not None and not _waits_for_boot(active) else earlier


def leaves_for(host: Host) -> Rollout | None:
    """The rollout whose own agent is to go on with its soak now, while nothing but a reboot is waited for besides."""
    active = host.active
    soaks = predecessor(host) if active is not None and _waits_for_boot(active) else active
    if soaks is None or not soaks.hands_over or soaks.record.state is not State.SOAKING:
        return None
    return soaks


def why_not_now(host: Host) -> str | None:
    """The reason why a new Dispatch must wait."""
    first = in_charge(host)
    if first is None or not first.record.rollback_owed or first.rollout_id == host.attempted:
        return None
    return f"the rollback of {first.rollout_id} comes first"


def handed_back(host: Host, current: str | None) -> Host:
    """The host after its active rollout ended without ever having fired a switch: what it superseded goes on.

    The newest comes back that has something to do: one that still owes a rollback, or whose switch began, whatever
    runs, for a restart in the middle of it must not forget it; or one whose target is what runs (it soaked, or its
    reboot has come to its end unheard), for otherwise a release would run here that nobody watches.
    """
    active = host.active
    if active is None or not active.record.terminal or active.record.switch_fired is not False:
        return host
    if _paid(active):
        return host
    back = next((each for each in _not_overtaken(host, active) if _has_something_to_do(each, current)), None)
    return host if back is None else host.activating(back.rollout_id)


def _has_something_to_do(rollout: Rollout, current: str | None) -> bool:
    record = rollout.record
    unheard = record.state in (State.ACTIVATING, State.DEFERRED, State.SOAKING) and record.target_closure == current
    return unheard or record.rollback_owed or (record.state is State.ACTIVATING and rollout.begun)


def taken_over(host: Host, heir: Rollout) -> Rollout | None:
    """The rollout whose soak the heir continues where it had nothing to switch: both brought the same closure."""
    earlier = next((rollout for rollout in _not_overtaken(host, heir) if _answers(rollout)), None)
    if earlier is None or earlier.record.state is not State.SOAKING:
        return None
    return earlier if earlier.record.target_closure == heir.record.target_closure else None


def _waits_for_boot(rollout: Rollout) -> bool:
    return rollout.record.state is State.DEFERRED


def lost_its_entry(host: Host, rollout: Rollout) -> Rollout | None:
    """The earlier rollout whose way back has replaced the boot entry for which ``rollout`` waits, if any has."""
    if not _waits_for_boot(rollout):
        return None
    earlier = next((each for each in _not_overtaken(host, rollout) if each.begun), None)
    back, since = earlier.record.reverted_at if earlier else None, rollout.record.deferred_at
    return earlier if back is not None and since is not None and back >= since else None


def as_it_runs(rollout: Rollout, event: Event) -> Event:
    """A failure of what a boot has brought unheard is one of what runs: no switch of ours fired, and it is to go."""
    if not (isinstance(event, ActivationFailed) and rollout.begun and event.switch_fired is False):
        return event
    brought = event.observed_at_failure == rollout.record.target_closure != rollout.accepted.ran
    return replace(event, switch_fired=True) if brought else event


def has_begun(rollout: Rollout, event: Event) -> bool:
    """A switch that a script deferred, or that was never fired after all, has changed nothing that runs."""
    if isinstance(event, ActivationDeferred):
        return False
    if isinstance(event, ActivationFailed) and event.switch_fired is not None:
        return event.switch_fired
    return rollout.begun or isinstance(event, ActivationCompleted)
