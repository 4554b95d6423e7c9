"""A fleet of the demo after its story: nothing but what lies on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nixfleet_agent.demo.agents import Host, Surroundings
from nixfleet_agent.demo.balancer import Balancer
from nixfleet_agent.demo.closures import Release
from nixfleet_agent.local_cp.store import Store
from tests.support.signing import closure_name

AROUND = Surroundings("https://127.0.0.1:1", Path("/ca.pem"), b"{}", "http://127.0.0.1:1", "key", "mark", 1.0)
V1, V2 = closure_name("v1"), closure_name("v2")


@dataclass
class StoredPlane:
    """A control plane that has nothing but its database."""

    database: Path

    @contextmanager
    def store(self) -> Iterator[Store]:
        with closing(Store(self.database, read_only=True)) as store:
            yield store


@dataclass
class StoredFleet:
    """A fleet after its story, as it lies on the disk."""

    names: tuple[str, ...]
    hosts: dict[str, Host]
    releases: dict[str, Release]
    plane: StoredPlane
    balancer: Balancer
