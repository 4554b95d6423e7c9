"""The hosts of a demo: a folder each, with keys, configuration and a Nix store, and the agent that runs there."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nixfleet_agent import durable
from nixfleet_agent.demo.closures import HOST_VARIABLE, STORE, run_nix
from nixfleet_agent.demo.disk import HostDisk
from nixfleet_agent.demo.errors import DemoError
from nixfleet_agent.demo.logs import LoggedRefusal, LogTail, refusal
from nixfleet_agent.demo.processes import MARK_VARIABLE, die_with_parent, end_marked, inherited
from nixfleet_agent.identity.host_key import HostKey, from_private
from nixfleet_agent.telemetry.status_socket import AgentNotRunningError, ask
from nixfleet_agent.threads.interrupts import held

STOP_SECS = 10.0
#: The kernel's limit for the path of a socket, which an agent has in its state folder.
SOCKET_PATH_LIMIT = 107


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all hosts of one demo have in common."""

    control_plane_url: str
    ca_file: Path
    trust_file: bytes
    cache_url: str
    cache_key: str
    mark: str
    #: Multiplies the intervals that cost CPU: a hundred agents on two cores must not beat like three.
    pace: float


class Host(HostDisk):
    """One host. ``install`` it, ``start`` its agent; the agent may be killed and started again."""

    def __init__(self, name: str, folder: Path, around: Surroundings) -> None:
        super().__init__(name, folder)
        self.log_file = folder / "agent.log"
        self.command = folder / "nixfleet-agent"
        self.pem_key_file = folder / "ssh_host_ed25519_key.pem"
        self.client_certificate = self.state_dir / "agent-cert.pem"
        self._around = around
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopped = False
        self._log = LogTail(self.log_file)
        self._windows: tuple[str, ...] = ()

    def install(self, closure: str) -> HostKey:
        """Make the host as an installer would: keys, configuration, and a first system that runs; its host key.

        Raises:
            DemoError: the folder's path is too long, or Nix failed.
        """
        socket = self.state_dir / "agent.sock"
        if len(os.fsencode(socket)) > SOCKET_PATH_LIMIT:
            raise DemoError(f"{self.folder} is too long a path for a socket: choose a shorter --dir")
        for made in (self.folder / "home", self.profile.parent):
            made.mkdir(parents=True)
        key = from_private(Ed25519PrivateKey.generate())
        secret = key.private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        durable.write(self.folder / "ssh_host_ed25519_key", secret)
        durable.write(self.folder / "ssh_host_ed25519_key.pub", f"{key.public_openssh}\n".encode(), mode=0o644)
        pkcs8 = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        durable.write(self.pem_key_file, pkcs8)  # the same key as curl reads it
        durable.write(self.folder / "trust.json", self._around.trust_file, mode=0o644)
        durable.write(self.config_file, self._config().encode(), mode=0o644)
        durable.write(self.command, self._command().encode(), mode=0o755)
        self._nix("nix-store", "--realise", f"{STORE}/{closure}")
        self._nix("nix-env", "--profile", str(self.profile), "--set", f"{STORE}/{closure}")
        self.boot_entry.write_text(f"{closure}\n", encoding="ascii")
        self.boot()
        return key

    def reboot(self) -> None:
        """As when the machine goes down and comes up: nothing that ran is left, and what the boot entry names runs.

        Raises:
            DemoError: the boot entry names nothing.
        """
        self.kill()
        end_marked(HOST_VARIABLE, str(self.folder))
        self.boot()
        self.start()

    def give_token(self, token: bytes) -> None:
        """What the agent enrolls with."""
        durable.write(self.folder / "bootstrap-token.json", token)

    def start(self) -> None:
        """Start the agent; its output is appended to ``log_file``. After ``stop`` this does nothing."""
        with self._lock, self.log_file.open("ab") as log, held():
            if self._stopped:
                return
            self._process = subprocess.Popen(  # nosec B603 # this program itself
                [*die_with_parent(), *self.agent],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
            )

    @property
    def agent(self) -> list[str]:
        """The words that start the agent."""
        return [sys.executable, "-m", "nixfleet_agent", "run", "--config", str(self.config_file)]

    def run_now(self, reason: str) -> None:
        """Let the next rollout begin outside the windows (raises DemoError: the agent's own command refused)."""
        done = subprocess.run(  # nosec B603 # the host's own command
            [self.command, "run-now", "--reason", reason], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise DemoError(f"run-now on {self.name} failed ({done.returncode}): {done.stderr.strip()}")

    def set_windows(self, windows: Sequence[str]) -> None:
        """Write these maintenance windows (UTC) into the configuration, and have the agent read it."""
        self._windows = tuple(windows)
        durable.write(self.config_file, self._config().encode(), mode=0o644)
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """End the agent the hard way, as a power cut would, and wait until it is gone."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def ask_to_stop(self) -> None:
        """SIGTERM; the agent is not started again."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)

    def wait_stopped(self) -> None:
        """Wait for the end after ``ask_to_stop``; an agent that does not end is killed."""
        with self._lock:
            if self._process is None:
                return
            try:
                self._process.wait(STOP_SECS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def pid(self) -> int | None:
        """Of the agent that runs."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    @property
    def ended_by_itself(self) -> int | None:
        """The exit code of an agent that nobody stopped; None while all is well."""
        with self._lock:
            return None if self._stopped or self._process is None else self._process.poll()

    def status(self) -> Mapping[str, Any]:
        """What the agent says of itself; nothing while none answers."""
        try:
            said: Mapping[str, Any] = ask(self.state_dir, "status")
        except AgentNotRunningError:
            return {}
        return said

    def last_words(self) -> str:
        """The message that the agent logged last."""
        lines = list(LogTail(self.log_file).new_lines())
        return str(lines[-1].get("message")) if lines else "nothing"

    def new_refusals(self) -> list[LoggedRefusal]:
        """What the agent has refused since the last call."""
        found = (refusal(self.name, line) for line in self._log.new_lines())
        return [each for each in found if each is not None]

    @property
    def environment(self) -> dict[str, str]:
        """Of the agent and of all its children: this host's store, and the one cache that it trusts."""
        around = self._around
        nix_config = (
            f"substituters = {around.cache_url}\ntrusted-public-keys = {around.cache_key}\nbuild-users-group =\n"
        )
        return {
            **inherited(),
            "HOME": str(self.folder / "home"),
            "NIX_REMOTE": f"local?root={self.store_root}",
            "NIX_CONF_DIR": str(self.folder / "home"),
            "NIX_CONFIG": nix_config,
            HOST_VARIABLE: str(self.folder),
            "SWITCH_LOG": str(self.switch_log),
            "SWITCH_LOCK": str(self.switch_lock),
            "SWITCH_CURRENT_SYSTEM": str(self.current_system),
            "SWITCH_BOOTLOADER": str(self.boot_entry),
            "SWITCH_UNITS": str(self.units),
            MARK_VARIABLE: around.mark,
        }

    def _command(self) -> str:
        """A script that is ``nixfleet-agent`` on this host: its configuration, and its agent's environment."""
        settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.environment.items())
        program = f"{shlex.quote(sys.executable)} -m nixfleet_agent"
        config = f"--config {shlex.quote(str(self.config_file))}"
        return (
            f"#!/bin/sh\n# nixfleet-agent as {self.name} has it: its configuration, its store, its environment.\n"
            f'exec env -i TERM="${{TERM:-dumb}}" {settings} {program} "$@" {config}\n'
        )

    def _nix(self, *arguments: str) -> None:
        run_nix(arguments, self.environment)

    def _config(self) -> str:
        """``agent.toml``: the keys of any host, with intervals short enough to watch."""
        folder, around = self.folder, self._around
        tables: dict[str, Mapping[str, object]] = {
            "": {
                "control_plane_url": around.control_plane_url,
                "machine_id": self.name,
                "trust_file": folder / "trust.json",
                "ca_cert": around.ca_file,
                "client_cert": self.client_certificate,
                "client_key": folder / "ssh_host_ed25519_key",
                "bootstrap_token_file": folder / "bootstrap-token.json",
                "state_dir": self.state_dir,
                "ssh_host_key_file": folder / "ssh_host_ed25519_key",
                "health_checks_file": self.current_system / "etc/nixfleet/agent/health-checks.json",
                "health_failure_threshold_secs": 2.0,
            },
            "activation": {
                "backend": "setsid",
                "profile": self.profile,
                "current_system": self.current_system,
                "switch_lock": self.switch_lock,
                "store_root": self.store_root,
                "poll_interval_secs": 0.1,
                "poll_budget_secs": 30.0,
                "settle_budget_secs": 30.0,
                "guard_secs": 400.0,
            },
            "maintenance": {"windows": list(self._windows), "time_zone": "UTC"},
            "hooks": {"folder": self.hooks},
            "reboot": {"required_file": folder / "run" / "reboot-required"},
            # The stories are about turns: what was done before one would hide how each goes.
            "prefetch": {"enabled": False},
            "tuning": _tuning(around.pace),
        }
        return "\n".join(line for name, table in tables.items() for line in _table(name, table))


def _tuning(pace: float) -> dict[str, object]:
    return {
        "dispatch_wait": 20,
        "heartbeat_interval": 1.0 * pace,
        "manifest_poll_interval": 5.0 * pace,
        "drain_interval": 2.0 * pace,
        "advance_interval": 0.25 * pace,
        "probe_min_interval": 1.0,
        "probe_repeat_interval": 10.0,
        "cert_check_interval": 1.0 * pace,
        "backoff_initial": 0.2,
        "backoff_max": 2.0,
    }


def _table(name: str, table: Mapping[str, object]) -> list[str]:
    """JSON strings are TOML strings too."""
    lines = [f"\n[{name}]"] if name else []
    lines += [f"{key} = {json.dumps(str(v) if isinstance(v, Path) else v)}" for key, v in table.items()]
    return lines
