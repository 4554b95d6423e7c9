"""What 100 probes at 5 s cost beside their own work, how late they start, and whether memory grows.

    python -m tests.bench.probes [--seconds 21] [--probes 100] [--interval 5]

Each line: what was measured, its bar, and the same work done bare (the runner called in a loop) in the same run.
"""

from __future__ import annotations

import argparse
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

from nixfleet_agent.clock import SystemClock
from nixfleet_agent.config.model import Config, TuningConfig
from nixfleet_agent.proto import health_checks
from nixfleet_agent.proto.probe_decls import ProbeDecl
from nixfleet_agent.runtime.inputs import HostEvent
from nixfleet_agent.runtime.mailbox import Mailbox
from nixfleet_agent.runtime.orders import ProbeOrder, ResetProbes
from nixfleet_agent.runtime.shutdown import ShutdownToken
from nixfleet_agent.runtime.workers import probe_runners
from nixfleet_agent.runtime.workers.probe import ProbeWorker
from nixfleet_agent.runtime.workers.probe_runners import RunnerContext, RunnerOutcome, passed
from nixfleet_agent.state_machine.events import LocalProbeTopologyDeclared
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


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def cost(folder: Path, kind: str, declaration: dict[str, Any], runner: Runner, options: argparse.Namespace) -> bool:
    declarations = {f"p{n}": {**declaration, "intervalSeconds": options.interval} for n in range(options.probes)}
    bench = Bench(folder, declarations, runner, options.interval)
    burnt, runs = bench.measure(options.seconds)
    own = bench.bare(runs)
    late = bench.lateness(options.interval)
    share = 100 * (burnt - own) / options.seconds
    good = share <= 5.0 and late[-1] <= 0.1
    print(
        f"{kind:9} {options.probes} probes at {options.interval:g} s: {runs} runs, CPU {burnt:.3f} s, bare {own:.3f} s,"
        f" beside own work {share:.2f} % of a core (bar 5 %);"
        f" start p50 {1000 * late[len(late) // 2]:.1f} ms, p99 {1000 * late[int(len(late) * 0.99)]:.1f} ms,"
        f" worst {1000 * late[-1]:.1f} ms late (bar 100 ms) {'ok' if good else 'MISSED'}",
        flush=True,
    )
    return good


def growth(folder: Path, declaration: dict[str, Any], runs: int) -> bool:
    """Memory over many runs of real probes, after a first tenth that warms everything up."""
    declarations = {f"p{n}": {**declaration, "intervalSeconds": 0.1} for n in range(20)}
    bench = Bench(folder, declarations, probe_runners.run, 0.1)
    thread = threading.Thread(target=bench.worker.run)
    thread.start()
    bench.mailbox.put(ResetProbes("stable@abc"))
    before = 0
    while len(bench.starts) < runs:
        bench.shutdown.wait(0.1)
        if not before and len(bench.starts) >= runs // 10:
            before = resident_kib()
    grown = resident_kib() - before - runs * sys.getsizeof(("", 0.0)) // 1024  # what this bench itself keeps
    bench.shutdown.set()
    thread.join()
    good = grown < 10 * 1024
    print(f"memory    {runs} runs: grew by {grown} KiB (bar 10240 KiB) {'ok' if good else 'MISSED'}", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=21.0)
    parser.add_argument("--probes", type=int, default=100)
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument("--runs", type=int, default=10_000, help="runs of the memory measurement")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    server = subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline())
    tcp = {"kind": "tcp", "port": port}
    http = {"kind": "http", "url": f"http://127.0.0.1:{port}/"}
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            results = [
                cost(folder, "no work", tcp, lambda decl, ctx: passed(), options),
                cost(folder, "tcp", tcp, probe_runners.run, options),
                cost(folder, "exec", {"kind": "exec", "command": ["/bin/true"]}, probe_runners.run, options),
                cost(folder, "http", http, probe_runners.run, options),
                growth(folder, {**http, "bodyContains": "ok"}, options.runs),
            ]
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
