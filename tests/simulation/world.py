"""One simulated fleet: machines with their agents, networks and disks, and the control plane, over one scheduler."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nixfleet_agent.config.model import TuningConfig
from nixfleet_agent.identity.csr import make_csr
from nixfleet_agent.identity.host_key import from_private
from nixfleet_agent.local_cp.ca import CertificateAuthority
from nixfleet_agent.local_cp.catalogue import Publication
from nixfleet_agent.local_cp.ci import ChannelDescription, ContinuousIntegration, FleetDescription, WaveDescription
from nixfleet_agent.state_machine import Policy
from tests.simulation.agent import SimAgent
from tests.simulation.disk import Disk, Disks
from tests.simulation.machine import Closure, Machine
from tests.simulation.network import Network
from tests.simulation.plan import Plan
from tests.simulation.plane import Plane
from tests.simulation.primitives import EPOCH, SimClock
from tests.simulation.scheduler import Scheduler

CHANNEL = "stable"
_BEFORE = EPOCH - timedelta(days=1)
_SHM = Path("/dev/shm")
_LOGGER = logging.getLogger("nixfleet_agent")


def closure_name(name: str) -> str:
    """A store name for a short one: the same in every run."""
    digest = "".join("0123456789abcdfghijklmnpqrsvwxyz"[b % 32] for b in random.Random(name).randbytes(32))
    return f"{digest}-nixos-system-{name}"


def rollout_id(name: str) -> str:
    return f"{CHANNEL}@{name.encode().hex()}"


@dataclass(slots=True)
class Host:
    """One machine and what is around it."""

    name: str
    machine: Machine
    network: Network
    disk: Disk
    agent: SimAgent
    off: bool = False

    def lose_power(self) -> None:
        """At this very moment; what was not durable may be lost."""
        self.off = True
        self.machine.scheduler.kill([self.machine.units])
        self.agent.kill()
        self.disk.lose_power()

    def power_up(self) -> None:
        self.off = False
        self.machine.power_up()
        self.agent.start()


@dataclass(slots=True)
class _Keys:
    """What is the same for all worlds of a process: making keys takes longer than a rollout."""

    ci: ContinuousIntegration = field(default_factory=ContinuousIntegration)
    authority: CertificateAuthority = field(
        default_factory=lambda: CertificateAuthority.create(EPOCH - timedelta(days=1))
    )
    hosts: dict[tuple[str, timedelta], tuple[bytes, str]] = field(default_factory=dict)

    def of(self, host: str, lifetime: timedelta) -> tuple[bytes, str]:
        """Key and certificate, PEM."""
        known = (host, lifetime)
        if known not in self.hosts:
            private = Ed25519PrivateKey.generate()
            pem = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
            csr = make_csr(from_private(private), host)
            self.hosts[known] = pem, self.authority.issue(csr, host, EPOCH - timedelta(hours=1), lifetime).pem
        return self.hosts[known]


_keys: list[_Keys] = []


class World:
    """``closures`` are all that will be released, by short name; "v0" is what the hosts are installed with."""

    def __init__(self, plan: Plan, closures: Mapping[str, Closure], tuning: TuningConfig) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed)
        self.scheduler = Scheduler(random.Random(self.rng.random()), plan.preempt)
        self.folder = Path(tempfile.mkdtemp(prefix="nf-sim-", dir=_SHM if os.access(_SHM, os.W_OK) else None))
        self.closures = {
            closure_name(name): dataclasses.replace(closure, name=closure_name(name))
            for name, closure in closures.items()
        }
        if not _keys:
            _keys.append(_Keys())
        self._keys = _keys[0]
        self.disks = Disks(self.scheduler)
        self.lines: list[str] = []
        self.published: Publication
        self.warnings = 0
        self.on_line: Callable[[str], None] = lambda line: None
        self._handler = _Lines(self)
        self.plane = Plane(
            self.folder / "cp",
            self.scheduler,
            self._keys.authority,
            self._keys.ci.org_root_public,
            timedelta(days=plan.kind.lifetime),
        )
        self.hosts = [self._host(f"web-{number:03}", tuning) for number in range(1, plan.hosts + 1)]

    def _host(self, name: str, tuning: TuningConfig) -> Host:
        clock = SimClock(self.scheduler)
        root = self.folder / name
        disk = Disk(root, self.scheduler, clock, random.Random(self.rng.random()))
        machine = Machine(name, root, self.scheduler, clock, disk, self.closures, closure_name("v0"))
        machine.install()
        key, certificate = self._keys.of(name, timedelta(days=self.plan.kind.lifetime))
        ci, authority = self._keys.ci, self._keys.authority
        for path, data in (
            ("etc/key", key),
            ("etc/ca.pem", authority.pem.encode()),
            ("etc/trust.json", ci.trust_file(issuance_ca_pems=(authority.pem,))),
            ("state/agent-cert.pem", certificate.encode()),
        ):
            (root / path).write_bytes(data)
            (root / path).chmod(0o600)
        self.disks.add(name, disk)
        network = Network(name, self.scheduler, clock, random.Random(self.rng.random()), self.plane.answer)
        return Host(name, machine, network, disk, SimAgent(machine, network, random.Random(self.rng.random()), tuning))

    # -- life ---------------------------------------------------------------------------------

    def __enter__(self) -> World:
        self.disks.install()
        _LOGGER.addHandler(self._handler)
        _LOGGER.propagate = False
        _LOGGER.setLevel(logging.INFO)
        return self

    def __exit__(self, *failure: object) -> None:
        for host in self.hosts:
            self.scheduler.kill([host.machine.units])
            host.agent.kill()
        if self.plane.api is not None:
            self.plane.stop()
        self.disks.remove()
        _LOGGER.removeHandler(self._handler)
        _LOGGER.propagate = True
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- what actors do -----------------------------------------------------------------------

    def release(
        self,
        name: str,
        closures: Mapping[str, str],
        *,
        soak_minutes: int = 1,
        waves: int = 1,
        policy: Policy = Policy.ROLLBACK_AND_HALT,
    ) -> str:
        """CI signs a release that brings each host the closure of this short name; its rollout id."""
        names = [host.name for host in self.hosts]
        size = -(-len(names) // waves)
        parts = tuple(WaveDescription(tuple(names[i : i + size]), soak_minutes) for i in range(0, len(names), size))
        channel = ChannelDescription(waves=parts, policy=policy, freshness_minutes=60 * 24 * 60)
        targets = {host: closure_name(closures[host]) for host in names}
        commit = name.encode().hex()
        publication = self._keys.ci.release(
            FleetDescription(channels={CHANNEL: channel}), commit, targets, self.plane.clock.now()
        )
        self.published = publication
        if self.plane.api is not None:
            self.plane.publish(publication)
        else:
            self.plane.later.append(publication)
        self.note("ci", f"releases {name}")
        return rollout_id(name)

    def note(self, who: str, what: str) -> None:
        """A line of the timeline, which is a part of the trace."""
        line = f"{self.scheduler.now:12.3f} {who:<10} {what}"
        self.lines.append(line)
        self.scheduler.note(line)
        self.on_line(line)

    def short(self, text: str) -> str:
        """Paths of this run cut out, so that a line is the same in every run."""
        return text.replace(str(self.folder), "")


class _Lines(logging.Handler):
    """The agents' own words in the timeline."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        world = self._world
        task = world.scheduler.current
        if task.doomed:
            return
        world.warnings += record.levelno >= logging.WARNING
        host = task.group.partition("/")[0]
        mark = "" if record.levelno < logging.WARNING else f" {record.levelname}"
        world.note(host, f"{record.name.rpartition('.')[2]}{mark}: {world.short(record.getMessage())}")
        if record.exc_info:
            world.lines.append(logging.Formatter().formatException(record.exc_info))
