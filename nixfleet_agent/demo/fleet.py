"""Everything that a demo runs, put together in one folder: builder, cache, CI, control plane and hosts."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from nixfleet_agent.demo.agents import Host, Surroundings
from nixfleet_agent.demo.balancer import Balancer
from nixfleet_agent.demo.cache import Cache
from nixfleet_agent.demo.closures import Maker, Release, System
from nixfleet_agent.demo.errors import DemoError
from nixfleet_agent.demo.plane import ControlPlaneProcess, Pace
from nixfleet_agent.demo.processes import MARK_VARIABLE, end_marked, inherited
from nixfleet_agent.demo.scenario import INSTALLER, Scenario
from nixfleet_agent.demo.timeline import Timeline
from nixfleet_agent.local_cp.ci import ChannelDescription, ContinuousIntegration, FleetDescription, WaveDescription
from nixfleet_agent.local_cp.service import CERTIFICATE_LIFETIME
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.interrupts import held

CHANNEL = "stable"
TOOLS = ("nix", "nix-env", "nix-store")
REDELIVER_AFTER = timedelta(seconds=10)
FRESHNESS_MINUTES = 60
BYTES_NEEDED = 64 * 2**20
BYTES_PER_HOST = 4 * 2**20
#: Up to this many agents beat at full pace on two cores.
FULL_PACE_AGENTS = 10
SETUP_THREADS = 4
HOSTS = "hosts"
#: While more hosts than this are installed it is said how far it is: a hundred take half a minute.
NOTED_HOSTS = 25
SETUP_NAME = "demo-setup"


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
    """All of it, in ``folder``, which must be empty. ``close`` ends every process and thread, whatever was reached.

    Call ``start_services``, ``install`` and ``start_agents`` in this order.

    Raises:
        DemoError, StorageError: from each of them, where Nix failed, or no port or no room on the disk is to be had.
    """

    def __init__(
        self, folder: Path, agents: int, scenario: Scenario, clock: Clock, timeline: Timeline, port: int = 0
    ) -> None:
        self.folder = folder
        self.clock = clock
        self.ci = ContinuousIntegration()
        self.releases: Mapping[str, Release] = {}
        self.hosts: Mapping[str, Host] = {}
        width = max(2, len(str(agents)))
        self.names = tuple(f"web-{number:0{width}}" for number in range(1, agents + 1))
        self.balancer = Balancer(folder / "balancer")
        self._timeline = timeline
        self._scenario = scenario
        self._started = ExitStack()
        seconds = scenario.certificate_secs
        self.plane = ControlPlaneProcess(
            folder / "cp",
            self.ci.org_root_public,
            {**inherited(), MARK_VARIABLE: str(folder)},
            timeline.watch,
            Pace(
                certificate_lifetime=CERTIFICATE_LIFETIME if seconds is None else timedelta(seconds=seconds),
                extra_soak=timedelta(seconds=scenario.soak_secs),
                redeliver_after=REDELIVER_AFTER,
            ),
            hosts=folder / HOSTS,
            port=port,
        )

    def start_services(self) -> None:
        """The control plane, and the binary cache with every release in it."""
        self._started.callback(self.plane.close)
        with ThreadPoolExecutor(1, SETUP_NAME) as pool:  # an interpreter starts while Nix works
            with held():
                plane = pool.submit(self.plane.start)
            maker = Maker(self.folder / "ci")
            with held():
                cache = Cache(maker.cache)
                self._started.callback(cache.close)
            self.releases = maker.releases(systems(self._scenario), cache.url)
            plane.result()
        around = Surroundings(
            control_plane_url=self.plane.url,
            ca_file=self.plane.ca_file,
            trust_file=self.ci.trust_file(
                issuance_ca_pems=[self.plane.ca_file.read_text(encoding="ascii")], cache_keys=[maker.public_key]
            ),
            cache_url=cache.url,
            cache_key=maker.public_key,
            mark=str(self.folder),
            pace=max(1.0, len(self.names) / FULL_PACE_AGENTS),
        )
        self.hosts = {name: Host(name, self.folder / HOSTS / name, around) for name in self.names}

    def install(self) -> None:
        """Make every host, with the installer's system on it."""
        first = self.releases[INSTALLER].closure
        with ThreadPoolExecutor(SETUP_THREADS, SETUP_NAME) as pool:
            with held():
                installed = pool.map(lambda host: self._install(host, first), self.hosts.values())
            for number, _ in enumerate(installed, start=1):
                if number % NOTED_HOSTS == 0 and number < len(self.hosts):
                    self._timeline.note(f"{number} of {len(self.hosts)} hosts installed")

    def _install(self, host: Host, first: str) -> None:
        key = host.install(first)
        host.give_token(self.ci.token(host.name, key.fingerprint, self.clock.now(), timedelta(hours=1)))

    def start_agents(self) -> None:
        for host in self.hosts.values():
            host.start()

    def publish(self, version: str, waves: Sequence[tuple[str, ...]], age: timedelta = timedelta(0)) -> None:
        """CI signs ``version`` for every host, and the control plane gets it."""
        commit = commit_of(version)
        channel = ChannelDescription(
            waves=tuple(WaveDescription(hosts) for hosts in waves), freshness_minutes=FRESHNESS_MINUTES
        )
        closures = dict.fromkeys(self.names, self.releases[version].closure)
        fleet = FleetDescription(channels={CHANNEL: channel})
        self.plane.publish(self.ci.release(fleet, commit, closures, self.clock.now() - age))

    def look_after(self) -> None:
        """Read what the agents have logged; raises DemoError when one, or the control plane, has ended by itself."""
        self.plane.look_after()
        for host in self.hosts.values():
            for refusal in host.new_refusals():
                self._timeline.refuse(refusal)
            code = host.ended_by_itself
            if code is not None:
                said = host.last_words()
                raise DemoError(f"the agent of {host.name} ended with {code}: {said} (all of it: {host.log_file})")

    def close(self) -> None:
        """End the agents, then everything that they left running, then the rest."""
        # Whom an impatient second Ctrl-C did not let the pool wait for.
        for thread in threading.enumerate():
            if thread.name.startswith(SETUP_NAME):
                thread.join()
        for host in self.hosts.values():
            host.ask_to_stop()
        for host in self.hosts.values():
            host.wait_stopped()
        end_marked(MARK_VARIABLE, str(self.folder))
        self._started.close()


def systems(scenario: Scenario) -> Iterator[System]:
    """What each version is made of: D-Bus and init are those of the version before, unless it changes them."""
    dbus = init = ""
    for version in scenario.versions:
        dbus = version if version in scenario.new_dbus else dbus
        init = version if version in scenario.new_init else init
        yield System(version, version not in scenario.broken, dbus, init)


def commit_of(version: str) -> str:
    """The commit that a version of the demo comes from."""
    return hashlib.sha256(version.encode()).hexdigest()[:12]


def rollout_id_of(version: str) -> str:
    return f"{CHANNEL}@{commit_of(version)}"
