"""The journal of a modelled host as the agent's own code writes and reads it, each log folded once."""

from __future__ import annotations

from typing import Any

from nixfleet_agent.journal.entries import Entry, entry_of
from nixfleet_agent.journal.header import DISPATCH_KIND, Acceptance
from nixfleet_agent.runtime.rollout import recovery
from nixfleet_agent.runtime.rollout.rollouts import Host, Rollout
from tests.adversary.node import Log, Node, Told
from tests.adversary.worlds import HOSTNAME

_SOME = 100_000


class _Read:
    """An entry of the log, read from its JSON once and not at each of a million restarts."""

    def __init__(self, entry: Entry) -> None:
        self.seq, self.rollout_id, self.created_at = entry.seq, entry.rollout_id, entry.created_at
        self.event, self.soak_left, self.boot_id = entry.event, entry.soak_left, entry.boot_id
        self._read = entry.remote_event() if entry.seq else None

    def remote_event(self) -> Any:
        return self._read


#: By the identity of what they were made of, which each holds: equal logs of other states are other objects.
_READ: dict[int, tuple[object, _Read]] = {}
_FOLDED: dict[tuple[int, int, int], tuple[object, Rollout | None]] = {}


def recovered(node: Node) -> Host:
    """The host as a process that starts now finds it."""
    # In the order of their names, as the folders are read.
    folded = (_folded(log, node.seconds) for log in sorted(node.log, key=_name))
    rollouts = [rollout for rollout in folded if rollout is not None]
    if node.awaited or node.taken_back:
        guards = recovery.Guards(dict.fromkeys(node.taken_back, "not ready in time"), node.awaited)
        rollouts = [guards.told(rollout) for rollout in rollouts]
    return recovery.host_of(rollouts, node.current, float(node.seconds), node.fired)


def forget() -> None:
    """Read and fold everything anew: the code is another one."""
    _READ.clear()
    _FOLDED.clear()


def _name(log: Log) -> str:
    return log[0]


def _folded(log: Log, seconds: int) -> Rollout | None:
    rollout_id, accepted, told = log
    key = (id(accepted), id(told), seconds)
    known = _FOLDED.get(key)
    if known is None:
        if len(_FOLDED) > _SOME:
            forget()
        entries: Any = [_header(accepted), *(_entry(rollout_id, each) for each in told)]
        last = told[-1][0].seq if told else 0
        known = _FOLDED[key] = ((accepted, told), recovery.fold(entries, HOSTNAME, last, float(seconds)))
    return known[1]


def _header(accepted: Acceptance) -> _Read:
    known = _READ.get(id(accepted))
    if known is None:
        entry = Entry(
            seq=0,
            hostname=HOSTNAME,
            rollout_id=accepted.rollout_id,
            kind=DISPATCH_KIND,
            created_at=accepted.accepted_at,
            event=accepted.to_json(),
        )
        known = _READ[id(accepted)] = (accepted, _Read(entry))
    return known[1]


def _entry(rollout_id: str, told: Told) -> _Read:
    known = _READ.get(id(told))
    if known is None:
        event, left, boot = told
        known = _READ[id(told)] = (told, _Read(entry_of(event, HOSTNAME, rollout_id, event.at, left, boot)))
    return known[1]
