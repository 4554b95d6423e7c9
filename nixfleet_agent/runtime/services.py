"""What the parts of the running agent share: configuration, time, stores, identity, the way to the control plane."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cryptography import x509

from nixfleet_agent.activation.context import child_environment
from nixfleet_agent.activation.host import read_current
from nixfleet_agent.artifacts.cache import ManifestCache
from nixfleet_agent.artifacts.trust_store import TrustStore
from nixfleet_agent.config.model import Config
from nixfleet_agent.config.ownership import require_safe
from nixfleet_agent.errors import IdentityError, StorageError
from nixfleet_agent.hooks.runner import HookRunner
from nixfleet_agent.hooks.veto import Veto
from nixfleet_agent.identity.anchors import load_anchors
from nixfleet_agent.identity.credentials import Credentials
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.journal.reserve import Reserve
from nixfleet_agent.net.client import ControlPlane, Observer
from nixfleet_agent.net.sockets import Route
from nixfleet_agent.operator import quarantine
from nixfleet_agent.operator.hold import HoldStore
from nixfleet_agent.operator.maintenance import MaintenanceGate
from nixfleet_agent.operator.rollback_control import RollbackControl
from nixfleet_agent.operator.run_now import RunNowStore
from nixfleet_agent.prefetch.handover import Handover
from nixfleet_agent.proto.ids import channel_of
from nixfleet_agent.runtime.platform import Platform
from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.rollout.inputs import HealthChecksReload
from nixfleet_agent.runtime.rollout.orders import ActivationOrder, ProbeOrder, outranks
from nixfleet_agent.runtime.swap_in import on_first_start
from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.threads.backoff import Backoff
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.mailbox import Mailbox
from nixfleet_agent.threads.shutdown import ShutdownToken

log = logging.getLogger("nixfleet_agent.services")


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """One of each, built once; a part takes what it needs of it in its constructor.

    ``inputs`` leads to the reducer; ``activation`` and ``probes`` lead from it to the workers of these names.
    ``prefetch`` is between the workers that fetch before and at a turn. ``read_current`` reads the closure that runs
    now, None when it can't be read.
    """

    config: Config
    platform: Platform
    clock: Clock
    shutdown: ShutdownToken
    board: StatusBoard
    inputs: InputQueue
    activation: Mailbox[ActivationOrder]
    probes: Mailbox[ProbeOrder]
    read_current: Callable[[], str | None]
    journal: Journal
    reserve: Reserve
    trust: TrustStore
    quarantine: quarantine.QuarantineStore
    hold: HoldStore
    rollback: RollbackControl
    prefetch: Handover
    maintenance: MaintenanceGate
    credentials: Credentials
    control_plane: ControlPlane
    cache: ManifestCache

    def backoff(self) -> Backoff:
        """A new one, as configured."""
        return Backoff(self.config.tuning.backoff_initial, self.config.tuning.backoff_max, self.platform.rng())

    def hook_runner(self) -> HookRunner:
        """Runs hooks in the environment of the agent's other children."""
        environment = child_environment(os.environ, self.config.activation.store_root)
        return HookRunner(self.clock, self.config.hooks.timeout_secs, environment, self.platform.machine.run)

    def veto(self) -> Veto:
        """What a switch is asked of before it is fired."""
        return Veto(self.config.hooks.folder, self.hook_runner())

    def anchors(self) -> tuple[x509.Certificate, ...]:
        """The issuers that a certificate of this host may come from; raises TrustError, IdentityError."""
        return load_anchors(self.trust.trust().issuance_ca_pems, self.config.ca_cert)

    def quarantine_closure(self, rollout_id: str, closure: str, reason: str) -> None:
        """``closure`` failed here: its channel may not bring it again for the configured hours."""
        if self.config.quarantine_hours == 0:
            return
        entry = quarantine.Entry(channel_of(rollout_id), closure, rollout_id, self.clock.now(), reason)
        try:
            self.quarantine.add(entry)
        except StorageError as error:
            log.warning("a failed closure is not in quarantine: %s", error, extra={"closure": closure})

    def reload(self) -> tuple[Callable[[], object], ...]:
        """What SIGHUP reads again, each by itself: the probes' declarations, the trust file and the certificate.

        Each may raise an AgentError: the old certificate stays in use; an invalid trust file fails closed.
        """
        return self._reload_health_checks, self.trust.trust, self._reload_certificate

    def _reload_certificate(self) -> None:
        require_safe((self.config.client_cert, self.config.client_key))
        self.credentials.reload()

    def _reload_health_checks(self) -> None:
        require_safe((self.config.health_checks_file,))
        if not self.inputs.put_latest(HealthChecksReload()):
            log.warning("the agent has no room for another input: health checks are not read again; ask once more")


def open_services(config: Config, platform: Platform, board: StatusBoard, observer: Observer) -> Services:
    """Build all of it, and open what is on disk.

    Raises:
        TrustFileError: there is nothing to verify against, and so no point in starting.
        StorageError: the state directory can't be written.
    """
    clock, threads = platform.clock, platform.threads
    shutdown = ShutdownToken(clock)
    credentials = Credentials(config.client_cert, config.client_key)
    control_plane = _control_plane(config, platform, credentials, observer)
    trust = TrustStore(config, threads)
    services = Services(
        config=config,
        platform=platform,
        clock=clock,
        shutdown=shutdown,
        board=board,
        inputs=InputQueue(shutdown, threads=threads),
        activation=Mailbox(clock, shutdown, outranks),
        probes=Mailbox(clock, shutdown),
        read_current=partial(read_current, config.activation),
        journal=Journal(config.state_dir, config.machine_id),
        reserve=Reserve(config.state_dir),
        trust=trust,
        quarantine=quarantine.QuarantineStore(config.state_dir, threads),
        hold=HoldStore(config.state_dir, clock),
        rollback=RollbackControl(config.state_dir),
        prefetch=Handover(shutdown),
        maintenance=MaintenanceGate(config.maintenance, RunNowStore(config.state_dir, clock), clock),
        credentials=credentials,
        control_plane=control_plane,
        cache=ManifestCache(config, control_plane, trust, clock, board, threads),
    )
    trust.trust()
    on_first_start(config)
    services.journal.open()
    services.reserve.ensure()
    _load_certificate(config, credentials)
    return services


def _control_plane(config: Config, platform: Platform, credentials: Credentials, observer: Observer) -> ControlPlane:
    return ControlPlane(
        config.control_plane_url,
        ca_cert=config.ca_cert,
        credentials=credentials,
        clock=platform.clock,
        observer=observer,
        route=Route.of(config),
        connect=platform.connect,
    )


def _load_certificate(config: Config, credentials: Credentials) -> None:
    try:
        credentials.reload()
    except IdentityError as error:
        # Not the end: the cert_renewal worker enrolls or waits, and what this host runs is still looked after.
        if config.bootstrap_token_file is not None and not config.client_cert.exists():
            log.info("no certificate yet: this host enrolls with its bootstrap token")
        else:
            log.warning("no usable certificate yet: %s", error)
