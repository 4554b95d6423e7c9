"""Everything that a demo runs, put together in one folder: builder, cache, CI, control plane and hosts."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from nixfleet_agent.clock import Clock
from nixfleet_agent.demo.agents import Host, Surroundings, end_marked
from nixfleet_agent.demo.cache import Cache
from nixfleet_agent.demo.closures import Maker, Release
from nixfleet_agent.demo.errors import DemoError
from nixfleet_agent.local_cp.ci import ChannelDescription, ContinuousIntegration, FleetDescription, WaveDescription
from nixfleet_agent.local_cp.control import Happening
from nixfleet_agent.local_cp.dispatcher import Options
from nixfleet_agent.local_cp.service import LocalControlPlane

CHANNEL = "stable"
INSTALLER = "v0"
#: Version -> healthy. A host starts on the installer's system, so that even v1 has a way back.
VERSIONS: Mapping[str, bool] = {INSTALLER: True, "v1": True, "v2": True, "v3": False}
TOOLS = ("nix", "nix-env", "nix-store")
#: The soak hint of each turn: the signed soak of a real fleet is in minutes, a demo's is shorter than one.
SOAK = timedelta(seconds=2.5)
REDELIVER_AFTER = timedelta(seconds=10)
FRESHNESS_MINUTES = 60
BYTES_NEEDED = 64 * 2**20
BYTES_PER_HOST = 4 * 2**20
#: Up to this many agents beat at full pace on two cores.
FULL_PACE_AGENTS = 10
SETUP_THREADS = 4


def require_tools(folder: Path, agents: int) -> None:
    """Raises DemoError where Nix or room on the disk is missing."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise DemoError(f"{', '.join(missing)} not found: install Nix (Debian: apt-get install nix-bin)")
    free = shutil.disk_usage(folder).free
    needed = BYTES_NEEDED + agents * BYTES_PER_HOST
    if free < needed:
        raise DemoError(f"{folder} has {free >> 20} MiB free, {needed >> 20} are needed: choose another --dir")


class DemoFleet:
    """Built in ``folder``, which must be empty; ``close`` ends every process and thread, whatever was reached.

    Raises:
        DemoError, ConfigError: Nix failed, or no port is to be had; nothing is left running.
    """

    def __init__(self, folder: Path, agents: int, clock: Clock, watcher: Callable[[Happening], None]) -> None:
        self.folder = folder
        self.clock = clock
        self.ci = ContinuousIntegration()
        self.maker = Maker(folder / "ci")
        with ExitStack() as started:
            self.cache = Cache(self.maker.cache)
            started.callback(self.cache.close)
            options = Options(extra_soak=SOAK, redeliver_after=REDELIVER_AFTER)
            self.control_plane = LocalControlPlane(
                folder / "cp", clock, self.ci.org_root_public, options=options, watcher=watcher
            )
            self.control_plane.start()
            started.callback(self.control_plane.stop)
            self._started = started.pop_all()
        self.releases: Mapping[str, Release] = {}
        around = Surroundings(
            control_plane_url=self.control_plane.url,
            ca_file=self.control_plane.ca_file,
            trust_file=self.ci.trust_file(
                issuance_ca_pems=[self.control_plane.authority.pem], cache_keys=[self.maker.public_key]
            ),
            cache_url=self.cache.url,
            cache_key=self.maker.public_key,
            mark=str(folder),
            pace=max(1.0, agents / FULL_PACE_AGENTS),
        )
        width = max(2, len(str(agents)))
        names = [f"web-{number:0{width}}" for number in range(1, agents + 1)]
        self.hosts = {name: Host(name, folder / "hosts" / name, around) for name in names}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.hosts)

    def install(self) -> None:
        """Make the releases, and every host with the installer's system on it."""
        self.releases = self.maker.releases(VERSIONS, self.cache.url)
        first = self.releases[INSTALLER].closure
        with ThreadPoolExecutor(SETUP_THREADS) as pool:
            for _ in pool.map(lambda host: self._install(host, first), self.hosts.values()):
                pass

    def _install(self, host: Host, first: str) -> None:
        key = host.install(first)
        host.give_token(self.ci.token(host.name, key.fingerprint, self.clock.now(), timedelta(hours=1)))

    def start_agents(self) -> None:
        for host in self.hosts.values():
            host.start()

    def publish(self, version: str, waves: tuple[tuple[str, ...], ...], age: timedelta = timedelta(0)) -> str:
        """CI signs ``version`` for every host, and the control plane gets it; the rollout's id."""
        commit = commit_of(version)
        channel = ChannelDescription(
            waves=tuple(WaveDescription(hosts) for hosts in waves), freshness_minutes=FRESHNESS_MINUTES
        )
        closures = dict.fromkeys(self.names, self.releases[version].closure)
        fleet = FleetDescription(channels={CHANNEL: channel})
        self.control_plane.control.publish(self.ci.release(fleet, commit, closures, self.clock.now() - age))
        return rollout_id_of(version)

    def look_after(self) -> None:
        """Raises DemoError when an agent has ended that nobody stopped."""
        for host in self.hosts.values():
            code = host.ended_by_itself
            if code is not None:
                said = (host.log_lines() or [{"message": "nothing"}])[-1].get("message")
                raise DemoError(f"the agent of {host.name} ended with {code}: {said} (all of it: {host.log_file})")

    def close(self) -> None:
        """End the agents, then everything that they left running, then the rest."""
        for host in self.hosts.values():
            host.ask_to_stop()
        for host in self.hosts.values():
            host.wait_stopped()
        end_marked(str(self.folder))
        self._started.close()


def commit_of(version: str) -> str:
    """The commit that a version of the demo comes from."""
    return hashlib.sha256(version.encode()).hexdigest()[:12]


def rollout_id_of(version: str) -> str:
    return f"{CHANNEL}@{commit_of(version)}"
