"""From a durable event to its POST on the wire, on an agent that had nothing to do.

The whole agent as `run` assembles it, all workers running, in this process; the control plane is real TLS 1.3 with
client certificates in another. The clock starts when the event is durable in the journal and the outbound worker is
told, and stops when the server has read the POST. Events come 50 to 100 ms apart, so that each finds an idle agent.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import queue
import random
import statistics
import sys
import tempfile
import threading
import time
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from pathlib import Path

from nixfleet_agent.config.model import ActivationConfig, Config
from nixfleet_agent.journal.entries import Entry, entry_of
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.runtime.assembly import Agent, assemble
from nixfleet_agent.runtime.platform import Platform
from nixfleet_agent.telemetry import logs
from nixfleet_agent.threads.clock import SystemClock
from tests.bench import figures
from tests.bench.figures import Figure, percentile
from tests.state_machine.machine import T0, event
from tests.support.behaviours import Reply, Request
from tests.support.https_server import HttpsServer
from tests.support.signing import CiSigner
from tests.support.tls import Authority, write_host_key

HOSTNAME, ROLLOUT = "web-01", "stable@def4567abc"
P50_MS, P99_MS = 10.0, 50.0


def serve(folder: Path, pipe: Connection) -> None:
    """A control plane with nothing to say, which notes when each event came in."""
    arrived: dict[int, float] = {}

    def take(request: Request) -> Reply:
        at = time.monotonic()
        arrived[json.loads(request.body)["event"]["seq"]] = at
        return Reply(204)

    with HttpsServer(folder / "server.pem", folder / "server.key", client_ca=folder / "ca.pem") as server:

        def poll(request: Request) -> Reply:
            server.stopping.wait(60)
            return Reply(204)

        server.route("GET", "/v1/agent/dispatch", poll)
        server.route("POST", "/v1/agent/events", take)
        server.route("POST", "/v1/agent/heartbeat", Reply(200, b"{}"))
        pipe.send(server.url)
        while pipe.recv():
            pipe.send(arrived)


def configured(folder: Path, url: str) -> Config:
    """The defaults, on files in ``folder``."""
    return Config(
        control_plane_url=url,
        machine_id=HOSTNAME,
        trust_file=folder / "trust.json",
        ca_cert=folder / "ca.pem",
        client_cert=folder / "agent.pem",
        client_key=folder / "key",
        ssh_host_key_file=folder / "key",
        state_dir=folder / "state",
        activation=ActivationConfig(current_system=folder / "current-system"),
    )


def delays(agent: Agent, journal: Journal, count: int) -> dict[int, float]:
    """Seq of each event -> when it was durable and the outbound worker was told."""
    pause, chance, told = threading.Event(), random.Random(7), {}
    kick = agent.reducer._applier.kick_outbound
    for seq in range(1, count + 1):
        pause.wait(chance.uniform(0.05, 0.1))
        journal.append(entry_of(event("ProbeResult", seq), HOSTNAME, ROLLOUT, T0))
        told[seq] = time.monotonic()
        kick()
    pause.wait(1.0)
    return told


def measure(quick: bool) -> list[Figure]:
    count = 50 if quick else 500
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = Authority()
        authority.write_ca(folder / "ca.pem")
        authority.write_server(folder)
        authority.write_client(folder / "agent.pem", write_host_key(folder / "key"), HOSTNAME)
        (folder / "trust.json").write_bytes(CiSigner().trust_bytes())
        (folder / "state").mkdir(mode=0o700)
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        server = spawn.Process(target=serve, args=(folder, theirs))
        server.start()
        config = configured(folder, ours.recv())
        clock = SystemClock()
        agent = assemble(
            config, Platform(clock=clock), queue.SimpleQueue(), logs.configure(config.logging, clock, io.StringIO())
        )
        journal = agent.reducer._journal
        now = datetime.now(timezone.utc)
        journal.accept(
            Entry(seq=0, hostname=HOSTNAME, rollout_id=ROLLOUT, kind="Dispatch", created_at=now, event={"kind": "x"})
        )
        agent.supervisor.start()
        threading.Event().wait(2)
        told = delays(agent, journal, count)
        ours.send(True)
        arrived = ours.recv()
        ours.send(False)
        agent.stop()
        agent.supervisor.join(5)
        agent.close()
        server.join()
    taken = [1000 * (arrived[seq] - at) for seq, at in told.items()]
    return [
        Figure(
            what="event durable -> POST on the wire, p50",
            value=statistics.median(taken),
            unit="ms",
            most=P50_MS,
            runs=count,
        ),
        Figure(what="the same, p99", value=percentile(taken, 0.99), unit="ms", most=P99_MS, runs=count),
    ]


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
