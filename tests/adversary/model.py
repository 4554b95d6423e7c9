"""One state of the modelled host, and every move that anybody can make in it.

The decisions are those of the agent's own pure code: ``Turn`` and ``accept`` for the reducer, ``recover`` after a
restart, ``check_order`` and ``Marks`` for manifests, ``Ended`` for how a switch ends. What stands in for the machine is
small: a link, a boot entry, a switch in its middle, the order that a worker has, the probes that run.

``proven`` is kept beside all that, from what was seen and not from what the code believes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

from nixfleet_agent.activation.model import Forward, Rollback
from nixfleet_agent.activation.verify_poll import Ended
from nixfleet_agent.journal.entries import Entry, entry_of
from nixfleet_agent.journal.header import DISPATCH_KIND, Acceptance
from nixfleet_agent.proto.heartbeat import Snapshot
from nixfleet_agent.runtime.rollout import decisions
from nixfleet_agent.runtime.rollout.decisions import Ordered, Rules, Stepped, Turn
from nixfleet_agent.runtime.rollout.evaluate import BOOT_FALLBACK, Moment
from nixfleet_agent.runtime.rollout.orders import ActivationOrder, ResetProbes, StopProbes
from nixfleet_agent.runtime.rollout.recovery import recover
from nixfleet_agent.runtime.rollout.rollouts import Host, Rollout
from nixfleet_agent.runtime.rollout.succession import watched
from nixfleet_agent.state_machine import EmitEvent, Event, Mode, ProbeStatus, State, SwitchMethod, events
from nixfleet_agent.state_machine.record import DeclaredProbe
from nixfleet_agent.trust import resolve
from nixfleet_agent.trust.errors import VerificationError
from nixfleet_agent.trust.marks import ManifestMark, Marks
from tests.adversary.worlds import CLOSURES, HOSTNAME, World
from tests.state_machine.machine import T0

NAMES = {closure: name for name, closure in CLOSURES.items()}
THRESHOLD = 120.0
#: Longer than a soak and than a failure has to last.
LATER = 130
SOON = 60
_WEB = DeclaredProbe(probe_name="web", kind="http", mode=Mode.ENFORCE)

Told = tuple[Event, float | None, str]


@dataclass(frozen=True, slots=True)
class Switch:
    """A script of ours that runs: for which rollout, and whether the link has flipped already."""

    rollout_id: str
    target: str
    flipped: bool = False


@dataclass(frozen=True)
class Node:
    """One state. ``log`` is the journal on disk, ``fired`` the switch records, ``half``: units are stopped.

    ``order`` is what the activation worker has or finds in its mailbox, ``probing`` the rollout that is probed;
    ``by_hand``: an operator chose what runs; ``by_boot``: a boot brought it. ``bad_since``: since when it has
    failed its probe without a break, as seen from outside. ``wrong`` is the first promise that was broken on the way.
    """

    world: World
    host: Host = field(default_factory=Host)
    log: tuple[tuple[str, Acceptance, tuple[Told, ...]], ...] = ()
    marks: Marks = field(default_factory=Marks)
    newest: ManifestMark | None = None
    seconds: int = 0
    turns: int = 0
    boot: int = 1
    current: str = CLOSURES["P"]
    entry: str = CLOSURES["P"]
    half: bool = False
    switch: Switch | None = None
    order: ActivationOrder | None = None
    probing: str | None = None
    fired: frozenset[str] = frozenset()
    proven: frozenset[str] = frozenset({CLOSURES["P"]})
    then: tuple[tuple[str, frozenset[str]], ...] = ()
    by_hand: bool = False
    entry_by_hand: bool = False
    by_boot: bool = False
    bad_since: int | None = None
    wrong: str = ""

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boot}"

    @property
    def moment(self) -> Moment:
        now = T0 + timedelta(seconds=self.seconds, microseconds=self.turns)
        return Moment(now, float(self.seconds), self.current, self.boot_id)


def but(node: Node, **changes: Any) -> Node:
    """``dataclasses.replace``, at the speed that ten million states ask for."""
    new = object.__new__(Node)
    new.__dict__.update(node.__dict__)
    new.__dict__.update(changes)
    return new


class _Kept:
    """An entry of the log, read from its JSON once and not at each of a million restarts."""

    def __init__(self, entry: Entry) -> None:
        self.seq, self.rollout_id, self.created_at = entry.seq, entry.rollout_id, entry.created_at
        self.event, self.soak_left, self.boot_id = entry.event, entry.soak_left, entry.boot_id
        self._read = entry.remote_event() if entry.seq else None

    def remote_event(self) -> Event:
        assert self._read is not None
        return self._read


_KEPT: dict[int, tuple[object, _Kept]] = {}


def _kept(of: object, make: Callable[[], Entry]) -> _Kept:
    known = _KEPT.get(id(of))
    if known is None:
        if len(_KEPT) > 50_000:
            _KEPT.clear()
        known = _KEPT[id(of)] = (of, _Kept(make()))
    return known[1]


class _Log:
    """The journal as ``recover`` reads it."""

    hostname = HOSTNAME

    def __init__(self, node: Node) -> None:
        self._logs = {rollout_id: (accepted, told) for rollout_id, accepted, told in node.log}

    def rollouts(self) -> list[str]:
        return sorted(self._logs)

    def read(self, rollout_id: str) -> list[_Kept]:
        accepted, told = self._logs[rollout_id]
        header = _kept(accepted, lambda: _header(accepted))
        return [header, *(_kept(each, partial(_entry, rollout_id, each)) for each in told)]

    def last_seq(self, rollout_id: str) -> int:
        _, told = self._logs[rollout_id]
        return told[-1][0].seq if told else 0


def _header(accepted: Acceptance) -> Entry:
    return Entry(
        seq=0,
        hostname=HOSTNAME,
        rollout_id=accepted.rollout_id,
        kind=DISPATCH_KIND,
        created_at=accepted.accepted_at,
        event=accepted.to_json(),
    )


def _entry(rollout_id: str, told: Told) -> Entry:
    event, left, boot = told
    return entry_of(event, HOSTNAME, rollout_id, event.at, left, boot)


def take(node: Node, act: Callable[[Turn], object]) -> tuple[Node, object]:
    """One turn of the reducer: the host after it, its events in the log, its orders with the workers."""
    node = but(node, turns=node.turns + 1)
    turn = Turn(node.host, node.moment, Rules(THRESHOLD, 60.0, node.boot_id))
    answer = act(turn)
    declare: str | None = None
    for deed in turn.deeds:
        match deed:
            case Stepped():
                node = _written(node, deed)
            case Ordered(order):
                node = _ordered(node, order)
            case ResetProbes(rollout_id):
                node, declare = but(node, probing=rollout_id), rollout_id
            case StopProbes():
                node, declare = but(node, probing=None, bad_since=None), None
    node = but(node, host=turn.host)
    if declare is not None:
        topology = events.LocalProbeTopologyDeclared(probes=(_WEB,), declared_at=node.moment.now)
        node, _ = take(node, lambda turn: turn.tell(declare, topology))
    return node, answer


def _written(node: Node, deed: Stepped) -> Node:
    record = deed.rollout.record
    boot = node.boot_id if record.state is State.SOAKING else ""
    told = tuple((e.event, deed.soak_left, boot) for e in deed.effects if isinstance(e, EmitEvent))
    log = tuple((r, accepted, old + told if r == record.rollout_id else old) for r, accepted, old in node.log)
    node = but(node, log=log)
    if isinstance(deed.event, events.Converged):
        if node.half or node.current != record.target_closure:
            node = broken(node, "I3: converged on half a system, or on another one")
        return but(node, proven=node.proven | {record.target_closure})
    if isinstance(deed.event, events.Failed) and deed.event.failing_probes == (BOOT_FALLBACK,):
        waiting = [r.record for r in node.host.rollouts.values() if r.record.state is State.DEFERRED]
        if any(each.target_closure == node.current for each in waiting):
            node = broken(node, f"I3: the boot that was waited for is told as a fallback of {record.rollout_id}")
    tried = isinstance(deed.event, events.Failed) or (
        isinstance(deed.event, events.ActivationFailed) and deed.event.switch_fired
    )
    return but(node, proven=node.proven - {record.target_closure}) if tried else node


def _ordered(node: Node, order: ActivationOrder) -> Node:
    known = node.proven.union(*(proven for _, proven in node.then))
    if isinstance(order, Rollback) and _switches(order) and order.target not in known:
        node = broken(node, f"I1: the way back of {order.rollout_id} is {NAMES[order.target]}, which is not proven")
    return but(node, order=order)


def _switches(order: Rollback) -> bool:
    return order.forward_fired is not False or order.inherited


def broken(node: Node, what: str) -> Node:
    """The state with a broken promise, unless an earlier one was."""
    return node if node.wrong else but(node, wrong=what)


# -- the control plane ----------------------------------------------------------------------------


def dispatch(node: Node, index: int) -> Node:
    """It hands out a signed manifest: any, at any time, in any order."""
    release, manifest = node.world.releases[index], node.world.manifests[index]
    if any(rollout_id == release.rollout_id for rollout_id, _, _ in node.log):
        return node
    try:
        resolve.check_order(manifest, node.marks)
    except VerificationError:
        return node
    marks = node.marks.raised(manifest=ManifestMark(manifest.signed_at, manifest.hash))
    node = but(node, marks=marks)
    wanted = replace(release.acceptance(node.current, marks.to_json()), accepted_at=node.moment.now)
    accepted = decisions.accept(node.host, wanted, node.current)
    if isinstance(accepted, str):
        return node
    if node.newest is not None and (
        manifest.signed_at < node.newest.at
        or (manifest.signed_at == node.newest.at and manifest.hash != node.newest.hash)
    ):
        node = broken(node, f"I2: {release.rollout_id} was accepted, and it is not newer")
    if not _open(node):
        node = but(node, proven=node.proven | {node.current})  # it ran before any open rollout of ours
    newest = ManifestMark(manifest.signed_at, manifest.hash)
    then = (*node.then, (release.rollout_id, node.proven))
    node = but(node, newest=newest, then=then, log=(*node.log, (release.rollout_id, accepted, ())))
    return take(node, lambda turn: turn.accepted(accepted, HOSTNAME))[0]


def _open(node: Node) -> bool:
    """Whether what runs is a rollout's doing, or one is under way that may still change it."""
    brought = any(r.record.target_closure == node.current and r.begun for r in node.host.rollouts.values())
    return brought or any(not rollout.record.terminal for rollout in watched(node.host))


