"""What runners are given beside a declaration: the clock, the order to stop, and what outlives a single run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nixfleet_agent.config.model import Config
from nixfleet_agent.net.resolver import Resolver
from nixfleet_agent.probes.runners.children import Unreaped
from nixfleet_agent.probes.runners.evidence_file import EvidenceReader
from nixfleet_agent.threads.cancel import CancelToken
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.threads import SYSTEM_THREADS, Threads

if TYPE_CHECKING:
    from ssl import SSLContext


class TlsDefaults:
    """The system's trusted authorities, loaded when the first https probe runs: 20 ms and, with `ssl`, 5 MB."""

    def __init__(self, make: Callable[[], SSLContext] | None = None) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._context: SSLContext | None = None

    def context(self) -> SSLContext:
        """The one client context that all probes share (raises OSError when the authorities can't be read)."""
        from nixfleet_agent.probes.runners.tls_sockets import for_probes, system_trust

        with self._lock:
            if self._context is None:
                self._context = for_probes((self._make or system_trust)())
            return self._context


@dataclass(frozen=True, slots=True)
class RunnerContext:
    """Shared by all probes of one host; ``cancel`` alone belongs to one set of them."""

    clock: Clock
    cancel: CancelToken
    evidence: EvidenceReader
    threads: Threads = SYSTEM_THREADS
    resolver: Resolver = field(default_factory=Resolver)
    unreaped: Unreaped = field(default_factory=Unreaped)
    tls: TlsDefaults = field(default_factory=TlsDefaults)

    def for_new_set(self) -> RunnerContext:
        """The same with an order to stop of its own; trusted authorities are read anew, a release may bring others."""
        return replace(self, cancel=CancelToken(), tls=TlsDefaults())


def make_context(config: Config, clock: Clock, threads: Threads = SYSTEM_THREADS) -> RunnerContext:
    """A context for the host that ``config`` describes."""
    return RunnerContext(clock, CancelToken(), EvidenceReader(config.machine_id, config.ssh_host_key_file), threads)
