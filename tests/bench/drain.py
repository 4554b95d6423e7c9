"""How fast a backlog of events is drained, against a bare loop of POSTs of the same bytes over one `requests` session.

The server is real TLS 1.3 with client certificates, in a process of its own. Bars: the outbound worker reaches 70 %
of the bare loop, and a backlog ten times as long takes at most eleven times as long.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import requests

from nixfleet_agent.identity.credentials import Credentials
from nixfleet_agent.identity.event_signer import EventSigner
from nixfleet_agent.journal.entries import Entry, entry_of
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.net.client import ControlPlane
from nixfleet_agent.runtime.workers.outbound import EVENTS, Outbound, envelope
from nixfleet_agent.threads.clock import SystemClock
from tests.bench import figures
from tests.bench.figures import Figure
from tests.runtime.harness import HOSTNAME
from tests.runtime.parts import services
from tests.state_machine.machine import T0, event
from tests.support.behaviours import Reply
from tests.support.https_server import HttpsServer
from tests.support.tls import Authority, pkcs8_pem, write_host_key

BAR, LONG_BAR = 0.7, 11.0
ROLLOUT = "stable@def4567abc"


def serve(folder: str, pipe: Connection) -> None:
    """A control plane that takes every event, until the other end of the pipe is closed."""
    place = Path(folder)
    with HttpsServer(place / "server.pem", place / "server.key", client_ca=place / "ca.pem") as server:
        server.route("POST", EVENTS, Reply(204))
        # It keeps every request for tests to look at; here they would only pile up.
        server.requests = Forgetful()
        pipe.send(server.url)
        try:
            pipe.recv()
        except EOFError:
            return


class Forgetful(list):  # type: ignore[type-arg]
    """A list that keeps nothing."""

    def append(self, item: object) -> None:
        """Gone."""


class Bench:
    """The keys, the server's process, and both ways to send."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        authority = Authority()
        self.ca = authority.write_ca(folder / "ca.pem")
        authority.write_server(folder)
        self.key = write_host_key(folder / "key")
        self.signer = EventSigner(folder / "key")
        authority.write_client(folder / "agent.pem", self.key, HOSTNAME)
        (folder / "key.pem").write_bytes(pkcs8_pem(self.key))
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(str(folder), theirs))
        self.process.start()
        theirs.close()
        self.url: str = self.pipe.recv()
        self.runs = 0

    def close(self) -> None:
        self.pipe.close()
        self.process.join(20)

    def bare(self, count: int) -> float:
        """Seconds for ``count`` POSTs of ready-made bytes over one keep-alive connection."""
        body = envelope(entry_of(event("ProbeResult", 1), HOSTNAME, ROLLOUT, T0), self.signer.sign)
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(self.ca)
            session.cert = (str(self.folder / "agent.pem"), str(self.folder / "key.pem"))
            session.headers["Content-Type"] = "application/json"
            session.post(self.url + EVENTS, data=body, timeout=10)
            begun = time.perf_counter()
            for _ in range(count):
                answer = session.post(self.url + EVENTS, data=body, timeout=10)
                if answer.status_code != 204:
                    raise RuntimeError(f"the server answered {answer.status_code}")
            return time.perf_counter() - begun

    def drained(self, count: int) -> float:
        """Seconds until the worker has sent a backlog of ``count`` events from the disk and filed each of them."""
        self.runs += 1
        journal = Journal(self.folder / f"state-{self.runs}", HOSTNAME)
        with mock.patch.object(os, "fsync", lambda descriptor: None):
            journal.open()
            zero = Entry(
                seq=0, hostname=HOSTNAME, rollout_id=ROLLOUT, kind="Dispatch", created_at=T0, event={"kind": "Dispatch"}
            )
            journal.accept(zero)
            for seq in range(1, count + 1):
                journal.append(entry_of(event("ProbeResult", seq), HOSTNAME, ROLLOUT, T0))
        clock = SystemClock()
        credentials = Credentials(self.folder / "agent.pem", self.folder / "key")
        credentials.reload()
        control_plane = ControlPlane(self.url, ca_cert=self.ca, credentials=credentials)
        worker = Outbound(services(clock=clock, journal=journal, control_plane=control_plane), self.signer.sign)
        control_plane.post_bytes(EVENTS, b"{}", deadline=10.0)
        begun = time.perf_counter()
        worker.drain()
        seconds = time.perf_counter() - begun
        control_plane.close()
        if journal.waiting():
            raise RuntimeError("the backlog was not drained")
        return seconds


def measured(events: int, rounds: int, long: int) -> tuple[float, float, float]:
    """Seconds to drain, seconds of the bare loop (medians, in turns), and seconds to drain one long backlog."""
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        try:
            pairs = [(bench.bare(events), bench.drained(events)) for _ in range(rounds)]
            long_seconds = bench.drained(long)
        finally:
            bench.close()
    drained, bare = (statistics.median(side) for side in ((p[1] for p in pairs), (p[0] for p in pairs)))
    return drained, bare, long_seconds


def measure(quick: bool) -> list[Figure]:
    logging.basicConfig(level=logging.ERROR)
    events, rounds, long = (200, 3, 2_000) if quick else (1_000, 5, 10_000)
    drained, bare, long_seconds = measured(events, rounds, long)
    return [
        Figure(
            what=f"drain of {events:,} events",
            value=events / drained,
            unit="/s",
            baseline=events / bare,
            against="bare requests POST loop",
            least=BAR,
            runs=rounds,
        ),
        Figure(
            what=f"drain of {long:,} events",
            value=long_seconds,
            unit="s",
            baseline=drained,
            against=f"{events:,} events",
            most=LONG_BAR,
            runs=1,
        ),
    ]


if __name__ == "__main__":
    sys.exit(figures.main(measure, __doc__))
