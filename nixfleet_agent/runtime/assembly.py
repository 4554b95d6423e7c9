"""The parts list: every object of the running agent, built in the order in which one needs the other."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial

from nixfleet_agent.activation.host import read_boot_id
from nixfleet_agent.artifacts.cache import ManifestCache
from nixfleet_agent.certificates.enrollment import Enrollment
from nixfleet_agent.certificates.renewal import Renewal
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import EnrollmentRefusedError, StorageError
from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.net.client import Observer
from nixfleet_agent.operator import quarantine
from nixfleet_agent.proto.heartbeat import Snapshot
from nixfleet_agent.proto.ids import channel_of
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.runtime.dispatch.check import Gates
from nixfleet_agent.runtime.dispatch.decision import acceptance
from nixfleet_agent.runtime.own_unit import own_unit_workers
from nixfleet_agent.runtime.rollout.applier import Applier, HostView
from nixfleet_agent.runtime.rollout.event_writer import RetryingEventWriter
from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.rollout.orders import outranks
from nixfleet_agent.runtime.rollout.recovery import recover
from nixfleet_agent.runtime.rollout.reducer import Reducer, Rules
from nixfleet_agent.runtime.rollout.rollouts import Host
from nixfleet_agent.runtime.services import (
    Links,
    Services,
    Stores,
    anchors,
    make_links,
    marks_of,
    open_stores,
    publish_sections,
    recover_quarantine,
    reload_parts,
)
from nixfleet_agent.runtime.workers.activation import ActivationWorker
from nixfleet_agent.runtime.workers.advance_ticker import AdvanceTicker
from nixfleet_agent.runtime.workers.cert_renewal import CertRenewalWorker
from nixfleet_agent.runtime.workers.heartbeat import HeartbeatWorker
from nixfleet_agent.runtime.workers.longpoll import LongPollWorker
from nixfleet_agent.runtime.workers.manifest_poll import ManifestPollWorker
from nixfleet_agent.runtime.workers.outbound import Outbound, Sender
from nixfleet_agent.runtime.workers.probe import ProbeWorker
from nixfleet_agent.state_machine import RecordTransition, State
from nixfleet_agent.telemetry.contacts import Contacts
from nixfleet_agent.telemetry.logs import Logs
from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.telemetry.status_socket import StatusSocketWorker
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.mailbox import Mailbox
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.threads.supervisor import Supervisor
from nixfleet_agent.threads.worker import Worker
from nixfleet_agent.trust.canonical import canonical

log = logging.getLogger("nixfleet_agent.assembly")


@dataclass(frozen=True, slots=True)
class Agent:
    """The built agent; nothing runs yet. ``stop`` wakes every wait, ``close`` comes after the threads were joined.

    ``reload`` are the steps of SIGHUP; one that raises AgentError leaves the others to do.
    """

    machine_id: str
    board: StatusBoard
    supervisor: Supervisor
    reducer: Reducer
    stop: Callable[[], None]
    close: Callable[[], None]
    reload: tuple[Callable[[], object], ...]


def assemble(config: Config, clock: Clock, events: queue.SimpleQueue[object], logs: Logs) -> Agent:
    """Build every part, recover the state of the last process, and start nothing.

    Raises:
        ConfigError: the trust file, the activation backend or an address can't be used.
        StorageError: the state directory can't be written.
    """
    shutdown, board = ShutdownToken(clock), StatusBoard()
    observe_request, scraped = _metrics(config, board, clock)
    services = Services(
        config,
        clock,
        shutdown,
        board,
        observe_request,
        InputQueue(shutdown),
        Mailbox(clock, shutdown, outranks),
        Mailbox(clock, shutdown),
    )
    stores = open_stores(services)
    host = recover(stores.journal, services.current(), clock.monotonic())
    stores.trust.recover_marks(marks_of(host))
    recover_quarantine(stores.quarantine, host)
    links = make_links(services, stores)
    outbound = _outbound(services, stores, links)
    reducer = _reducer(services, stores, host, outbound.kick)
    workers = [
        outbound,
        *_workers(services, stores, links, events),
        *_doors(services, stores, outbound, logs, scraped),
        *own_unit_workers(shutdown, clock, board, events.put),
    ]
    supervisor = Supervisor(
        workers, reducer, shutdown, clock, events, lambda name: board.count("worker_restarts", worker=name)
    )
    publish_sections(services, stores, logs)

    def stop() -> None:
        shutdown.set()
        services.inputs.close()
        links.control_plane.abort()

    return Agent(
        machine_id=config.machine_id,
        board=board,
        supervisor=supervisor,
        reducer=reducer,
        stop=stop,
        close=links.control_plane.close,
        reload=reload_parts(services, stores, links),
    )


def _reducer(services: Services, stores: Stores, host: Host, kick: Callable[[], None]) -> Reducer:
    def on_transition(transition: RecordTransition) -> None:
        services.board.count("transitions", before=str(transition.before), after=str(transition.after))

    def writer(alive: Callable[[], None]) -> RetryingEventWriter:
        return RetryingEventWriter(
            stores.journal,
            stores.reserve,
            services.inputs,
            services.board,
            services.shutdown,
            services.clock,
            services.backoff,
            alive,
        )

    tuning = services.config.tuning
    rules = Rules(services.config.health_failure_threshold_secs, tuning.probe_repeat_interval, read_boot_id())
    applier = Applier(
        services.activation,
        services.probes,
        services.board,
        kick,
        on_transition,
        partial(_quarantine, services, stores),
    )
    return Reducer(services.shutdown, services.clock, stores.journal, writer, applier, rules, host, services.current)


def _outbound(services: Services, stores: Stores, links: Links) -> Outbound:
    def sign(event: dict[str, object]) -> str | None:
        identity = links.credentials.current()
        return None if identity is None else identity.key.sign(canonical(event)).hex()

    def is_over(rollout_id: str) -> bool:
        view = services.board.get("host")
        return isinstance(view, HostView) and not (rollout_id == view.active_id and view.active_open)

    tuning = services.config.tuning
    return Outbound(
        services.shutdown,
        services.clock,
        stores.journal,
        links.control_plane,
        Sender(sign),
        services.board,
        is_over,
        tuning.drain_interval,
        tuning.backoff_initial,
        tuning.backoff_max,
    )


def _workers(services: Services, stores: Stores, links: Links, events: queue.SimpleQueue[object]) -> list[Worker]:
    """The nine workers but outbound."""
    config, tuning, clock, shutdown = services.config, services.config.tuning, services.clock, services.shutdown
    common = (config, links.control_plane, links.credentials, clock, partial(anchors, config, stores.trust))

    def open_rollouts() -> Container[str]:
        """The active rollout, and those it superseded that it could still hand back to: they soak what runs."""
        view, records, current = services.board.get("host"), services.board.get("rollouts"), services.current()
        if not isinstance(view, HostView) or not isinstance(records, tuple):
            return ()
        soaks = {r.rollout_id for r in records if r.state is State.SOAKING and current in (None, r.target_closure)}
        return soaks | ({view.active_id} if view.active_id and view.active_open else set())

    def refused(error: EnrollmentRefusedError) -> None:
        view = services.board.get("host")
        if not (isinstance(view, HostView) and view.active_open):
            events.put(error)

    return [
        ActivationWorker(
            shutdown,
            clock,
            services.activation,
            services.inputs,
            services.board,
            config.activation,
            config.state_dir,
            services.backoff(),
            stores.rollback,
            partial(_quarantine, services, stores),
            open_rollouts,
            stores.reserve.release,
        ),
        AdvanceTicker(shutdown, clock, services.inputs, services.current, tuning.advance_interval),
        CertRenewalWorker(
            config,
            links.credentials,
            Enrollment(*common),
            Renewal(*common),
            shutdown,
            clock,
            services.board,
            enrollment_refused=refused,
        ),
        HeartbeatWorker(
            shutdown,
            clock,
            services.inputs,
            stores.journal,
            links.control_plane,
            services.board,
            services.current,
            partial(_verify_snapshot, services, links.cache),
            tuning.heartbeat_interval,
            services.backoff(),
        ),
        LongPollWorker(
            config,
            shutdown,
            clock,
            services.inputs,
            links.control_plane,
            links.cache,
            services.board,
            _gates(services, stores),
        ),
        ManifestPollWorker(
            shutdown, clock, services.inputs, links.cache, tuning.manifest_poll_interval, services.backoff()
        ),
        ProbeWorker(shutdown, clock, config=config, mailbox=services.probes, emit=services.inputs.put),
    ]


_Scraped = Callable[[ShutdownToken, Callable[[], list[str]]], list[Worker]]


def _metrics(config: Config, board: StatusBoard, clock: Clock) -> tuple[Observer, _Scraped]:
    """Who is told of each request, and the workers that serve metrics: none, one or both.

    The Prometheus library is 2 MB of memory that an agent which nobody scrapes does not need.
    """
    if not (config.metrics.listen or config.metrics.textfile):
        return Contacts(board, clock).observe_request, lambda shutdown, health: []
    from nixfleet_agent.telemetry.metrics import Metrics
    from nixfleet_agent.telemetry.metrics_server import metrics_workers

    metrics = Metrics(board, clock)
    return metrics.observe_request, lambda shutdown, health: metrics_workers(
        config.metrics, shutdown, clock, metrics, health
    )


def _doors(services: Services, stores: Stores, outbound: Outbound, logs: Logs, scraped: _Scraped) -> list[Worker]:
    """Where commands and scrapers come in."""

    def rescan(request: object) -> int:
        found = stores.journal.rescan_queue()
        outbound.kick()
        return found

    def health() -> list[str]:
        silent, journal = services.board.get("silent_workers"), services.board.get("journal_error")
        problems = [f"no sign of life from {name}" for name in silent] if isinstance(silent, list) else []
        return [*problems, *([f"events are not durable: {journal}"] if journal else [])]

    handlers = {
        "status": lambda request: services.board.snapshot(),
        "log": lambda request: logs.recent(),
        "rescan-queue": rescan,
    }
    return [
        StatusSocketWorker(services.shutdown, services.clock, services.config.state_dir, handlers),
        *scraped(services.shutdown, health),
    ]


def _gates(services: Services, stores: Stores) -> Gates:
    """What this host itself has to say to a Dispatch."""

    def hold() -> str | None:
        current = stores.hold.current()
        return current.reason if current else None

    def quarantined(channel: str, closure: str) -> str | None:
        hours = services.config.quarantine_hours
        now = services.clock.now()
        entry = stores.quarantine.refusal(channel, closure, now=now, hours=hours, running=services.current())
        return f"{entry.reason} in {entry.rollout_id}, until {format_time(entry.until(hours))}" if entry else None

    return Gates(stores.journal.knows, hold, quarantined, services.current)


def _verify_snapshot(services: Services, cache: ManifestCache, snapshot: Snapshot) -> Acceptance:
    """What signed artifacts say of a rollout that only a control plane's hint names; raises as ``cache.terms``."""
    hostname, now = services.config.machine_id, services.clock.now()
    terms = cache.terms(snapshot.rollout_id, hostname, snapshot.target_closure)
    return acceptance(
        snapshot.rollout_id,
        snapshot.target_closure,
        terms,
        soak_due_at=snapshot.soak_due_at or now,
        enqueued_at=snapshot.dispatched_at,
        received_at=now,
        current_closure=services.current(),
    )


def _quarantine(services: Services, stores: Stores, rollout_id: str, closure: str, reason: str) -> None:
    if services.config.quarantine_hours == 0:
        return
    entry = quarantine.Entry(channel_of(rollout_id), closure, rollout_id, services.clock.now(), reason)
    try:
        stores.quarantine.add(entry)
    except StorageError as error:
        log.warning("a failed closure is not in quarantine: %s", error, extra={"closure": closure})
