"""What runners are given beside a declaration: the clock, the order to stop, and what outlives a single run."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import requests.utils

from nixfleet_agent.clock import Clock
from nixfleet_agent.config.model import Config
from nixfleet_agent.runtime.workers.probe_runners.cancel import Cancel
from nixfleet_agent.runtime.workers.probe_runners.children import Unreaped
from nixfleet_agent.runtime.workers.probe_runners.evidence_file import EvidenceReader
from nixfleet_agent.runtime.workers.probe_runners.sockets import Resolver, TlsSocket


class TlsDefaults:
    """The system's trusted authorities, loaded when the first https probe runs: they cost 20 ms and a megabyte."""

    def __init__(self, make: Callable[[], ssl.SSLContext] | None = None) -> None:
        self._make = make or _system_trust
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """The one client context that all probes share (raises OSError when the authorities can't be read)."""
        with self._lock:
            if self._context is None:
                context = self._make()
                context.sslsocket_class = TlsSocket
                self._context = context
            return self._context


def _system_trust() -> ssl.SSLContext:
    paths = ssl.get_default_verify_paths()
    if paths.cafile or paths.capath:
        return ssl.create_default_context()
    return ssl.create_default_context(cafile=requests.utils.DEFAULT_CA_BUNDLE_PATH)


@dataclass(frozen=True, slots=True)
class RunnerContext:
    """Shared by all probes of one host; ``cancel`` alone belongs to one set of them."""

    clock: Clock
    cancel: Cancel
    evidence: EvidenceReader
    resolver: Resolver = field(default_factory=Resolver)
    unreaped: Unreaped = field(default_factory=Unreaped)
    tls: TlsDefaults = field(default_factory=TlsDefaults)

    def for_new_set(self) -> RunnerContext:
        """The same with an order to stop of its own; trusted authorities are read anew, a release may bring others."""
        return replace(self, cancel=Cancel(), tls=TlsDefaults())


def make_context(config: Config, clock: Clock) -> RunnerContext:
    """A context for the host that ``config`` describes."""
    return RunnerContext(clock, Cancel(), EvidenceReader(config.machine_id, config.ssh_host_key_file))
