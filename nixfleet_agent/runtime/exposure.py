"""What the agent shows of itself: the sections of `status`, the answers of its socket, metrics and `/healthz`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from nixfleet_agent import __version__
from nixfleet_agent.config.model import Config
from nixfleet_agent.net.client import Observer
from nixfleet_agent.operator import quarantine
from nixfleet_agent.runtime.release import RELEASE, ReleaseStatus, release_status
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.telemetry.contacts import Contacts
from nixfleet_agent.telemetry.logs import Logs
from nixfleet_agent.telemetry.status import JOURNAL_ERROR, ROLLOUTS, SILENT_WORKERS, StatusBoard
from nixfleet_agent.telemetry.status_socket import Handler, StatusSocketWorker
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.worker import Worker


@dataclass(frozen=True, slots=True)
class Scraping:
    """Who is told of each request, and the workers that serve metrics: none, one or both."""

    observer: Observer
    workers: Callable[[Services], list[Worker]]


def scraping(config: Config, board: StatusBoard, clock: Clock) -> Scraping:
    """As configured. The Prometheus library is 2 MB of memory that an agent which nobody scrapes does not need."""
    if not (config.metrics.listen or config.metrics.textfile):
        return Scraping(Contacts(board, clock).observe_request, lambda services: [])
    from nixfleet_agent.telemetry.metrics import Metrics
    from nixfleet_agent.telemetry.metrics_server import metrics_workers

    metrics = Metrics(board, clock)
    return Scraping(
        metrics.observe_request,
        lambda services: metrics_workers(
            config.metrics, services.shutdown, clock, metrics, lambda: health_problems(board)
        ),
    )


def health_problems(board: StatusBoard) -> list[str]:
    """One line for each reason why the agent is not well; none when it is."""
    problems = [f"worker unresponsive: {name}" for name in board.read(SILENT_WORKERS)]
    journal = board.read(JOURNAL_ERROR)
    return [*problems, *([f"events are not durable: {journal}"] if journal else [])]


def status_socket(services: Services, logs: Logs, retry_now: Callable[[], None]) -> Worker:
    """Where commands come in."""

    def rescan(request: object) -> int:
        found = services.journal.rescan_queue()
        retry_now()
        return found

    handlers: dict[str, Handler] = {
        "status": lambda request: services.board.snapshot(_count(request.get("newest"))),
        "log": lambda request: logs.recent(),
        "rescan-queue": rescan,
    }
    return StatusSocketWorker(services.shutdown, services.clock, services.config.state_dir, handlers)


def _count(asked: object) -> int | None:
    """How many rollouts a command wants to see, None for all: an older one says nothing."""
    return asked if isinstance(asked, int) and asked > 0 else None


def publish_sections(services: Services, logs: Logs) -> None:
    """The sections of `status` that are set once, and those that are read anew each time somebody asks."""

    def in_quarantine() -> tuple[quarantine.Entry, ...]:
        now, hours = services.clock.now(), services.config.quarantine_hours
        return tuple(entry for entry in services.quarantine.entries() if now < entry.until(hours))

    def release() -> ReleaseStatus | None:
        kept = getattr(board.get("dispatch"), "rollout_id", None)
        return release_status(board.read(RELEASE), services.read_current(), board.read(ROLLOUTS), kept)

    board = services.board
    board.publish("agent", {"version": __version__, "machine_id": services.config.machine_id, "pid": os.getpid()})
    board.publish("started_at", services.clock.now())
    board.provide("release", release)
    board.provide("hold", services.hold.current)
    board.provide("maintenance", services.maintenance.status)
    board.provide("quarantine", in_quarantine)
    board.provide("log_lines_lost", lambda: logs.lost)
    board.provide("current_closure", services.read_current)
    board.provide("trust_error", services.trust.problem)
    board.provide("foreign", services.control_plane.foreign.current)
