"""A thousand simulated agents on one local control plane: how long heartbeats, turns and a whole release take.

    python -m tests.bench.local_cp [--agents 1000] [--rate 100] [--seconds 10]

The control plane is a process of its own. Every agent holds a long poll on one connection and beats on another, as
a real one does. Baseline: the same request for a small fixed answer, at the same rate, in the same run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import queue
import resource
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nixfleet_agent.clock import SystemClock
from nixfleet_agent.identity.csr import make_csr
from nixfleet_agent.identity.host_key import from_private
from nixfleet_agent.local_cp.ci import ChannelDescription, ContinuousIntegration, FleetDescription, WaveDescription
from nixfleet_agent.local_cp.service import LocalControlPlane
from nixfleet_agent.proto.times import format_time
from tests.support.signing import closure_name

BAR_SECS = 0.250
BEATERS = 16


def serve(folder: Path, names: list[str], pipe: Connection) -> None:
    """The control plane's process: make the agents' keys, serve, publish when told, end when told."""
    clock = SystemClock()
    ci = ContinuousIntegration()
    plane = LocalControlPlane(folder, clock, ci.org_root_public)
    private = Ed25519PrivateKey.generate()  # one key for all: the load is not in making keys
    (folder / "agent.key").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for name in names:
        csr = make_csr(from_private(private), name)
        (folder / f"{name}.pem").write_text(plane.authority.issue(csr, name, clock.now(), timedelta(hours=1)).pem)
    fleet = FleetDescription(channels={"stable": ChannelDescription(waves=(WaveDescription(tuple(names)),))})
    plane.start()
    pipe.send(plane.server.port)
    while (commit := pipe.recv()) is not None:
        closures = {name: closure_name(f"{name}-{commit}") for name in names}
        plane.control.publish(ci.release(fleet, commit, closures, clock.now()))
        pipe.send(None)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pipe.send((usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024))
    plane.stop()


class Agent:
    """Two keep-alive connections of one host."""

    def __init__(self, name: str, port: int, folder: Path) -> None:
        self.name = name
        context = ssl.create_default_context(cafile=str(folder / "fleet-ca.pem"))
        context.load_cert_chain(folder / f"{name}.pem", folder / "agent.key")
        self.polling, self.beating = (
            http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=90) for _ in range(2)
        )

    def call(self, connection: http.client.HTTPSConnection, method: str, path: str, body: object = None) -> int:
        connection.request(method, path, body=None if body is None else json.dumps(body))
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def poll(self) -> int:
        return self.call(self.polling, "GET", "/v1/agent/dispatch?wait=60")

    def beat(self) -> None:
        at = format_time(datetime.now(timezone.utc))
        body = {"hostname": self.name, "at": at, "agent_version": "0.1.0", "uptime_secs": 1}
        self.call(self.beating, "POST", "/v1/agent/heartbeat", {**body, "last_event_seq_by_rollout": {}})

    def nothing(self) -> None:
        self.call(self.beating, "GET", "/v1/nothing")


def at_rate(agents: list[Agent], call: Callable[[Agent], None], rate: float, count: int) -> list[float]:
    """Seconds of each of ``count`` calls, started at ``rate`` a second whatever the answers take."""
    due: queue.SimpleQueue[tuple[float, Agent] | None] = queue.SimpleQueue()
    taken: queue.SimpleQueue[float] = queue.SimpleQueue()
    began = time.monotonic()
    pause = threading.Event()

    def work() -> None:
        while (item := due.get()) is not None:
            at, agent = item
            pause.wait(max(0.0, at - time.monotonic()))
            call(agent)
            taken.put(time.monotonic() - at)

    for number in range(count):
        due.put((began + number / rate, agents[number % len(agents)]))
    threads = [threading.Thread(target=work) for _ in range(BEATERS)]
    for thread in threads:
        due.put(None)
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(taken.get() for _ in range(count))


def line(what: str, times: list[float]) -> float:
    p99 = times[int(len(times) * 0.99)]
    print(f"{what:<46} p50 {1000 * median(times):7.1f} ms   p99 {1000 * p99:7.1f} ms   n {len(times)}")
    return p99


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=100, help="heartbeats a second; 1000 agents beat 17 times")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    threading.stack_size(256 * 1024)
    with tempfile.TemporaryDirectory(prefix="bench-cp-") as scratch:
        return measure(options, Path(scratch))


def measure(options: argparse.Namespace, folder: Path) -> int:
    names = [f"host-{number:04}" for number in range(options.agents)]
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, names, theirs))
    child.start()
    port = ours.recv()
    agents = [Agent(name, port, folder) for name in names]
    count = int(options.rate * options.seconds)
    at_rate(agents, Agent.beat, 1000, len(agents))  # handshakes, and the control plane has heard of all
    line("baseline: a 404 at the same rate", at_rate(agents, Agent.nothing, options.rate, count))

    turns: queue.SimpleQueue[float] = queue.SimpleQueue()

    def poll(agent: Agent) -> None:
        while agent.poll() != 200:
            continue
        turns.put(time.monotonic())

    polls = [threading.Thread(target=poll, args=(agent,)) for agent in agents]
    for thread in polls:
        thread.start()
    p99 = line(f"heartbeat, {len(agents)} long polls open", at_rate(agents, Agent.beat, options.rate, count))
    ours.send("aaa1")
    began = time.monotonic()
    for thread in polls:
        thread.join()
    times = sorted(turns.get() - began for _ in agents)
    line("release published -> turn received, all at once", times)
    ours.recv()
    ours.send(None)
    cpu, rss = ours.recv()
    child.join()
    print(f"control plane: {cpu:.1f} s of CPU, {rss:.0f} MiB")
    print(f"bar: heartbeat p99 below {1000 * BAR_SECS:.0f} ms: {'met' if p99 < BAR_SECS else 'MISSED'}")
    return 0 if p99 < BAR_SECS else 1


if __name__ == "__main__":
    raise SystemExit(main())
