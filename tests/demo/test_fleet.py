"""Setting up a fleet: a large one says how far it is, a small one does not."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nixfleet_agent.demo.agents import Host
from nixfleet_agent.demo.closures import Release
from nixfleet_agent.demo.fleet import DemoFleet
from nixfleet_agent.demo.scenario import load
from nixfleet_agent.demo.timeline import Timeline
from nixfleet_agent.identity.host_key import HostKey, from_private
from nixfleet_agent.threads.clock import SystemClock
from tests.support.signing import closure_name


class QuickHost:
    """A host that is installed at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closure = ""
        self.token = b""

    def install(self, closure: str) -> HostKey:
        self.closure = closure
        return from_private(Ed25519PrivateKey.generate())

    def give_token(self, token: bytes) -> None:
        self.token = token


class Installing(unittest.TestCase):
    def install(self, agents: int) -> tuple[list[str], list[QuickHost]]:
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
            timeline = Timeline(SystemClock())
            fleet = DemoFleet(Path(folder), agents, load("plain"), SystemClock(), timeline)
            hosts = {name: QuickHost(name) for name in fleet.names}
            fleet.hosts = {name: cast(Host, host) for name, host in hosts.items()}
            fleet.releases = {"v0": Release("v0", closure_name("v0"))}
            fleet.install()
            return [entry.text for entry in timeline.entries], list(hosts.values())

    def test_every_host_gets_the_installers_system_and_a_token_of_its_own(self) -> None:
        _, hosts = self.install(3)
        self.assertEqual({host.closure for host in hosts}, {closure_name("v0")})
        for host in hosts:
            self.assertIn(f'"hostname": "{host.name}"'.encode(), host.token)

    def test_a_large_fleet_says_how_far_it_is(self) -> None:
        self.assertEqual(self.install(3)[0], [])
        self.assertEqual(self.install(25)[0], [])
        self.assertEqual(self.install(60)[0], ["25 of 60 hosts installed", "50 of 60 hosts installed"])


if __name__ == "__main__":
    unittest.main()
