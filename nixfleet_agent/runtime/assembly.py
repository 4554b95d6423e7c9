"""The parts list: every object of the running agent, built in the order in which one needs the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from nixfleet_agent.certificates.enrollment import Enrollment
from nixfleet_agent.certificates.renewal import Renewal
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import EnrollmentRefusedError
from nixfleet_agent.identity.event_signer import EventSigner
from nixfleet_agent.runtime.agent_change import AgentChange, Pipeline
from nixfleet_agent.runtime.dispatch.check import Gates
from nixfleet_agent.runtime.dispatch.snapshot import verify_snapshot
from nixfleet_agent.runtime.exposure import publish_sections, scraping, status_socket
from nixfleet_agent.runtime.own_unit import OwnUnit
from nixfleet_agent.runtime.platform import Platform
from nixfleet_agent.runtime.restore import restore
from nixfleet_agent.runtime.rollout.applier import Applier
from nixfleet_agent.runtime.rollout.decisions import Rules
from nixfleet_agent.runtime.rollout.inputs import AgentReady, SuccessorTried
from nixfleet_agent.runtime.rollout.reducer import Reducer
from nixfleet_agent.runtime.rollout.rollouts import Host
from nixfleet_agent.runtime.services import Services, open_services
from nixfleet_agent.runtime.start_gate import StartGate
from nixfleet_agent.runtime.workers.activation import ActivationWorker
from nixfleet_agent.runtime.workers.advance_ticker import AdvanceTicker
from nixfleet_agent.runtime.workers.cert_renewal import CertRenewalWorker
from nixfleet_agent.runtime.workers.heartbeat import HeartbeatWorker
from nixfleet_agent.runtime.workers.hooks import HooksWorker
from nixfleet_agent.runtime.workers.longpoll import LongPollWorker
from nixfleet_agent.runtime.workers.manifest_poll import ManifestPollWorker
from nixfleet_agent.runtime.workers.outbound import Outbound
from nixfleet_agent.runtime.workers.own_unit import OwnUnitWorker
from nixfleet_agent.runtime.workers.prefetch import PrefetchWorker
from nixfleet_agent.runtime.workers.probe import ProbeWorker
from nixfleet_agent.runtime.workers.reboot import RebootWorker
from nixfleet_agent.state_machine import RecordTransition
from nixfleet_agent.telemetry.logs import Logs
from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.threads.supervisor import Events, Supervisor
from nixfleet_agent.threads.worker import Worker


@dataclass(frozen=True, slots=True)
class Agent:
    """The built agent; nothing runs yet. ``stop`` wakes every wait, ``close`` comes after the threads were joined.

    ``reload`` are the steps of SIGHUP; one that raises AgentError leaves the others to do. ``reconfigure`` takes from a
    configuration what can change while the agent runs, except the log level.
    """

    machine_id: str
    board: StatusBoard
    supervisor: Supervisor
    reducer: Reducer
    stop: Callable[[], None]
    close: Callable[[], None]
    reload: tuple[Callable[[], object], ...]
    reconfigure: Callable[[Config], None]


def assemble(config: Config, platform: Platform, events: Events, logs: Logs) -> Agent:
    """Build every part, recover the state of the last process, and start nothing.

    Raises:
        ConfigError: the trust file, the activation backend or an address can't be used.
        StorageError: the state directory can't be written.
    """
    board, clock = StatusBoard(), platform.clock
    scraped = scraping(config, board, clock)
    services = open_services(config, platform, board, scraped.observer)
    services.maintenance.say_overlaps()
    host = restore(services)
    outbound = Outbound(services, EventSigner(config.ssh_host_key_file).sign)
    hooks = HooksWorker(services, host)
    reboot = RebootWorker(services)
    unit = OwnUnit.of_this_process(clock, lambda: services.shutdown.is_set)
    reducer = _reducer(services, host, outbound.kick, hooks)
    workers = [
        outbound,
        hooks,
        reboot,
        *_workers(services, events, unit),
        *([status_socket(services, logs, outbound.retry_now)] if platform.listens else []),
        *scraped.workers(services),
    ]
    supervisor = Supervisor(
        workers,
        reducer,
        services.shutdown,
        clock,
        events,
        lambda name: board.count("worker_restarts", worker=name),
        platform.threads,
    )
    publish_sections(services, logs)

    return Agent(
        machine_id=config.machine_id,
        board=board,
        supervisor=supervisor,
        reducer=reducer,
        stop=partial(_stop, services),
        close=services.control_plane.close,
        reload=services.reload(),
        reconfigure=partial(_reconfigure, services, reboot),
    )


def _stop(services: Services) -> None:
    services.shutdown.set()
    services.inputs.close()
    services.control_plane.abort()


def _reconfigure(services: Services, reboot: RebootWorker, changed: Config) -> None:
    services.maintenance.reconfigure(changed.maintenance)
    reboot.reconfigure(changed.reboot)


def _reducer(services: Services, host: Host, kick_outbound: Callable[[], None], hooks: HooksWorker) -> Reducer:
    def on_transition(transition: RecordTransition) -> None:
        services.board.count("transitions", before=str(transition.before), after=str(transition.after))

    tuning = services.config.tuning
    rules = Rules(
        services.config.health_failure_threshold_secs, tuning.probe_repeat_interval, services.platform.machine.boot_id()
    )
    applier = Applier(
        services.activation,
        services.probes,
        services.board,
        kick_outbound,
        on_transition,
        services.quarantine_closure,
        hooks.tell,
    )
    return Reducer(services, applier, rules, host)


def _workers(services: Services, events: Events, unit: OwnUnit | None) -> list[Worker]:
    """Those that neither the reducer nor another part has to know; ``unit`` is the service that starts this agent."""
    config, clock, shutdown = services.config, services.clock, services.shutdown
    platform = services.platform
    identity = (config, services.control_plane, services.credentials, clock, services.anchors)

    def refused(error: EnrollmentRefusedError) -> None:
        if not services.board.rollouts.active_open:
            events.put(error)

    probe = ProbeWorker(
        shutdown,
        clock,
        config=config,
        mailbox=services.probes,
        emit=services.inputs.put,
        runner=platform.probe,
        threads=platform.threads,
    )

    def change(pipeline: Pipeline) -> AgentChange:
        return AgentChange(pipeline, unit, events.put, lambda rollout_id: services.inputs.put(AgentReady(rollout_id)))

    return [
        ActivationWorker(services, services.quarantine_closure, change),
        AdvanceTicker(shutdown, clock, services.inputs, services.read_current, config.tuning.advance_interval),
        CertRenewalWorker(
            services, Enrollment(*identity), Renewal(*identity), enrollment_refused=refused, rng=platform.rng()
        ),
        HeartbeatWorker(services, partial(verify_snapshot, services)),
        LongPollWorker(services, Gates.of(services), platform.rng()),
        ManifestPollWorker(services),
        PrefetchWorker(services),
        probe,
        *_watching(unit, services, probe, events),
    ]


def _watching(unit: OwnUnit | None, services: Services, probe: ProbeWorker, events: Events) -> list[Worker]:
    """What looks after the service that starts this agent."""
    if unit is None:
        return []
    probe.gated_by(StartGate(unit, lambda rollout_id: services.inputs.put(SuccessorTried(rollout_id))))
    return [OwnUnitWorker(services.shutdown, services.clock, unit, lambda: services.board.idle, events.put)]
