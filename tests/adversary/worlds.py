"""Small worlds to explore: what runs at first, and the manifests that CI has signed for this host, ever."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.proto.fleet import Meta
from nixfleet_agent.proto.manifest import RolloutManifest
from nixfleet_agent.state_machine import Policy
from nixfleet_agent.trust.roots import PublicKey
from nixfleet_agent.trust.verify import VerifiedManifest
from tests.state_machine.machine import T0

HOSTNAME = "web-01"
#: ``P`` runs at first and is proven; ``A``, ``B`` and ``C`` come in releases. ``C`` can't be switched to live.
CLOSURES = {name: letter * 32 + f"-{name}" for name, letter in zip("PABC", "pabc", strict=True)}
#: Every soak in the model, in minutes; one move of time is longer.
SOAK_MINUTES = 2
_ANY: Any = None
PARTIES = ("absent", "disk", "people", "planner", "agent")
#: When the releases of a world are signed, in minutes: one after the other.
IN_ORDER = (1, 2, 3, 4)


@dataclass(frozen=True)
class Release:
    """One manifest that names this host, signed ``minute`` minutes after the beginning."""

    channel: str
    target: str
    minute: int
    policy: Policy = Policy.ROLLBACK_AND_HALT
    commit: str = "a1"

    @property
    def rollout_id(self) -> str:
        return f"{self.channel}@{self.commit}"

    def verified(self) -> VerifiedManifest:
        """As the verifier gives it out."""
        signed_at = T0 + timedelta(minutes=self.minute)
        entry = {"hostname": HOSTNAME, "waveIndex": 0, "targetClosure": CLOSURES[self.target]}
        meta = Meta(1, signed_at, self.commit)
        manifest = RolloutManifest(1, self.channel, self.commit, "f" * 64, (entry,), meta)
        key: PublicKey = _ANY
        return VerifiedManifest(manifest, f"{self.rollout_id}-{self.minute}", signed_at, "ci", key)

    def acceptance(self, current: str | None, at: datetime) -> Acceptance:
        """As the check of a Dispatch hands it to the reducer."""
        signed_at = T0 + timedelta(minutes=self.minute)
        return Acceptance(
            rollout_id=self.rollout_id,
            target_closure=CLOSURES[self.target],
            current_closure=current,
            soak_due_at=T0,
            accepted_at=at,
            soak_floor=SOAK_MINUTES,
            policy=self.policy,
            manifest_hash="m" * 64,
            manifest_signed_at=signed_at,
            fleet_hash="f" * 64,
            fleet_signed_at=signed_at,
        )


@dataclass(frozen=True)
class World:
    """Four manifests in two channels, what each of them brings, and who takes part besides a hostile control plane.

    ``parties``: ``absent`` (the agent dies, and others act before it starts), ``disk`` (it is full, or refuses),
    ``people`` (give up, hold, refuse its certificate), ``planner`` (the local control plane's, in its own order),
    ``agent`` (every closure has another agent, which may fail its check, or pass it and not start).
    """

    name: str
    releases: tuple[Release, ...]
    parties: frozenset[str] = frozenset()
    manifests: tuple[VerifiedManifest, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "manifests", tuple(release.verified() for release in self.releases))


def world(targets: str, policies: str = "rrrr", minutes: tuple[int, ...] = IN_ORDER, party: str = "") -> World:
    """Releases of ``targets`` in turn on two channels; policies ``r`` (rollback-and-halt) and ``h`` (halt)."""
    releases = tuple(
        Release(
            "stable" if index % 2 == 0 else "edge",
            target,
            minute,
            Policy.HALT if policy == "h" else Policy.ROLLBACK_AND_HALT,
            f"c{index}",
        )
        for index, (target, policy, minute) in enumerate(zip(targets, policies, minutes, strict=True))
    )
    name = f"{targets}-{policies}-{''.join(map(str, minutes))}"
    return World(f"{name} with {party}" if party else name, releases, frozenset({party} if party else ()))


def worlds() -> Iterator[World]:
    """All that differ in what is brought, under which policy and in which order it was signed; telling ones first."""
    first = [("AABC", "rrrr"), ("ABCA", "rrrr"), ("ABAB", "rhrh"), ("ACAB", "rrrr"), ("CABP", "rrrr"), ("APBA", "hrrh")]
    seen = set()
    rest = itertools.product(map("".join, itertools.product("ABCP", repeat=4)), ("rrrr", "rhrh", "hrhr", "hhhh"))
    for targets, policies in itertools.chain(first, rest):
        if (targets, policies) not in seen:
            seen.add((targets, policies))
            for minutes in (IN_ORDER, (2, 1, 2, 3)):
                yield world(targets, policies, minutes)
            for party in PARTIES:
                yield world(targets, policies, IN_ORDER, party)