def hint(node: Node, state: State) -> Node:
    """It claims anything about the active rollout; no word of it may change more than a number."""
    active = node.host.active
    if active is None:
        return node
    snapshot = Snapshot(
        rollout_id=active.rollout_id,
        hostname=HOSTNAME,
        channel="stable",
        state=state,
        target_closure=active.record.target_closure,
        last_event_seq=10**6,
        dispatched_at=T0,
    )
    after, _ = take(node, lambda turn: turn.raise_seq(snapshot, 1))
    told = after.host.rollouts[active.rollout_id]
    if (told.record.state, told.timers, after.order) != (active.record.state, active.timers, node.order):
        return broken(after, "I4: an unsigned hint changed a rollout")
    return after


# -- the activation worker and the script ---------------------------------------------------------


def forward(node: Node, how: str) -> Node:
    """The worker does something about the forward order that it has."""
    order = node.order
    assert isinstance(order, Forward)
    rollout_id, now = order.rollout_id, node.moment.now
    if how == "fails early":
        node = but(node, order=None)
        return _failed(node, rollout_id, -1, fired=rollout_id in node.fired)
    if not order.already_started:
        started = events.LocalActivationStarted(started_at=now, switch_method=SwitchMethod.SETSID)
        node, told = take(node, lambda turn: turn.tell(rollout_id, started))
        if not told:
            return but(node, order=None)
        node = but(node, order=replace(order, already_started=True))
    if how == "defers":
        node = but(node, order=None, entry=order.target, entry_by_hand=False)
        deferred = events.LocalActivationDeferred(component="kernel", deferred_at=now, boot_id=node.boot_id)
        return take(node, lambda turn: turn.tell(rollout_id, deferred))[0]
    if how == "finds it there":
        # It boots next, too: a boot entry that a deferred release has left is replaced.
        return _completed(but(node, order=None, entry=order.target, entry_by_hand=node.by_hand), rollout_id, 0)
    node, may = take(node, lambda turn: turn.begin_switch(rollout_id))
    if not may:
        return but(node, order=None) if node.order is order else node
    fired = node.fired | {rollout_id}
    switch = Switch(rollout_id, order.target)
    return but(node, fired=fired, half=True, switch=switch, by_hand=False, by_boot=False, bad_since=None)


