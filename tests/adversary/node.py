"""One state of the modelled host: what the agent holds in memory and on disk, and the machine under it.

The machine is small: a link, a boot entry, a switch in its middle or at its unheard end, the order that a worker has,
the probes that run, a disk that may refuse. ``proven`` is kept beside all that, from what was seen and not from what
the code believes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.runtime.rollout.deeds import Deed
from nixfleet_agent.runtime.rollout.evaluate import Moment
from nixfleet_agent.runtime.rollout.orders import ActivationOrder
from nixfleet_agent.runtime.rollout.rollouts import Host, Rollout
from nixfleet_agent.state_machine import Event
from nixfleet_agent.trust.marks import ManifestMark, Marks
from tests.adversary.worlds import CLOSURES, World
from tests.state_machine.machine import T0

NAMES = {closure: name for name, closure in CLOSURES.items()}
#: Seconds that a failure has to last.
THRESHOLD = 120.0
#: Longer than a soak and than a failure has to last.
LATER = 130
SOON = 60

#: An event in the log, with the seconds that the soak had to go and the boot, as its file says them.
Told = tuple[Event, float | None, str]
#: The log of one rollout: its id, its seq 0 and its events.
Log = tuple[str, Acceptance, tuple[Told, ...]]


@dataclass(frozen=True, slots=True)
class Switch:
    """A forward switch: for which rollout, whether the link has flipped, and in which boot it was fired.

    ``over_hand``, ``over_boot``, ``over_half``: what it replaces was an operator's choice, brought by a boot, or half
    switched. ``first``: no switch of the rollout was fired before.
    ``code`` is what its script ended with (-1: killed); None while it runs.
    """

    rollout_id: str
    target: str
    boot: int
    over_hand: bool = False
    over_boot: bool = False
    over_half: bool = False
    first: bool = True
    flipped: bool = False
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Stuck:
    """Deeds of a turn that wait for the disk: the first is an event that it has refused. ``host`` is what follows."""

    deeds: tuple[Deed, ...]
    host: Host


@dataclass(frozen=True)
class Node:
    """One state. ``log`` is the journal on disk, ``fired`` the switch records, ``half``: units are stopped.

    ``order`` is what the activation worker has or finds in its mailbox, ``probing`` the rollout that is probed.
    ``switch`` runs; ``ended`` is the record of the last one, ``guarded`` the rollout that the guard has taken back.
    ``entry_way_back``: a rollback has written its boot entry in that boot and waits for the reboot.
    ``by_hand``: an operator chose what runs; ``by_boot``: a boot brought it. ``bad_since``: since when it has failed
    its probe without a break, as seen from outside. ``wrong`` is the first promise that was broken on the way.
    """

    world: World
    host: Host = field(default_factory=Host)
    log: tuple[Log, ...] = ()
    marks: Marks = field(default_factory=Marks)
    newest: ManifestMark | None = None
    seconds: int = 0
    turns: int = 0
    boot: int = 1
    current: str = CLOSURES["P"]
    entry: str = CLOSURES["P"]
    half: bool = False
    switch: Switch | None = None
    ended: Switch | None = None
    guarded: str | None = None
    order: ActivationOrder | None = None
    entry_way_back: int | None = None
    probing: str | None = None
    fired: frozenset[str] = frozenset()
    proven: frozenset[str] = frozenset({CLOSURES["P"]})
    then: tuple[tuple[str, frozenset[str]], ...] = ()
    by_hand: bool = False
    entry_by_hand: bool = False
    by_boot: bool = False
    bad_since: int | None = None
    #: The process: down between its death and its next start.
    up: bool = True
    #: ``""``, ``full`` (the reserve is left for a failure's events) or ``refuses`` (every write).
    disk: str = ""
    stuck: Stuck | None = None
    #: Why no Dispatch comes: ``held`` by an operator, or its certificate is ``refused``.
    silent: str = ""
    #: The rollout whose rollback an operator has given up.
    given_up: str | None = None
    #: How many of the releases CI has published, where the control plane's own planner hands them out.
    published: int = 0
    #: The closure whose agent runs, and whether that was seen to be ready; only where agents take part.
    agent: str = CLOSURES["P"]
    ready: bool = True
    #: The rollout whose own agent is waited for, by a guard; and those that such a guard has taken back.
    awaited: str | None = None
    taken_back: frozenset[str] = frozenset()
    wrong: str = ""

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boot}"

    @property
    def moment(self) -> Moment:
        now = T0 + timedelta(0, self.seconds, self.turns)
        return Moment(now, float(self.seconds), self.current, f"boot-{self.boot}")

    @property
    def changes_agent(self) -> bool:
        """What runs would start another agent than the one that runs."""
        return "agent" in self.world.parties and self.agent != self.current

    @property
    def decides(self) -> bool:
        """Whether the reducer takes inputs now."""
        return self.up and self.stuck is None


def but(node: Node, **changes: Any) -> Node:
    """``dataclasses.replace``, at the speed that ten million states ask for."""
    new = object.__new__(Node)
    new.__dict__.update(node.__dict__)
    new.__dict__.update(changes)
    return new


def broken(node: Node, what: str) -> Node:
    """The state with a broken promise, unless an earlier one was."""
    return node if node.wrong else but(node, wrong=what)


def rollout_of(node: Node, rollout_id: str | None) -> Rollout | None:
    """The rollout of that id, as the code has it."""
    return node.host.rollouts.get(rollout_id) if rollout_id else None
