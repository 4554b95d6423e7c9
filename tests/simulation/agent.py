"""One real agent on a simulated machine: started, killed, and started again from its disk."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nixfleet_agent.config.model import ActivationConfig, Config, HooksConfig, RebootConfig, TuningConfig
from nixfleet_agent.errors import AgentError
from nixfleet_agent.probes.declarations import ProbeDecl
from nixfleet_agent.probes.runners import RunnerContext, RunnerOutcome, failed, passed
from nixfleet_agent.runtime.assembly import Agent, assemble
from nixfleet_agent.runtime.daemon import MainLoop, Process
from nixfleet_agent.runtime.platform import Platform
from nixfleet_agent.runtime.state_dir import StateDir
from nixfleet_agent.telemetry.logs import Logs
from nixfleet_agent.telemetry.notify import Notifier
from tests.simulation.machine import Machine
from tests.simulation.network import Network
from tests.simulation.primitives import SimInbox, SimThreads
from tests.simulation.scheduler import Scheduler

CHECKS = {"app": {"kind": "exec", "mode": "enforce", "intervalSeconds": 10, "timeoutSecs": 5, "command": ["true"]}}
#: What its unit waits before it starts the agent again, in seconds.
RESTART_SECS = 5.0


class _NoLogs(Logs):
    """Lines go to whoever listens to the package's logger."""

    def __init__(self) -> None:
        pass

    @property
    def lost(self) -> int:
        return 0

    def recent(self) -> list[str]:  # type: ignore[override]
        return []

    def set_level(self, level: str) -> None: ...
    def close(self) -> None: ...


class _SimProcess(Process):
    """The process is a group of threads."""

    def __init__(self, scheduler: Scheduler, group: str, on_hang: list[str], slow: Callable[[], bool]) -> None:
        super().__init__(_NoLogs())
        self._slow = slow
        self._scheduler = scheduler
        self._group = group
        self._on_hang = on_hang

    @contextmanager
    def ends_within(self, seconds: float, code: int) -> Iterator[None]:
        began = self._scheduler.now
        yield
        # The process of a real host is ended at that moment; on a slow disk that is what it is there for.
        if self._scheduler.now - began > seconds and not self._slow():
            self._on_hang.append(f"{self._group} took {self._scheduler.now - began:.1f} s to end")

    def left_behind(self) -> list[str]:
        return [task.name for task in self._scheduler.alive(self._group) if task is not self._scheduler.current]

    def leave(self, code: int) -> None:
        """On a slow disk a thread may be in the middle of its writes; it goes with the process."""
        if not self._slow():
            self._on_hang.append(f"{self._group} left threads behind: {self.left_behind()}")
        task = self._scheduler.current
        self._scheduler.end([each for each in self._scheduler.alive(self._group) if each is not task])


class SimAgent:
    """See the module; ``group`` names its threads."""

    def __init__(self, machine: Machine, network: Network, rng: random.Random, tuning: TuningConfig) -> None:
        self.machine = machine
        self.network = network
        self.group = f"{machine.name}/agent"
        self.agent: Agent | None = None
        self.starts = 0
        self.wanted = False
        self.problems: list[str] = []
        self._inbox: SimInbox
        self._rng = rng
        self._tuning = tuning
        self._scheduler = machine.scheduler
        self._state: StateDir | None = None
        etc = machine.root / "etc"
        (etc / "health-checks.json").write_text(json.dumps(CHECKS))
        self.config = Config(
            control_plane_url="https://cp.invalid",
            machine_id=machine.name,
            trust_file=etc / "trust.json",
            ca_cert=etc / "ca.pem",
            client_cert=machine.root / "state/agent-cert.pem",
            client_key=etc / "key",
            ssh_host_key_file=etc / "key",
            state_dir=machine.root / "state",
            health_checks_file=etc / "health-checks.json",
            hooks=HooksConfig(folder=etc / "hooks.d"),
            tuning=tuning,
            reboot=RebootConfig(required_file=str(machine.root / "run/reboot-required")),
            activation=ActivationConfig(
                backend="systemd",
                profile=machine.profile,
                current_system=machine.current_system,
                switch_lock=machine.root / "run/switch.lock",
                store_root=str(machine.store),
            ),
        )

    # -- its life -----------------------------------------------------------------------------

    def start(self) -> None:
        """Its unit starts it, and again whenever it ends by itself."""
        self.wanted = True
        self._scheduler.spawn("main", self.group, self._main)

    def kill(self) -> None:
        """SIGKILL; its unit starts it again when ``start`` is called."""
        self.wanted = False
        self._scheduler.kill([self.group])
        self._gone()

    def signal(self, number: object) -> None:
        """Send it a signal."""
        if self.agent is not None:
            self._inbox.put(number)

    @property
    def running(self) -> bool:
        return self.agent is not None

    def _main(self) -> None:
        while self.wanted:
            self.starts += 1
            self._inbox = inbox = SimInbox(self._scheduler)
            try:
                self._state = StateDir.take(self.config.state_dir)
                agent = assemble(self.config, self._platform(), inbox, _NoLogs())  # type: ignore[arg-type]
            except AgentError:  # a full disk at its start: the process ends, and its unit tries again
                self._gone()
                self._scheduler.sleep(RESTART_SECS)
                continue
            self.agent = agent
            process = _SimProcess(self._scheduler, self.group, self.problems, self._on_slow_disk)
            notifier = Notifier.from_environment({}, self.machine.clock)
            MainLoop(agent, inbox, notifier, self.machine.clock, process).run()  # type: ignore[arg-type]
            self._gone()
            self._scheduler.sleep(RESTART_SECS)

    def _platform(self) -> Platform:
        return Platform(
            clock=self.machine.clock,
            threads=SimThreads(self._scheduler, self.group),
            machine=self.machine,
            rng=lambda: random.Random(self._rng.random()),
            connect=self.network.connect,
            probe=self._probe,
            listens=False,
        )

    def _gone(self) -> None:
        """What the kernel does with a process that has ended."""
        agent, self.agent = self.agent, None
        if agent is not None:
            agent.close()
        if self._state is not None:
            with suppress(OSError):
                self._state.release_lock()
            self._state = None

    def _on_slow_disk(self) -> bool:
        return self.machine.disk.trouble.latency > 0

    def _probe(self, decl: ProbeDecl, context: RunnerContext) -> RunnerOutcome:
        context.clock.wait(context.cancel.event, 0.01 + self._rng.random() * 0.2)
        return passed() if self.machine.healthy() else failed("the app does not answer")


def journaled(state: Path, host: str) -> dict[str, list[int]]:
    """The seqs in the journal by rollout, of all folders: ``outbound-queue``, ``outbound-sent/*``."""
    from nixfleet_agent.journal.entries import parse_name

    found: dict[str, list[int]] = {}
    for folder in (state / "outbound-queue", *sorted(state.glob("outbound-sent/*"))):
        if folder.is_dir():
            for entry in sorted(folder.iterdir()):
                name = parse_name(entry.name, host)
                if name is not None and name.seq > 0:
                    found.setdefault(name.rollout_id, []).append(name.seq)
    return {rollout_id: sorted(seqs) for rollout_id, seqs in found.items()}
