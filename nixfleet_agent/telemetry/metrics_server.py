"""Serves `/metrics` and `/healthz` over plain HTTP, and keeps node-exporter's textfile, when either is configured."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.config import MetricsConfig
from nixfleet_agent.config.load import split_address
from nixfleet_agent.errors import ConfigError, StorageError
from nixfleet_agent.telemetry.listener import Listener
from nixfleet_agent.telemetry.metrics import CONTENT_TYPE, Metrics
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.threads.timers import Timer
from nixfleet_agent.threads.worker import Worker
from nixfleet_agent.trouble import Trouble

#: A scraper's request line and headers (bytes).
HEAD_LIMIT = 16 * 1024
TEXTFILE_INTERVAL_SECS = 15.0

#: What is wrong with the agent right now, one line each; empty when all is well.
Health = Callable[[], list[str]]


class MetricsServerWorker(Listener):
    """``GET /metrics``; ``GET /healthz`` answers 200, or 503 with what is wrong."""

    name = "metrics_server"
    telemetry = True
    end = b"\r\n\r\n"
    limit_bytes = HEAD_LIMIT

    def __init__(
        self, shutdown: ShutdownToken, clock: Clock, address: tuple[str, int], metrics: Metrics, health: Health
    ) -> None:
        super().__init__(shutdown, clock)
        self._address = address
        self.where = f"{address[0]} port {address[1]} (metrics.listen)"
        self._metrics = metrics
        self._health = health
        #: The port in use, once ``listening`` is set (for a configured port 0).
        self.port = 0

    def open(self) -> socket.socket:
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=16)
        self.port = listening.getsockname()[1]
        return listening

    def answer(self, request: bytes) -> bytes:
        words = request.split(b"\r\n", 1)[0].split()
        if len(words) != 3 or not words[2].startswith(b"HTTP/1.") or len(request) > HEAD_LIMIT:
            return _reply("400 Bad Request", b"not an HTTP/1 request\n")
        method, target = words[0], words[1].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _reply("405 Method Not Allowed", b"GET only\n")
        if target == b"/metrics":
            return _reply("200 OK", self._metrics.exposition(), CONTENT_TYPE, head_only=method == b"HEAD")
        if target == b"/healthz":
            problems = self._health()
            body = "".join(f"{problem}\n" for problem in problems or ["ok"]).encode()
            status = "503 Service Unavailable" if problems else "200 OK"
            return _reply(status, body, head_only=method == b"HEAD")
        return _reply("404 Not Found", b"/metrics or /healthz\n")


def _reply(status: str, body: bytes, kind: str = "text/plain; charset=utf-8", *, head_only: bool = False) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if head_only else body)


class MetricsTextfileWorker(Worker):
    """Writes the textfile every 15 seconds; the collector reads the old one or the new one, never a part."""

    name = "metrics_textfile"
    telemetry = True

    def __init__(self, shutdown: ShutdownToken, clock: Clock, path: Path, metrics: Metrics) -> None:
        super().__init__(shutdown, clock)
        self._path = path
        self._metrics = metrics
        self._trouble = Trouble(self.log, "no metrics")

    def run(self) -> None:
        with suppress(StorageError):  # what is wrong with the folder, the first write says
            durable.remove_temporaries(self._path.parent, f".{self._path.name[:200]}.")
        timer = Timer(TEXTFILE_INTERVAL_SECS, self.clock, self.shutdown)
        while timer.wait():
            self.alive()
            self.write()

    def write(self) -> None:
        """One write; a folder that refuses it is said once, for metrics must not stop the agent."""
        try:
            # Not durable on purpose: after a power cut these figures are worth nothing.
            durable.write(self._path, self._metrics.exposition(), mode=0o644, sync=False)
        except StorageError as error:
            self._trouble.failed(str(error))
        else:
            self._trouble.over()


def metrics_workers(
    config: MetricsConfig, shutdown: ShutdownToken, clock: Clock, metrics: Metrics, health: Health
) -> list[Worker]:
    """The workers that the configuration asks for: none, one or both."""
    workers: list[Worker] = []
    if config.listen:
        address = split_address(config.listen)
        if address is None:
            raise ConfigError(f"metrics.listen must be ADDRESS:PORT, is {config.listen!r}")
        workers.append(MetricsServerWorker(shutdown, clock, address, metrics, health))
    if config.textfile:
        workers.append(MetricsTextfileWorker(shutdown, clock, Path(config.textfile), metrics))
    return workers