def script(node: Node, how: str) -> Node:
    """The script goes on: it flips the link, or ends with a code (``killed``: with none)."""
    switch = node.switch
    assert switch is not None
    if how == "flips":
        return replace(
            node, current=switch.target, entry=switch.target, entry_by_hand=False, switch=replace(switch, flipped=True)
        )
    node = but(node, switch=None)
    code = -1 if how == "killed" else int(how)
    complete = switch.flipped and Ended(switch.target, code, (), killed=how == "killed").complete
    node = but(node, half=code not in (0, 4))
    if not (isinstance(node.order, Forward) and node.order.rollout_id == switch.rollout_id):
        return broken(node, f"I1: nobody follows the switch of {switch.rollout_id} to its end")
    node = but(node, order=None)
    if complete:
        return _completed(node, switch.rollout_id, code)
    return _failed(node, switch.rollout_id, code, fired=True)


def guard(node: Node) -> Node:
    """It takes the host back in the middle of a switch that no agent follows."""
    switch, order = node.switch, node.order
    assert switch is not None and isinstance(order, Forward) and order.prior is not None
    node = replace(
        node, switch=None, half=False, current=order.prior, entry=order.prior, entry_by_hand=False, order=None
    )
    return _failed(node, switch.rollout_id, -1, fired=True)


