"""The local control plane as one object: made in a folder, started, reached at ``url``, stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from nixfleet_agent import durable
from nixfleet_agent.errors import ConfigError
from nixfleet_agent.local_cp.api import Api
from nixfleet_agent.local_cp.ca import CA_FILE, CertificateAuthority
from nixfleet_agent.local_cp.catalogue import Catalogue
from nixfleet_agent.local_cp.control import ControlPlane
from nixfleet_agent.local_cp.dispatcher import Options
from nixfleet_agent.local_cp.faults import Faults
from nixfleet_agent.local_cp.happenings import Notification
from nixfleet_agent.local_cp.identity_api import Registrar
from nixfleet_agent.local_cp.neighbours import MOST_ASKED, Neighbours
from nixfleet_agent.local_cp.server import HttpsServer, tls_context
from nixfleet_agent.threads.clock import Clock

CERTIFICATE_LIFETIME = timedelta(days=30)
HOST = "127.0.0.1"
DATABASE_FILE = "cp.sqlite"
PUBLISHED = "published"


class LocalControlPlane:
    """``folder`` holds the database, the certificates and ``published/``, which is what CI writes to.

    Args:
        org_root: the raw public key that bootstrap tokens are signed with.
        port: 0 takes a free one.
        watcher: called from request threads for each thing that happens; must be quick.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        org_root: bytes,
        *,
        port: int = 0,
        options: Options | None = None,
        watcher: Callable[[Notification], None] | None = None,
        certificate_lifetime: timedelta = CERTIFICATE_LIFETIME,
    ) -> None:
        durable.make_directory(folder)
        self.folder = folder
        self.faults = Faults()
        self.authority = CertificateAuthority.open(folder, clock.now())
        self.ca_file = folder / CA_FILE
        certificate, key = self.authority.server(("localhost", HOST), clock.now(), folder)
        context = tls_context(certificate, key, self.ca_file)
        catalogue = Catalogue(folder / PUBLISHED)
        self.control = ControlPlane(folder / DATABASE_FILE, catalogue, clock, self.faults, options, watcher)
        self.registrar = Registrar(
            self.control.store,
            catalogue,
            self.authority,
            org_root,
            certificate_lifetime,
            clock,
            self.control.waiters.wake,
        )
        self.api = Api(self.control, self.registrar, clock, strict=options is not None and options.strict)
        try:
            self.server = HttpsServer((HOST, port), context, self.api.answer, self.faults)
        except OSError as error:
            self.control.store.close()
            raise ConfigError(f"can't listen on {HOST}:{port}: {error.strerror or error}: free it or use 0") from error
        self._neighbours = None
        if options is not None and options.hosts is not None:
            self._neighbours = Neighbours(options.hosts, lambda: self.control.store.under_way(MOST_ASKED), clock)
            self.control.own_words = self._neighbours.words
        self._dispatcher = threading.Thread(target=self.control.dispatcher.run, name="local-cp-dispatcher")

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.server.port}"

    def start(self) -> None:
        """Serve and plan, in threads of this process."""
        self.server.start()
        self._dispatcher.start()
        if self._neighbours is not None:
            self._neighbours.start()

    def stop(self) -> None:
        """End every thread and connection."""
        if self._neighbours is not None:
            self._neighbours.stop()
        self.control.stop()
        self.server.stop()
        self._dispatcher.join()
        self.control.store.close()

    def partition(self, on: bool) -> None:
        """Cut the control plane off from its fleet, or join it again."""
        self.faults.partition = on
        if on:
            self.server.cut()
