"""What a seed draws: how many hosts, which releases, and what befalls whom when. Swarm: also which faults exist at all.

A plan is a pure function of its seed. To shrink one, steps are left out of it by their numbers.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace

from tests.simulation.machine import Closure

#: Everything that may befall a host, and the control plane; each seed draws which of them exist.
HOST_FAULTS = (
    *("kill", "terminate", "power", "reboot", "net-lost", "net-reset", "net-front", "net-slow", "net-cut"),
    *("disk-full", "disk-broken", "disk-slow", "nix-cut", "locked", "by-hand", "hold", "clock"),
)
PLANE_FAULTS = ("cp-down", "cp-wipe", "cp-forgets", "cp-tampers", "cp-wrong", "cp-replays-old", "cp-lies")
#: How releases may turn out, and how often among those that a seed allows.
OUTCOMES: dict[str, Closure] = {
    "good": Closure(""),
    "slow": Closure("", seconds=90.0, fetch=60.0),
    "kernel": Closure("", inhibitor="linux-2"),
    "sick": Closure("", healthy=False),
    "sick-kernel": Closure("", healthy=False, inhibitor="linux-2"),
    "units": Closure("", code=4),
    "sick-units": Closure("", healthy=False, code=4),
    "activation": Closure("", healthy=False, code=2),
    "refused": Closure("", code=1),
    "next-boot": Closure("", code=100),
    "dies": Closure("", healthy=False, dies=True),
    "absent": Closure("", fetch=None),
    "no-boot": Closure("", inhibitor="linux-3", boots=False),
    "unbootable": Closure("", boots=False),
    "hangs": Closure("", healthy=False, seconds=2000.0),
}
#: Seconds that a fault lasts at most in the short workloads.
LONGEST = 300.0
INSTALLED, FINAL = "v0", "final"


@dataclass(frozen=True, slots=True)
class Step:
    """At ``at`` seconds ``kind`` befalls host number ``host`` (-1: the control plane) for ``seconds``."""

    at: float
    kind: str
    host: int
    seconds: float
    amount: float

    def __str__(self) -> str:
        who = "cp" if self.host < 0 else f"web-{self.host + 1:03}"
        return f"{self.at:8.1f} {who:<8} {self.kind} ({self.amount:.2f}) for {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Plan:
    """``steps`` are in the order of their time; a step of kind ``release:OUTCOME`` is CI's."""

    seed: int
    hosts: int
    preempt: float
    advance: float
    disk_latency: float
    waves: int
    steps: tuple[Step, ...]
    workload: str = "trouble"

    @property
    def kind(self) -> Workload:
        return WORKLOADS[self.workload]

    @property
    def end(self) -> float:
        """When everything that was planned is over."""
        return max((step.at + step.seconds for step in self.steps), default=0.0)

    @property
    def releases(self) -> int:
        return sum(step.kind.startswith("release:") for step in self.steps)

    def keeping(self, numbers: Collection[int]) -> Plan:
        """With these steps only."""
        return replace(self, steps=tuple(step for number, step in enumerate(self.steps) if number in numbers))


@dataclass(frozen=True, slots=True)
class Workload:
    """What kind of life a plan draws: how many hosts (by weight), releases, and seconds between them and of a fault.

    ``pace`` multiplies the agents' intervals; ``lifetime`` is that of certificates, in days.
    """

    hosts: tuple[int, ...]
    weights: tuple[int, ...]
    releases: tuple[int, int]
    gaps: tuple[float, ...]
    lengths: tuple[float, ...]
    faults: tuple[int, ...]
    pace: float = 1.0
    lifetime: float = 30.0


HOUR, DAY = 3600.0, 86400.0
WORKLOADS = {
    "trouble": Workload(
        (1, 2, 3), (80, 15, 5), (1, 6), (8.0, 20.0, 60.0, 150.0, LONGEST), (2.0, 20.0, 60.0, LONGEST), (0, 2, 4, 8, 16)
    ),
    "week": Workload((1,), (1,), (4, 9), (HOUR, 8 * HOUR, DAY), (60.0, HOUR, 12 * HOUR), (2, 6, 12), 10.0, 5.0),
    "quiet": Workload((1,), (1,), (1, 2), (30 * DAY,), (60.0, HOUR), (0, 1), 60.0, 30.0),
    "fleet": Workload((20, 60, 200), (70, 25, 5), (1, 3), (60.0, 300.0), (20.0, LONGEST), (0, 8, 30), 1.0),
}


def draw(seed: int, workload: str = "trouble") -> Plan:
    """The plan of a seed."""
    rng = random.Random(f"plan {seed}")
    kind = WORKLOADS[workload]
    count = rng.choices(kind.hosts, kind.weights)[0]
    outcomes = _some(rng, tuple(OUTCOMES), 0.45)
    host_faults = _some(rng, HOST_FAULTS, 0.35)
    plane_faults = _some(rng, PLANE_FAULTS, 0.25)
    steps: list[Step] = []
    at = 5.0
    for _ in range(rng.randint(*kind.releases)):
        outcome = rng.choice(("good", *outcomes))
        steps.append(Step(at, f"release:{outcome}", -1, 0.0, rng.choice((0, 0, 0, 1))))
        at += rng.choice(kind.gaps) * rng.uniform(0.3, 1.5)
    kinds = [(fault, True) for fault in host_faults] + [(fault, False) for fault in plane_faults]
    for _ in range(rng.choice(kind.faults) if kinds else 0):
        fault, on_host = rng.choice(kinds)
        host = rng.randrange(count) if on_host else -1
        length = rng.choice(kind.lengths) * rng.random()
        steps.append(Step(rng.uniform(0.0, at), fault, host, length, rng.random()))
    return Plan(
        seed=seed,
        hosts=count,
        preempt=rng.choice((0.0, 0.05, 0.3)),
        advance=rng.choice((1.0, 3.0, 5.0)),
        disk_latency=rng.choice((0.0, 0.0, 0.02, 0.5)),
        waves=rng.randint(1, min(count, 4)),
        steps=tuple(sorted(steps, key=lambda step: (step.at, step.kind, step.host))),
        workload=workload,
    )


def _some(rng: random.Random, of: tuple[str, ...], share: float) -> tuple[str, ...]:
    return tuple(each for each in of if rng.random() < share)


def closures(plan: Plan) -> dict[str, Closure]:
    """By short name, all that the plan releases; number ``n`` of its steps is release ``r<n>``."""
    found = {name: Closure(name) for name in (INSTALLED, FINAL, f"{FINAL}-2", f"{FINAL}-3")}
    for name, outcome in releases(plan):
        found[name] = replace(OUTCOMES[outcome], name=name)
    return found


def releases(plan: Plan) -> list[tuple[str, str]]:
    """(short name, outcome) of each release, oldest first."""
    kinds = [step.kind.partition(":")[2] for step in plan.steps if step.kind.startswith("release:")]
    return [(f"r{number}-{outcome}", outcome) for number, outcome in enumerate(kinds, 1)]