def _completed(node: Node, rollout_id: str, code: int) -> Node:
    event = events.LocalActivationCompleted(
        observed_current_closure=node.current, exit_code=code, completed_at=node.moment.now
    )
    return take(node, lambda turn: turn.tell(rollout_id, event))[0]


def _failed(node: Node, rollout_id: str, code: int, *, fired: bool) -> Node:
    event = events.LocalActivationFailed(
        exit_code=code,
        stderr_tail="no",
        failed_at=node.moment.now,
        switch_fired=fired,
        observed_at_failure=node.current,
    )
    return take(node, lambda turn: turn.tell(rollout_id, event))[0]


def back(node: Node, *, works: bool) -> Node:
    """The worker does something about the rollback that it has."""
    order = node.order
    assert isinstance(order, Rollback)
    if not works:
        return take(node, lambda turn: turn.attempt_failed(order.rollout_id))[0]
    node = but(node, order=None)
    if not _switches(order):
        node = but(node, entry=node.current, entry_by_hand=node.by_hand)  # what runs stays, and boots next
    else:
        node = replace(
            node, current=order.target, entry=order.target, entry_by_hand=False, half=False, switch=None, by_hand=False
        )
    done = events.LocalRollbackCompleted(reverted_to_closure=node.current, exit_code=0, completed_at=node.moment.now)
    return take(node, lambda turn: turn.tell(order.rollout_id, done))[0]


# -- probes, time, the operator, the disk ---------------------------------------------------------


def probe(node: Node, status: ProbeStatus, times: int) -> Node:
    """What runs passes its probe, or fails it as often as it takes."""
    rollout_id = node.probing
    assert rollout_id is not None
    for _ in range(times):
        event = events.LocalProbeResult(
            probe_name="web", mode=Mode.ENFORCE, status=status, observed_at=node.moment.now, failure_reason=None
        )
        node, _ = take(node, partial(Turn.tell, rollout_id=rollout_id, event=event))
    since = node.seconds if node.bad_since is None else node.bad_since
    return but(node, bad_since=None if status is ProbeStatus.PASS else since)


