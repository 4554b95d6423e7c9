"""One host under attack: the real agent with all its threads in this process, against a control plane that lies.

Activation is laid open: orders to switch are noted in ``switches`` and go no further, so that none ever runs here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nixfleet_agent.cli import main
from nixfleet_agent.config.model import (
    ActivationConfig,
    Config,
    LoggingConfig,
    PrefetchConfig,
    RebootConfig,
    TuningConfig,
)
from nixfleet_agent.runtime.assembly import Agent, assemble
from nixfleet_agent.runtime.platform import Platform
from nixfleet_agent.runtime.rollout.orders import Release as ReleaseOrder
from nixfleet_agent.telemetry import logs as logging_setup
from nixfleet_agent.telemetry.metrics import Metrics
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.threads.supervisor import WorkerDied
from tests.support.signing import CiSigner, closure_name
from tests.support.tls import DAY, HOUR, Authority, now, write_host_key

MACHINE = "web-01"
RUNNING = closure_name("nixos-system-running")
#: Much shorter where the test is expected to fail.
PATIENCE = float(os.environ.get("ATTACK_PATIENCE_SECS", "60"))
#: Intervals short enough for a test, with every throttle and backoff still in force.
TUNING = TuningConfig(
    dispatch_wait=5,
    heartbeat_interval=0.1,
    manifest_poll_interval=0.2,
    drain_interval=0.2,
    advance_interval=0.05,
    cert_check_interval=0.2,
    probe_min_interval=0.05,
    probe_repeat_interval=0.2,
    backoff_initial=0.02,
    backoff_max=0.05,
)


class Host:
    """The files of one host, and the agent's processes on them, one after the other."""

    def __init__(self, folder: Path, authority: Authority, ci: CiSigner, url: str) -> None:
        self.folder = folder
        self.ci = ci
        self.state_dir = folder / "state"
        self.state_dir.mkdir(mode=0o700)
        self.key = write_host_key(folder / "key")
        self.cert_path = folder / "agent-cert.pem"
        authority.write_client(self.cert_path, self.key, MACHINE, not_before=now() - HOUR, not_after=now() + 30 * DAY)
        self.trust_path = folder / "trust.json"
        self.trust_path.write_bytes(ci.trust_bytes())
        self.health_checks = folder / "health-checks.json"
        self.health_checks.write_text("{}")
        self.current_system = folder / "current-system"
        self.run_system(RUNNING)
        self.config = Config(
            control_plane_url=url,
            machine_id=MACHINE,
            trust_file=self.trust_path,
            ca_cert=authority.write_ca(folder / "ca.pem"),
            client_cert=self.cert_path,
            client_key=folder / "key",
            state_dir=self.state_dir,
            ssh_host_key_file=folder / "key",
            health_checks_file=self.health_checks,
            health_failure_threshold_secs=0.2,
            activation=ActivationConfig(
                backend="setsid",
                profile=folder / "profile",
                current_system=self.current_system,
                switch_lock=folder / "switch.lock",
                store_root=str(folder / "no-store"),
            ),
            prefetch=PrefetchConfig(enabled=False),
            reboot=RebootConfig(required_file=""),
            tuning=TUNING,
            logging=LoggingConfig(level="debug"),
        )
        self.life: Life | None = None

    def run_system(self, closure: str) -> None:
        """What runs on the host from now on."""
        link = self.folder / "current-system.new"
        link.symlink_to(f"/nix/store/{closure}")
        os.replace(link, self.current_system)

    def start(self, **changes: Any) -> Life:
        """The next process; ``changes`` are to the configuration, and stay."""
        self.stop()
        self.config = replace(self.config, **changes)
        self.life = Life(self.config)
        return self.life

    def stop(self) -> None:
        if self.life is not None:
            self.life.stop()
            self.life = None

    def command(self, *arguments: str) -> tuple[int, str]:
        """A command of the operator's, run in this process: exit code, and all that it printed."""
        settings = self.folder / "agent.toml"
        settings.write_text(self._toml())
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main([*arguments, "--config", str(settings)])
        return code, out.getvalue()

    def _toml(self) -> str:
        keys = ("control_plane_url", "machine_id", "trust_file", "ca_cert", "client_cert", "client_key", "state_dir")
        lines = [f"{k} = {json.dumps(str(getattr(self.config, k)))}" for k in (*keys, "ssh_host_key_file")]
        lines += [f"health_checks_file = {json.dumps(str(self.health_checks))}", "[activation]", 'backend = "setsid"']
        return "\n".join([*lines, f"current_system = {json.dumps(str(self.current_system))}"]) + "\n"

    # -- what is on disk ----------------------------------------------------------------------

    def journal(self) -> list[str]:
        """Names of the journal's files, delivered ones included."""
        folders = ("outbound-queue", "outbound-sent", "outbound-rejected", "outbound-corrupt", "outbound-dropped")
        return sorted(path.name for part in folders for path in (self.state_dir / part).rglob("*.json"))

    def pending(self) -> dict[str, Any] | None:
        """The order that is kept for later."""
        path = self.state_dir / "pending-dispatch.json"
        try:
            kept: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        return kept

    def tree(self) -> dict[str, bytes]:
        """Every file under the host's folder that is not the state directory's, with its content."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and not path.is_symlink() and self.state_dir not in path.parents
        }


class Life:
    """One process of the agent, in threads of this one; ``switches`` are the orders that reached activation."""

    def __init__(self, config: Config) -> None:
        self.stream = io.StringIO()
        self.clock = SystemClock()
        self.logs = logging_setup.configure(config.logging, self.clock, self.stream)
        self.events: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.deaths: list[WorkerDied] = []
        self.switches: list[Any] = []
        self.silent: set[str] = set()
        try:
            self.agent: Agent = assemble(config, Platform(clock=self.clock), self.events, self.logs)
        except BaseException:
            self.logs.close()
            raise
        self.metrics = Metrics(self.agent.board, self.clock)
        mailbox = self.worker("activation")._mailbox
        mailbox.put = self._note_order
        self._ended = threading.Event()
        self._main = threading.Thread(target=self._look_after, name="main-of-agent")
        self.agent.supervisor.start()
        self._main.start()

    def worker(self, name: str) -> Any:
        return self.agent.supervisor._posts[name].worker

    def stop(self) -> None:
        """End the process; fails when a thread does not end."""
        if self._ended.is_set():
            return
        self.agent.stop()
        left = self.agent.supervisor.join(10.0)
        self._ended.set()
        self.events.put(None)
        self._main.join()
        self.agent.close()
        self.logs.close()
        if left:
            raise AssertionError(f"threads that do not end: {left}")

    def _note_order(self, order: Any, *, replace: bool = False) -> bool:
        if not isinstance(order, ReleaseOrder):
            self.switches.append(order)
        return True

    def _look_after(self) -> None:
        """The main thread's part: restart what died."""
        supervisor = self.agent.supervisor
        while not self._ended.is_set():
            try:
                event = self.events.get(timeout=0.2)
            except queue.Empty:
                event = None
            if isinstance(event, WorkerDied) and event.error is not None:
                self.deaths.append(event)
            if isinstance(event, WorkerDied):
                supervisor.died(event)
            supervisor.restart_due()

    # -- what it says -------------------------------------------------------------------------

    def counted(self, name: str, **labels: str) -> int:
        """A counter of the status board, summed over the labels that are not given."""
        return sum(
            value
            for (counter, given), value in self.agent.board.counters().items()
            if counter == name and labels.items() <= dict(given).items()
        )

    def log(self) -> list[dict[str, Any]]:
        """The log lines so far."""
        return [json.loads(line) for line in self.output().splitlines()]

    def output(self) -> str:
        """The log so far, as it is."""
        self.logs.flush(60)
        return self.stream.getvalue()

    def said(self, words: str) -> bool:
        return any(words in str(line.get("message")) for line in self.log())

    def status(self) -> dict[str, Any]:
        return self.agent.board.snapshot()

    def exposition(self) -> str:
        return self.metrics.exposition().decode()


def until(condition: Callable[[], Any], what: str, situation: Callable[[], object] = str) -> Any:
    """Wait for what other threads will bring about; its value."""
    deadline = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"never: {what}; {situation()}")
        pause.wait(0.003)
    return value
