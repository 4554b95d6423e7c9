"""How fast a backlog of events is drained, against a bare loop of POSTs of the same bytes over one `requests` session.

    python -m tests.bench.drain [--events N] [--rounds N] [--long N] [--json]

The server is real TLS 1.3 with client certificates, in a process of its own. Exits 1 when the outbound worker reaches
less than 70 % of the bare loop, or when a backlog ten times as long takes more than eleven times as long.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import requests

from nixfleet_agent import durable
from nixfleet_agent.clock import SystemClock
from nixfleet_agent.identity.credentials import Credentials
from nixfleet_agent.net.client import ControlPlane
from nixfleet_agent.runtime.journal import Journal
from nixfleet_agent.runtime.journal_files import Entry, entry_of
from nixfleet_agent.runtime.shutdown import ShutdownToken
from nixfleet_agent.runtime.status import StatusBoard
from nixfleet_agent.runtime.workers.outbound import EVENTS, Outbound, Sender, signer
from nixfleet_agent.trust.canonical import canonical
from tests.runtime.harness import HOSTNAME
from tests.state_machine.machine import T0, event
from tests.support.https_server import HttpsServer, Reply
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
        body = Sender(signer(self.key.sign, canonical)).body(entry_of(event("ProbeResult", 1), HOSTNAME, ROLLOUT, T0))
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
        with mock.patch.object(durable.os, "fsync"):
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
        sender = Sender(signer(self.key.sign, canonical))
        worker = Outbound(
            ShutdownToken(clock), clock, journal, control_plane, sender, StatusBoard(), lambda _: False, 15.0, 1.0, 60.0
        )
        control_plane.post_bytes(EVENTS, b"{}", deadline=10.0)
        begun = time.perf_counter()
        worker.drain()
        seconds = time.perf_counter() - begun
        control_plane.close()
        if journal.waiting():
            raise RuntimeError("the backlog was not drained")
        return seconds


def measure(events: int, rounds: int, long: int) -> dict[str, float]:
    """Medians over rounds that take both sides in turn, and one long backlog."""
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        try:
            pairs = [(bench.bare(events), bench.drained(events)) for _ in range(rounds)]
            long_seconds = bench.drained(long)
        finally:
            bench.close()
    drained = statistics.median(ours for _, ours in pairs)
    return {
        "events": events,
        "rounds": rounds,
        "bare_per_second": events / statistics.median(theirs for theirs, _ in pairs),
        "drain_per_second": events / drained,
        "ratio": statistics.median(theirs / ours for theirs, ours in pairs),
        "bar": BAR,
        "long_events": long,
        "long_ratio": long_seconds / drained,
        "long_bar": LONG_BAR * long / (10 * events),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.ERROR)
    figures = measure(options.events, options.rounds, options.long)
    if options.json:
        print(json.dumps(figures))
    else:
        print(f"bare requests loop     {figures['bare_per_second']:8.0f} events/s")
        print(f"drain of the journal   {figures['drain_per_second']:8.0f} events/s")
        print(f"ratio                  {figures['ratio']:8.2f}  (bar: at least {BAR})")
        length, bar = options.long / options.events, figures["long_bar"]
        print(f"a backlog {length:4.0f} x longer {figures['long_ratio']:8.2f} x as long  (bar: at most {bar:.1f})")
    return 0 if figures["ratio"] >= BAR and figures["long_ratio"] <= figures["long_bar"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