def tick(node: Node, seconds: int = 0) -> Node:
    """Time passes, and a second's tick."""
    return take(but(node, seconds=node.seconds + seconds), lambda turn: turn.tick())[0]


def restart(node: Node) -> Node:
    """The process is killed and the next one reads what is on disk."""
    log: Any = _Log(node)
    host = recover(log, node.current, float(node.seconds), node.fired)
    node = but(node, host=host, order=None, probing=None, bad_since=None)
    return take(node, lambda turn: turn.resume())[0]


def reboot(node: Node, to: str) -> Node:
    """The machine comes up with ``to``: what was written for the next boot, or what somebody chose in the menu."""
    chosen = to != node.entry or node.entry_by_hand
    return restart(but(node, boot=node.boot + 1, current=to, half=False, switch=None, by_hand=chosen, by_boot=True))


def by_hand(node: Node, to: str) -> Node:
    """An operator switches this host."""
    return tick(
        but(node, current=to, entry=to, half=False, by_hand=True, by_boot=False, bad_since=None, entry_by_hand=True)
    )


def forgets(node: Node) -> Node:
    """The state directory is lost: logs, marks, switch records.

    What runs then, and what boots next, was there before anything that is known: it might be an operator's own.
    """
    lost = Node(
        node.world,
        seconds=node.seconds,
        turns=node.turns,
        boot=node.boot,
        current=node.current,
        entry=node.entry,
        proven=frozenset({node.current, node.entry}),
        wrong=node.wrong,
    )
    return tick(lost)


Move = tuple[str, Callable[[Node], Node]]


def moves(node: Node) -> Iterator[Move]:
    """Everything that can happen next."""
    for index, release in enumerate(node.world.releases):
        yield f"dispatch {release.rollout_id}", partial(dispatch, index=index)
    yield "soon", lambda n: tick(n, SOON)
    yield "later", lambda n: tick(n, LATER)
    yield from _worker(node)
    if node.probing is not None:
        yield "passes", lambda n: probe(n, ProbeStatus.PASS, 1)
        yield "fails", lambda n: probe(n, ProbeStatus.FAIL, 2)
    yield "restart", restart
    for to in sorted({node.entry, CLOSURES["P"]}):
        yield f"reboot into {NAMES[to]}", partial(reboot, to=to)
    if node.switch is None:
        for to in (CLOSURES["P"], CLOSURES["A"]):
            if to != node.current:
                yield f"by hand to {NAMES[to]}", partial(by_hand, to=to)
        yield "the disk forgets", forgets
    if node.host.active_id is not None:
        yield "hint", lambda n: hint(n, State.CONVERGED)


def _worker(node: Node) -> Iterator[Move]:
    order, switch = node.order, node.switch
    if switch is not None:
        if not switch.flipped:
            yield "flips", lambda n: script(n, "flips")
        for code in ("0", "4", "2", "100", "killed") if switch.flipped else ("1", "killed"):
            yield f"ends with {code}", partial(script, how=code)
        if isinstance(order, Forward) and order.policy == "rollback-and-halt" and order.prior is not None:
            yield "guard", guard
    elif isinstance(order, Forward):
        yield "fails early", lambda n: forward(n, "fails early")
        if order.target == node.current and not node.half:
            yield "finds it there", lambda n: forward(n, "finds it there")
        elif order.target == CLOSURES["C"]:
            yield "defers", lambda n: forward(n, "defers")
        else:
            yield "begins", lambda n: forward(n, "begins")
    elif isinstance(order, Rollback):
        yield "goes back", lambda n: back(n, works=True)
        yield "can't go back", lambda n: back(n, works=False)


def rollout_of(node: Node, rollout_id: str | None) -> Rollout | None:
    """The rollout of that id, as the code has it."""
    return node.host.rollouts.get(rollout_id) if rollout_id else None
