"""A thousand simulated agents on one local control plane: how long heartbeats, turns and a whole release take.

The control plane is a process of its own. Every agent holds a long poll on one connection and beats on another, as
a real one does. Baseline: the same request for a small fixed answer, at the same rate, in the same run.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import queue
import resource
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from multiprocessing.connection import Connection
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nixfleet_agent.identity.csr import make_csr
from nixfleet_agent.identity.host_key import from_private
from nixfleet_agent.local_cp.ci import ChannelDescription, ContinuousIntegration, FleetDescription, WaveDescription
from nixfleet_agent.local_cp.service import LocalControlPlane
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.threads.clock import SystemClock
from tests.bench import figures
from tests.bench.figures import Figure, percentile
from tests.support.signing import closure_name

BAR_MS = 250.0
#: Heartbeats a second, and for how long; a thousand agents beat 17 times a second.
RATE, SECONDS = 100.0, 10.0
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

    def long_polls(self) -> int:
        """How many are open, says the control plane."""
        self.beating.request("GET", "/status.json")
        return int(json.loads(self.beating.getresponse().read())["long_polls"])

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


def measure(quick: bool) -> list[Figure]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    threading.stack_size(256 * 1024)
    with tempfile.TemporaryDirectory(prefix="bench-cp-") as scratch:
        return with_agents(100 if quick else 1000, Path(scratch))


def with_agents(number: int, folder: Path) -> list[Figure]:
    names = [f"host-{index:04}" for index in range(number)]
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=serve, args=(folder, names, theirs))
    child.start()
    port = ours.recv()
    agents = [Agent(name, port, folder) for name in names]
    count = int(RATE * SECONDS)
    at_rate(agents, Agent.beat, 1000, len(agents))  # handshakes, and the control plane has heard of all
    bare = at_rate(agents, Agent.nothing, RATE, count)

    turns: queue.SimpleQueue[float] = queue.SimpleQueue()

    def poll(agent: Agent) -> None:
        while agent.poll() != 200:
            continue
        turns.put(time.monotonic())

    polls = [threading.Thread(target=poll, args=(agent,)) for agent in agents]
    at_rate(agents, lambda agent: agent.polling.connect(), 1000, len(agents))
    for thread in polls:
        thread.start()
    while agents[0].long_polls() < len(agents):  # what is timed is a fleet at rest, not its thousand handshakes
        threading.Event().wait(0.2)
    beats = at_rate(agents, Agent.beat, RATE, count)
    ours.send("aaa1")
    began = time.monotonic()
    for thread in polls:
        thread.join()
    times = sorted(turns.get() - began for _ in agents)
    ours.recv()
    ours.send(None)
    cpu, rss = ours.recv()
    child.join()
    slow, fast = (1000 * percentile(side, 0.99) for side in (beats, bare))
    return [
        Figure(what=f"heartbeat, {number:,} long polls open, p99", value=slow, unit="ms", most=BAR_MS, runs=count),
        Figure(what="a 404 at the same rate, no long poll, p99", value=fast, unit="ms", runs=count),
        Figure(what=f"release published -> last of {number:,} turns received", value=1000 * times[-1], unit="ms"),
        Figure(what="CPU of the local control plane in all", value=cpu, unit="s"),
        Figure(what="RSS of the local control plane, highest", value=rss, unit="MB"),
    ]


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
