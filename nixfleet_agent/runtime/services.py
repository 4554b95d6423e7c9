"""The agent's stores, its identity and its way to the control plane: what the workers are built upon."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cryptography import x509

from nixfleet_agent import __version__
from nixfleet_agent.activation.host import read_current
from nixfleet_agent.artifacts.cache import ManifestCache
from nixfleet_agent.artifacts.trust_store import TrustStore
from nixfleet_agent.config.model import Config
from nixfleet_agent.errors import IdentityError, ProtoError, StorageError
from nixfleet_agent.identity.anchors import load_anchors
from nixfleet_agent.identity.credentials import Credentials
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.journal.reserve import Reserve
from nixfleet_agent.net.client import ControlPlane, Observer
from nixfleet_agent.operator import quarantine
from nixfleet_agent.operator.hold import HoldStore
from nixfleet_agent.operator.rollback_control import RollbackControl
from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.rollout.inputs import HealthChecksReload
from nixfleet_agent.runtime.rollout.orders import ActivationOrder, ProbeOrder
from nixfleet_agent.runtime.rollout.rollouts import Host
from nixfleet_agent.telemetry.logs import Logs
from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.threads.backoff import Backoff
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.mailbox import Mailbox
from nixfleet_agent.threads.shutdown import ShutdownToken
from nixfleet_agent.trust.marks import Marks

log = logging.getLogger("nixfleet_agent.parts")


@dataclass(frozen=True, slots=True)
class Services:
    """What every part stands on."""

    config: Config
    clock: Clock
    shutdown: ShutdownToken
    board: StatusBoard
    observe_request: Observer
    inputs: InputQueue
    activation: Mailbox[ActivationOrder]
    probes: Mailbox[ProbeOrder]

    def current(self) -> str | None:
        """The closure that runs now."""
        return read_current(self.config.activation)

    def backoff(self) -> Backoff:
        return Backoff(self.config.tuning.backoff_initial, self.config.tuning.backoff_max)


@dataclass(frozen=True, slots=True)
class Stores:
    """What is on disk."""

    journal: Journal
    reserve: Reserve
    trust: TrustStore
    quarantine: quarantine.QuarantineStore
    hold: HoldStore
    rollback: RollbackControl


@dataclass(frozen=True, slots=True)
class Links:
    """Who this host is, and its way to the control plane."""

    credentials: Credentials
    control_plane: ControlPlane
    cache: ManifestCache


def open_stores(services: Services) -> Stores:
    config = services.config
    stores = Stores(
        journal=Journal(config.state_dir, config.machine_id),
        reserve=Reserve(config.state_dir),
        trust=TrustStore(config),
        quarantine=quarantine.QuarantineStore(config.state_dir),
        hold=HoldStore(config.state_dir, services.clock),
        rollback=RollbackControl(config.state_dir),
    )
    stores.trust.trust()  # without anything to verify against there is no point in starting
    stores.journal.open()
    stores.reserve.ensure()
    return stores


def make_links(services: Services, stores: Stores) -> Links:
    config = services.config
    credentials = Credentials(config.client_cert, config.client_key)
    try:
        credentials.reload()
    except IdentityError as error:
        # Not the end: the cert_renewal worker enrolls or waits, and what this host runs is still looked after.
        if config.bootstrap_token_file is not None and not config.client_cert.exists():
            log.info("no certificate yet: this host enrolls with its bootstrap token")
        else:
            log.warning("no usable certificate yet: %s", error)
    control_plane = ControlPlane(
        config.control_plane_url,
        ca_cert=config.ca_cert,
        credentials=credentials,
        clock=services.clock,
        observer=services.observe_request,
    )
    return Links(
        credentials, control_plane, ManifestCache(config, control_plane, stores.trust, services.clock, services.board)
    )


def marks_of(host: Host) -> list[Marks]:
    """The high-water marks that each accepted Dispatch was accepted under."""
    marks = []
    for rollout in host.rollouts.values():
        try:
            marks.append(Marks.parse(rollout.accepted.marks))
        except ProtoError as error:
            log.error("the marks of an accepted Dispatch: %s", error, extra={"rollout_id": rollout.rollout_id})
    return marks


def recover_quarantine(store: quarantine.QuarantineStore, host: Host) -> None:
    """What the logs say failed here after its switch was fired, and the file has not heard of.

    All of it where the file was lost; else what failed just before the process was killed. An operator who lifts
    an entry writes the file, and so nothing comes back that was lifted.
    """
    lost = store.lost
    entries = [
        quarantine.Entry(
            record.channel, record.target_closure, record.rollout_id, record.failed_at, "rebuilt from the log"
        )
        for record in (rollout.record for rollout in host.rollouts.values())
        if record.failed_at is not None and record.switch_fired and (lost or not store.has_heard_of(record.failed_at))
    ]
    if not (lost or entries):
        return
    try:
        store.rebuild(entries)
    except StorageError as error:
        log.warning("the quarantine is not on disk: %s", error)


def anchors(config: Config, trust: TrustStore) -> tuple[x509.Certificate, ...]:
    return load_anchors(trust.trust().issuance_ca_pems, config.ca_cert)


def publish_sections(services: Services, stores: Stores, logs: Logs) -> None:
    """Sections that are read anew each time somebody asks."""
    board = services.board
    board.publish("agent", {"version": __version__, "machine_id": services.config.machine_id, "pid": os.getpid()})
    board.publish("started_at", services.clock.now())
    board.provide("hold", stores.hold.current)
    board.provide("quarantine", partial(_in_quarantine, services, stores))
    board.provide("log_lines_lost", lambda: logs.lost)
    board.provide("current_closure", services.current)
    board.provide("trust_error", stores.trust.problem)


def _in_quarantine(services: Services, stores: Stores) -> tuple[quarantine.Entry, ...]:
    """Entries that have not run out."""
    now, hours = services.clock.now(), services.config.quarantine_hours
    return tuple(entry for entry in stores.quarantine.entries() if now < entry.until(hours))


def reload_parts(services: Services, stores: Stores, links: Links) -> tuple[Callable[[], object], ...]:
    """What SIGHUP reads again, each by itself: the probes' declarations, the trust file and the certificate.

    Each may raise an AgentError: the old certificate stays in use; an invalid trust file fails closed.
    """
    return partial(_reload_health_checks, services), stores.trust.trust, links.credentials.reload


def _reload_health_checks(services: Services) -> None:
    if not services.inputs.put_latest(HealthChecksReload()):
        log.warning("the agent has no room for another input: health checks are not read again; ask once more later")
