"""One run: a control plane over mTLS, one host with its own store, and the agent there, started again as it dies."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nixfleet_agent.identity.csr import make_csr
from nixfleet_agent.identity.host_key import from_private
from nixfleet_agent.local_cp.ci import ChannelDescription, FleetDescription, WaveDescription
from nixfleet_agent.local_cp.dispatcher import Options
from nixfleet_agent.local_cp.service import LocalControlPlane
from nixfleet_agent.state_machine import Policy, State
from nixfleet_agent.threads.clock import SystemClock
from tests.faults.clocks_off import OffClock
from tests.faults.nursery import TOP, Child
from tests.faults.plan import VARIABLE, Plan
from tests.faults.processes import Starved, end_all
from tests.faults.wire import Wire
from tests.faults.world import World
from tests.support.nix import remove_tree

HOSTNAME = "web-01"
CHANNEL = "stable"
SOAK = timedelta(seconds=0.25)
PATIENCE = 40.0
#: A look costs the machine 0.2 ms; at 0.01 it was a fourteenth of a run.
LOOK = 0.03
#: What the agent promises at SIGTERM.
STOP_SECS = 2.0
#: More lives than this for one planned death: it does not come up any more.
MAX_STARTS = 8


#: What a script sees of a boot that never happened.
_CAT = """#!/bin/sh
[ "$*" = /proc/sys/kernel/random/boot_id ] && echo {boot_id} && exit
exec /bin/cat "$@"
"""


class Problem(Exception):
    """What should hold does not; the message says what."""


def commit_of(name: str) -> str:
    """A commit for a release, hexadecimal and the same in every run."""
    return name.encode().hex()


def rollout_id(name: str) -> str:
    return f"{CHANNEL}@{commit_of(name)}"


class Rig:
    """``plans`` are the fates of the first process of each boot, 1 being the first boot.

    ``until`` waits for what a story needs; meanwhile an agent that was killed as planned is started again.
    """

    def __init__(
        self, world: World, name: str, plans: Mapping[int, Mapping[str, Any]] | None = None, **config: Mapping[str, Any]
    ) -> None:
        self.world = world
        self.host = world.host(name)
        self.folder = self.host.root
        self.log_file = self.folder / "agent.log"
        #: Made by whoever pulls one, before the first start.
        self.levers = self.folder / "levers"
        self.starts = 0
        self.max_starts = MAX_STARTS
        self.forgets = False
        #: Where the agent's stdout and stderr go when not to the log file.
        self.stdout: int | None = None
        #: Agents come from the nursery.
        self.forked = False
        self.boot = 1
        self.killed = 0
        self.process: subprocess.Popen[bytes] | Child | None = None
        self.tolerated: frozenset[int] = frozenset({-signal.SIGKILL})
        self._plans = dict(plans or {})
        self._power_cut = any(plan.get("action") == "power" for plan in self._plans.values())
        self._reboots = 0
        self._log_start = 0
        self._reboot_id: str | None = None
        self.closers: list[Callable[[], object]] = []
        self.clock = SystemClock()
        self.plane_clock = OffClock()
        options = Options(extra_soak=SOAK, redeliver_after=timedelta(seconds=1), strict=True)
        self.control_plane = LocalControlPlane(
            self.folder / "cp", self.plane_clock, world.ci.org_root_public, options=options
        )
        self.url = self.control_plane.url
        self.wire = Wire(self.control_plane.server)
        self._install(config)
        self.control_plane.start()

    # -- the fleet ----------------------------------------------------------------------------

    def publish(
        self, name: str, *, closure: str | None = None, soak_minutes: int = 0, policy: Policy = Policy.ROLLBACK_AND_HALT
    ) -> str:
        """CI signs the release ``name`` (of the closure of that name), and the control plane gets it."""
        channel = ChannelDescription(waves=(WaveDescription((HOSTNAME,), soak_minutes),), policy=policy)
        closures = {HOSTNAME: self.world.closures[closure or name]}
        fleet = FleetDescription(channels={CHANNEL: channel})
        publication = self.world.ci.release(fleet, commit_of(name), closures, self.clock.now())
        self.control_plane.control.publish(publication)
        return rollout_id(name)

    def extra_soak(self, seconds: float) -> None:
        """The soak hint of turns given from now on."""
        dispatcher = self.control_plane.control.dispatcher
        dispatcher._options = dataclasses.replace(dispatcher._options, extra_soak=timedelta(seconds=seconds))

    def state(self, name: str) -> State | None:
        """Where the control plane has the host in the rollout of this release."""
        record = self.control_plane.control.store.record(rollout_id(name), HOSTNAME)
        return None if record is None else record.state

    def events(self, name: str) -> list[dict[str, Any]]:
        """The control plane's log of this release."""
        return self.control_plane.control.store.events(HOSTNAME, rollout_id(name))

    def has_event(self, name: str, kind: str) -> bool:
        return any(event["kind"] == kind for event in self.events(name))

    # -- the agent ----------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, extra_path: Path | None = None) -> None:
        """Start the agent; the first process of a boot meets the fate that is planned for it."""
        self.starts += 1
        fate = self._plans.pop(self.boot, {})
        plan_file, trace = self.folder / f"plan-{self.starts}.json", self.trace_file
        plan = Plan(
            state_dir=str(self.host.state_dir),
            trace=str(trace),
            boot_id=self._reboot_id,
            levers=str(self.levers) if self.levers.is_dir() else "",
            **fate,
        )
        plan.write(plan_file)
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        config = self.folder / "agent.toml"
        environment = self.host.environment | {VARIABLE: str(plan_file)}
        if self.forked and extra_path is None:
            self.process = self.world.nursery.start(config, environment, self.log_file)
            return
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.agent", str(config)],
                env=environment | {"PYTHONPATH": f"{extra_path or TOP}:{TOP}"},
                stdin=subprocess.DEVNULL,
                stdout=log if self.stdout is None else self.stdout,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def trace_file(self) -> Path:
        """The boundaries of the newest process."""
        return self.folder / f"trace-{self.boot}-{self.starts}"

    def trace(self, boot: int) -> list[str]:
        """The boundaries that the first process of a boot has met."""
        found = sorted(self.folder.glob(f"trace-{boot}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        return found[0].read_text().splitlines() if found else []

    def look_after(self) -> None:
        """Start an agent again that was killed; any other end is a problem."""
        if self.process is None or (code := self.process.poll()) is None:
            return
        if code not in self.tolerated or self.starts >= self.max_starts:
            raise Problem(f"the agent ended with {code} (start {self.starts}): {self.last_words()}")
        self.killed += 1
        if self._power_cut:
            self.power_off()
            if self.forgets:
                self._forget_switches()
        self.start()

    def until(self, condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
        """Wait for a condition that the agent brings about; its value."""
        deadline = time.monotonic() + patience
        while not (value := condition()):
            self.look_after()
            if time.monotonic() > deadline:
                raise Problem(f"not within {patience:g} s: {what}; {self.situation()}")
            time.sleep(LOOK)
        return value

    def until_state(self, name: str, state: State) -> None:
        self.until(lambda: self.state(name) is state, f"{name} {state}")

    def until_delivered(self) -> None:
        """Nothing waits for delivery any more."""
        self.until(lambda: not self.queued(), "an empty queue")

    def reboot(self) -> None:
        """Everything on the host ends at once; it comes up with what the boot entry names."""
        self.kill()
        self.power_off()
        self.boot += 1
        self.start()

    def power_off(self) -> None:
        """The processes are gone, the link to what runs is what a boot makes it."""
        end_all(self.folder)
        self._reboots += 1
        self._reboot_id = f"boot-{self._reboots}"
        tools = self.folder / "bin"
        tools.mkdir(exist_ok=True)
        cat = tools / "cat"
        cat.write_text(_CAT.format(boot_id=self._reboot_id))
        cat.chmod(0o755)
        if self._reboots == 1:
            self.host.environment["PATH"] = f"{tools}:{self.host.environment['PATH']}"
        self.host.run_system(self.host.bootloader.read_text().strip())

    def _forget_switches(self) -> None:
        """What the switches' own shell wrote: it can't sync, so a power cut may take all of it back."""
        for name in ("started", "exit", "output", "output.1", "output.2", "drained", "waiting"):
            for path in self.host.state_dir.glob(f"switch/*/{name}"):
                path.unlink()

    def pull(self, lever: str, value: float | str) -> None:
        """What the running agent meets: ``clock``, the seconds it is off; ``disk``, every write's errno; ``hang``, the
        file that is written for ever. 0 or nothing: well.
        """
        new = self.levers / "new"
        new.write_text(value if isinstance(value, str) else f"{value:g}")
        new.replace(self.levers / lever)

    def send(self, number: int) -> None:
        """A signal to the agent."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> float:
        """SIGTERM; the seconds that it took to end well, less what it waited for a processor.

        Raises:
            Problem: it did not end with 0 in time.
        """
        process = self.process
        if process is None:
            return 0.0
        self.until_started()
        process = self.process
        assert process is not None
        starved = Starved(process.pid)
        process.send_signal(signal.SIGTERM)
        asked, code = False, process.poll()
        while code is None:
            if starved.elapsed() > PATIENCE:
                raise Problem("SIGTERM does not end the agent")
            if starved.elapsed() > STOP_SECS and not asked:
                asked = True
                process.send_signal(signal.SIGUSR2)  # where are its threads?
            try:
                code = process.wait(LOOK)
            except subprocess.TimeoutExpired:
                starved.look()
        took = starved.elapsed()
        if code == -signal.SIGKILL and code in self.tolerated:
            self.look_after()  # killed as planned, in what it does last
            return self.stop()
        self.process = None
        if code != 0:
            raise Problem(f"SIGTERM ended the agent with {code} after {took:.1f} s: {self.last_words()}")
        return took

    def until_started(self) -> None:
        """The newest process has come so far that it minds signals."""
        self.until(lambda: b'"message": "started"' in self._said()[self._log_start :], "the agent's start")

    def _said(self) -> bytes:
        return self.log_file.read_bytes() if self.log_file.exists() else b""

    def queued(self) -> list[str]:
        """Names of the events that wait for delivery, were refused, or can't be read."""
        folders = [self.host.state_dir / f"outbound-{part}" for part in ("queue", "rejected", "corrupt")]
        return sorted(name for folder in folders if folder.is_dir() for name in os.listdir(folder))

    def log_lines(self) -> list[dict[str, Any]]:
        lines = []
        for line in self.log_file.read_text(errors="replace").splitlines() if self.log_file.exists() else ():
            try:
                lines.append(json.loads(line))
            except ValueError:
                lines.append({"message": line})
        return lines

    def logged(self, words: str) -> bool:
        return any(words in str(line.get("message")) for line in self.log_lines())

    def last_words(self) -> str:
        return " | ".join(str(line.get("message")) for line in self.log_lines()[-6:])

    def situation(self) -> str:
        """One line for a report."""
        store = self.control_plane.control.store
        records = {r.rollout_id: f"{r.state}/{r.last_event_seq}" for r in store.records_of(HOSTNAME)}
        running = self.world.name_of(self.host.running())
        return f"runs {running}, control plane {records}, queue {self.queued()}, last words: {self.last_words()}"

    def close(self, keep: bool = False) -> None:
        """End everything; the folder goes unless it is kept to be looked at."""
        self.kill()
        end_all(self.folder)
        for close in reversed(self.closers):
            close()
        self._stop_control_plane()
        if not keep:
            remove_tree(self.folder)

    def _stop_control_plane(self) -> None:
        plane = self.control_plane
        if plane.server.stopping.is_set():
            plane.control.store.close()
        else:
            plane.stop()

    # -- installation -------------------------------------------------------------------------

    def _install(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        folder, clock = self.folder, self.clock
        key = from_private(Ed25519PrivateKey.generate())
        secret = key.private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        (folder / "host_key").write_bytes(secret)
        (folder / "host_key").chmod(0o600)
        authority = self.control_plane.authority
        issued = authority.issue(make_csr(key, HOSTNAME), HOSTNAME, clock.now(), timedelta(days=30))
        (folder / "agent-cert.pem").write_text(issued.pem)
        (folder / "trust.json").write_bytes(self.world.ci.trust_file(issuance_ca_pems=[authority.pem]))
        self.write_config(config)

    def write_config(self, changes: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """``agent.toml`` with every interval as short as it may be."""
        folder, changes = self.folder, changes or {}
        activation = dataclasses.asdict(self.host.activation)
        tables: dict[str, dict[str, Any]] = {
            "": {
                "control_plane_url": self.url,
                "machine_id": HOSTNAME,
                "trust_file": folder / "trust.json",
                "ca_cert": self.control_plane.ca_file,
                "client_cert": folder / "agent-cert.pem",
                "client_key": folder / "host_key",
                "state_dir": self.host.state_dir,
                "ssh_host_key_file": folder / "host_key",
                "health_checks_file": folder / "health-checks.json",
                "health_failure_threshold_secs": 0.2,
            },
            "activation": activation,
            "reboot": {"required_file": folder / "reboot-required"},
            "tuning": {
                "dispatch_wait": 20,
                "heartbeat_interval": 0.5,
                "manifest_poll_interval": 0.5,
                "drain_interval": 0.5,
                "advance_interval": 0.05,
                "probe_min_interval": 0.1,
                "probe_repeat_interval": 0.4,
                "backoff_initial": 0.05,
                "backoff_max": 0.2,
            },
            # What is tested is a turn: nothing of it may have been done before.
            "prefetch": {"enabled": False},
            "logging": {"level": "info", "format": "json"},
        }
        text = []
        for table, keys in (tables | {name: {} for name in changes if name not in ("agent", *tables)}).items():
            text += [f"\n[{table}]"] if table else []
            merged = keys | dict(changes.get(table or "agent", {}))
            text += [f"{k} = {json.dumps(str(v) if isinstance(v, Path) else v)}" for k, v in merged.items()]
        (folder / "agent.toml").write_text("\n".join(text) + "\n")
