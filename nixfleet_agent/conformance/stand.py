"""The stand on which an agent is tried: a host with a Nix store of its own, a CI, a binary cache, a control plane.

The agent is any program that speaks the protocol. It is started by a command, and started again when it ends, as
systemd would do it.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from nixfleet_agent import durable
from nixfleet_agent.conformance.recording import Recorder, object_of
from nixfleet_agent.demo.agents import Host, Surroundings
from nixfleet_agent.demo.cache import Cache
from nixfleet_agent.demo.closures import HOST_VARIABLE, STORE, Maker, Release, System
from nixfleet_agent.demo.errors import DemoError
from nixfleet_agent.demo.processes import MARK_VARIABLE, end_marked
from nixfleet_agent.local_cp.catalogue import Publication
from nixfleet_agent.local_cp.ci import ChannelDescription, ContinuousIntegration, FleetDescription, WaveDescription
from nixfleet_agent.local_cp.dispatcher import Options
from nixfleet_agent.local_cp.server import Request, Response
from nixfleet_agent.local_cp.service import LocalControlPlane
from nixfleet_agent.proto.contract import DISPATCH
from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.state_machine import State
from nixfleet_agent.threads.clock import SystemClock

HOSTNAME = "web-01"
CHANNEL = "stable"
FRESHNESS_MINUTES = 60
REDELIVER_AFTER = timedelta(seconds=10)
#: An agent that ends more often than this without a request in between is not started again.
MOST_ENDS = 5
LOG_TAIL = 4096
INSTALLED = "v0"


class Unmet(DemoError):
    """What a story waits for does not come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line asks for; seconds. ``agent`` is the template of a command, None for this agent.

    ``patience`` is how long anything may take, ``settle`` how long nothing must happen where nothing should, ``soak``
    how long a release soaks at least, ``certificate`` how long a certificate lives.
    """

    agent: str | None = None
    patience: float = 90.0
    settle: float = 3.0
    soak: float = 1.5
    certificate: float = 600.0


class Subject(Host):
    """The host whose agent is tried."""

    #: What the template of a command may name.
    PLACES = (
        *("root", "config", "control_plane_url", "machine_id", "trust_file", "ca_cert", "client_cert", "client_key"),
        *("ssh_host_key_file", "bootstrap_token_file", "state_dir", "health_checks_file", "current_system", "profile"),
        "store",
    )

    def __init__(self, name: str, folder: Path, around: Surroundings, template: str | None) -> None:
        super().__init__(name, folder, around)
        self._template = template
        self._url = around.control_plane_url
        self._ca_file = around.ca_file

    @property
    def agent(self) -> list[str]:
        if self._template is None:
            return super().agent
        return [word.format_map(self.places) for word in shlex.split(self._template)]

    @property
    def places(self) -> Mapping[str, str]:
        """Where they are on this host, by name."""
        key = self.folder / "ssh_host_ed25519_key"
        places = (
            *(self.folder, self.config_file, self._url, self.name, self.folder / "trust.json", self._ca_file),
            *(self.client_certificate, key, key, self.folder / "bootstrap-token.json", self.state_dir),
            *(self.folder / "health-checks.json", self.current_system, self.profile, f"{self.store_root}{STORE}"),
        )
        return {name: str(place) for name, place in zip(self.PLACES, places, strict=True)}

    def declare_probes(self, closure: str) -> None:
        """Probes for an agent that reads them at a place of the host: those of a closure, which all have the same."""
        declared = Path(f"{self.store_root}{STORE}/{closure}/etc/nixfleet/agent/health-checks.json")
        durable.write(self.folder / "health-checks.json", declared.read_bytes(), mode=0o644)
        self.state_dir.mkdir(mode=0o700, exist_ok=True)

    def switches(self) -> list[str]:
        """The calls of switch scripts, as ``<action> <closure>``, oldest first."""
        called = self.switch_log.read_text(encoding="utf-8").splitlines() if self.switch_log.exists() else []
        return [line for line in called if not line.startswith("booted ")]

    def has(self, closure: str) -> bool:
        """Whether the closure was fetched."""
        return Path(f"{self.store_root}{STORE}/{closure}").exists()


class Stand:
    """All of it, in ``folder``, which must be empty. ``close`` ends every process and thread.

    Raises:
        DemoError: Nix failed, or there is no port.
    """

    def __init__(self, folder: Path, settings: Settings, systems: Mapping[str, System]) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.ci = ContinuousIntegration()
        self._started = ExitStack()
        self._ends: list[int] = []
        self._misaddressed: frozenset[str] = frozenset()
        try:
            self._set_up(folder, systems)
        except BaseException:
            self.close()
            raise

    def _set_up(self, folder: Path, systems: Mapping[str, System]) -> None:
        maker = Maker(folder / "ci")
        cache = Cache(maker.cache)
        self._started.callback(cache.close)
        self.releases: Mapping[str, Release] = maker.releases(systems.values(), cache.url)
        options = Options(extra_soak=timedelta(seconds=self.settings.soak), redeliver_after=REDELIVER_AFTER)
        self.plane = LocalControlPlane(
            folder / "cp",
            self.clock,
            self.ci.org_root_public,
            options=options,
            certificate_lifetime=timedelta(seconds=self.settings.certificate),
        )
        self.recorder = Recorder(self.plane.server, self.clock)
        self.recorder.after = self._misaddress
        self.plane.start()
        self._started.callback(self.plane.stop)
        around = Surroundings(
            control_plane_url=self.plane.url,
            ca_file=self.plane.ca_file,
            trust_file=self.ci.trust_file(issuance_ca_pems=[self.plane.authority.pem], cache_keys=[maker.public_key]),
            cache_url=cache.url,
            cache_key=maker.public_key,
            mark=str(folder),
            pace=1.0,
        )
        self.host = Subject(HOSTNAME, folder / "host", around, self.settings.agent)
        self._started.callback(end_marked, MARK_VARIABLE, str(folder))
        self._started.callback(end_marked, HOST_VARIABLE, str(self.host.folder))
        self._started.callback(self.host.wait_stopped)
        self._started.callback(self.host.ask_to_stop)
        installed = self.releases[INSTALLED].closure
        self.key = self.host.install(installed)
        self.host.declare_probes(installed)
        self.host.give_token(
            self.ci.token(HOSTNAME, self.key.fingerprint, self.clock.now(), timedelta(hours=1)),
        )

    def close(self) -> None:
        """The agent first, then what it left, then the rest."""
        self._started.close()

    # -- the fleet ----------------------------------------------------------------------------

    def closure(self, version: str) -> str:
        return self.releases[version].closure

    def signed(
        self,
        version: str,
        age: timedelta = timedelta(0),
        soak_minutes: int = 0,
        form: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> Publication:
        """What CI signs for a version: for this host, at this moment less ``age``, its fleet in this form."""
        channel = ChannelDescription(
            waves=(WaveDescription((HOSTNAME,), soak_minutes),), freshness_minutes=FRESHNESS_MINUTES
        )
        fleet = FleetDescription(channels={CHANNEL: channel})
        closures = {HOSTNAME: self.closure(version)}
        return self.ci.release(fleet, commit_of(version), closures, self.clock.now() - age, form)

    def publish(self, version: str, **how: Any) -> str:
        """CI signs the version (``signed`` says how) and the control plane gives this host its turn; the rollout."""
        self.plane.control.publish(self.signed(version, **how))
        return rollout_id(version)

    def publish_absent(self) -> str:
        """CI signs a release whose closure no cache has; the rollout."""
        self.releases = {**self.releases, "absent": Release("absent", "0" * 32 + "-nixos-system-absent")}
        return self.publish("absent")

    def misaddress(self, rollout: str) -> None:
        """From now on turns of this rollout name another host."""
        self._misaddressed |= {rollout}

    def again(self, turn: Mapping[str, Any]) -> None:
        """Give a turn again, as it was."""
        self.plane.control.store.enqueue(Dispatch.parse(turn))
        self.plane.control.waiters.wake(HOSTNAME)

    def state(self, rollout: str) -> State | None:
        """Where the control plane has the host in this rollout."""
        record = self.plane.control.store.record(rollout, HOSTNAME)
        return None if record is None else record.state

    def turns(self, rollout: str) -> list[Mapping[str, Any]]:
        """The turns of a rollout that were delivered."""
        given = (e.got() for e in self.recorder.exchanges if e.path == DISPATCH and e.status == 200)
        return [turn for turn in given if turn.get("rollout_id") == rollout]

    def _misaddress(self, request: Request, response: Response) -> Response:
        if request.path != DISPATCH or response.status != 200:
            return response
        turn = object_of(response.body)
        if turn.get("rollout_id") not in self._misaddressed:
            return response
        return replace(response, body=json.dumps({**turn, "hostname": "web-02"}).encode())

    # -- waiting ------------------------------------------------------------------------------

    def until(self, done: Callable[[], object], what: str, patience: float | None = None) -> None:
        """Wait for what the agent brings about.

        Raises:
            Unmet: it does not, in ``patience`` seconds.
        """
        seconds = self.settings.patience if patience is None else patience
        if not self.recorder.wait(done, seconds, self.look_after):
            raise Unmet(f"waited {seconds:g} s for {what}")

    def until_state(self, rollout: str, state: State) -> None:
        self.until(lambda: self.state(rollout) is state, f"the control plane to have {rollout} as {state}")

    def until_refused(self, rollout: str) -> None:
        """The turn was delivered, the agent has asked for the next one, and some time has gone by."""
        self.until(lambda: self.turns(rollout), f"the agent to fetch the turn of {rollout}")
        since = self.clock.monotonic()
        self.until(lambda: self.recorder.asked(DISPATCH, since) or self._polls(), "the next long poll")
        self.rest()

    def rest(self) -> None:
        """As long as nothing must happen."""
        self.recorder.wait(lambda: False, self.settings.settle, self.look_after)

    def look_after(self) -> None:
        """Start an agent again that has ended.

        Raises:
            Unmet: it ends again and again.
        """
        code = self.host.ended_by_itself
        if code is None:
            return
        requests = len(self.recorder.exchanges)
        self._ends = [seen for seen in self._ends if seen == requests]
        if len(self._ends) >= MOST_ENDS:
            raise Unmet(f"the agent ends without a request, at last with {code}: {self._last_line()}")
        self._ends.append(requests)
        self.recorder.wait(lambda: False, 0.1 * len(self._ends), lambda: None)
        self.host.start()

    def _last_line(self) -> str:
        """Of what the agent has printed."""
        with self.host.log_file.open("rb") as log:
            log.seek(max(0, self.host.log_file.stat().st_size - LOG_TAIL))
            said = log.read().decode("utf-8", "replace").strip().splitlines()
        return said[-1] if said else "it printed nothing"

    def _polls(self) -> bool:
        """Whether a long poll is open now."""
        return len(self.plane.control.waiters) > 0


def commit_of(version: str) -> str:
    """A commit for a version, hexadecimal and the same in every run."""
    return hashlib.sha256(version.encode()).hexdigest()[:12]


def rollout_id(version: str) -> str:
    return f"{CHANNEL}@{commit_of(version)}"
