"""What 100 probes at 5 s cost beside their own work, how late they start, and whether memory grows.

The same work done bare is the runner called in a loop, in the same run.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nixfleet_agent.config.model import Config, TuningConfig
from nixfleet_agent.probes import health_checks, runners
from nixfleet_agent.probes.declarations import ProbeDecl
from nixfleet_agent.probes.runners import RunnerContext, RunnerOutcome, passed
from nixfleet_agent.runtime.rollout.inputs import HostEvent
from nixfleet_agent.runtime.rollout.orders import ProbeOrder, ResetProbes
from nixfleet_agent.runtime.workers.probe import ProbeWorker
from nixfleet_agent.state_machine.events import LocalProbeTopologyDeclared
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.threads.mailbox import Mailbox
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.bench import figures
from tests.bench.figures import Figure
from tests.bench.processes import rss
from tests.probes.support import context

#: In a process of its own, so that what it burns is not counted as the agent's.
_SERVER = """
import socket
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
print(listener.getsockname()[1], flush=True)
while True:
    connection, _ = listener.accept()
    try:
        if connection.recv(4096):
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    except OSError:
        pass
    connection.close()
"""

PROBES, INTERVAL = 100, 5.0

Runner = Callable[[ProbeDecl, RunnerContext], RunnerOutcome]


class Bench:
    """One worker over one set of declarations, with every start noted."""

    def __init__(self, folder: Path, declarations: dict[str, Any], runner: Runner, floor: float) -> None:
        self.raw = json.dumps(declarations).encode()
        file = folder / "health-checks.json"
        file.write_bytes(self.raw)
        self.clock = SystemClock()
        self.shutdown = ShutdownToken(self.clock)
        self.mailbox: Mailbox[ProbeOrder] = Mailbox(self.clock, self.shutdown)
        self.starts: list[tuple[str, float]] = []
        self.declared_at = 0.0
        self.runner = runner
        self.floor = floor
        config = Config(
            control_plane_url="https://cp.example",
            machine_id="web-01",
            health_checks_file=file,
            tuning=TuningConfig(probe_min_interval=floor),
        )
        self.worker = ProbeWorker(
            self.shutdown, self.clock, config=config, mailbox=self.mailbox, emit=self._told, runner=self._run
        )

    def _told(self, item: HostEvent) -> bool:
        if isinstance(item.event, LocalProbeTopologyDeclared):
            self.declared_at = time.monotonic()
        return True

    def _run(self, decl: ProbeDecl, ctx: RunnerContext) -> RunnerOutcome:
        self.starts.append((decl.name, time.monotonic()))
        return self.runner(decl, ctx)

    def measure(self, seconds: float) -> tuple[float, int]:
        """(CPU seconds of this process, runs) over ``seconds`` from the reset on."""
        thread = threading.Thread(target=self.worker.run)
        thread.start()
        burnt = time.process_time()
        self.mailbox.put(ResetProbes("stable@abc"))
        self.shutdown.wait(seconds)
        burnt = time.process_time() - burnt
        runs = len(self.starts)
        self.shutdown.set()
        thread.join()
        return burnt, runs

    def bare(self, runs: int) -> float:
        """CPU seconds of the same number of runs, one after the other, without a worker."""
        decls = health_checks.parse(self.raw, self.floor).probes
        ctx = context()
        burnt = time.process_time()
        for number in range(runs):
            self.runner(decls[number % len(decls)], ctx)
        return time.process_time() - burnt

    def lateness(self, interval: float) -> list[float]:
        """Seconds that each run started after its due time, sorted."""
        turns: dict[str, int] = {}
        late = []
        for name, start in self.starts:
            turn = turns[name] = turns.get(name, -1) + 1
            late.append(start - (self.declared_at + turn * interval))
        return sorted(late)


def cost(folder: Path, kind: str, declaration: dict[str, Any], runner: Runner, span: float) -> list[Figure]:
    declarations = {f"p{n}": {**declaration, "intervalSeconds": INTERVAL} for n in range(PROBES)}
    bench = Bench(folder, declarations, runner, INTERVAL)
    burnt, runs = bench.measure(span)
    own = bench.bare(runs)
    late = bench.lateness(INTERVAL)
    what = f"{PROBES} {kind} probes at {INTERVAL:g} s"
    return [
        Figure(
            what=f"{what}: CPU beside their own work",
            value=100 * (burnt - own) / span,
            unit="% of a core",
            most=5.0,
            runs=runs,
        ),
        Figure(what=f"{what}: worst start after it was due", value=1000 * late[-1], unit="ms", most=100.0, runs=runs),
    ]


def growth(folder: Path, declaration: dict[str, Any], runs: int) -> Figure:
    """Memory over many runs of real probes, after a first tenth that warms everything up."""
    declarations = {f"p{n}": {**declaration, "intervalSeconds": 0.1} for n in range(20)}
    bench = Bench(folder, declarations, runners.run, 0.1)
    thread = threading.Thread(target=bench.worker.run)
    thread.start()
    bench.mailbox.put(ResetProbes("stable@abc"))
    before = 0.0
    while len(bench.starts) < runs:
        bench.shutdown.wait(0.1)
        if not before and len(bench.starts) >= runs // 10:
            before = rss(os.getpid())
    own = runs * sys.getsizeof(("", 0.0)) / 2**20  # what this bench itself keeps
    grown = rss(os.getpid()) - before - own
    bench.shutdown.set()
    thread.join()
    return Figure(what=f"growth over {runs:,} http probe runs", value=max(0.0, grown), unit="MB", most=10.0)


def measure(quick: bool) -> list[Figure]:
    logging.disable(logging.CRITICAL)
    span, runs = (6.0, 2_000) if quick else (21.0, 10_000)
    server = subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline())
    tcp = {"kind": "tcp", "port": port}
    http = {"kind": "http", "url": f"http://127.0.0.1:{port}/"}
    command = {"kind": "exec", "command": ["/bin/true"]}
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            return [
                *cost(folder, "empty", tcp, lambda decl, ctx: passed(), span),
                *cost(folder, "tcp", tcp, runners.run, span),
                *cost(folder, "exec", command, runners.run, span),
                *cost(folder, "http", http, runners.run, span),
                growth(folder, {**http, "bodyContains": "ok"}, runs),
            ]
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
