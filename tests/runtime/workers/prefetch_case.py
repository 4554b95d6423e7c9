"""The base of the prefetch worker's tests: the worker in its thread, over a host with real Nix and a cache."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from nixfleet_agent.config.model import Config, PrefetchConfig
from nixfleet_agent.errors import AgentError
from nixfleet_agent.operator.hold import HoldStore
from nixfleet_agent.operator.quarantine import QuarantineStore
from nixfleet_agent.prefetch.decision import State
from nixfleet_agent.prefetch.handover import Handover
from nixfleet_agent.prefetch.status import NextStatus
from nixfleet_agent.runtime.release import RELEASE, SignedRelease
from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.workers.prefetch import NEXT, PrefetchWorker
from nixfleet_agent.state_machine import Policy
from nixfleet_agent.telemetry.status import StatusBoard
from nixfleet_agent.threads.backoff import Backoff
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.activation.case import PATIENCE_SECS, PipelineCase, processes_of, until
from tests.runtime.parts import services
from tests.support.clock import EPOCH

NEXT_ROLLOUT = "stable@bb"


class Known:
    """The manifest cache, as far as the worker asks it: what CI signed is good unless ``refusal`` is set."""

    def __init__(self) -> None:
        self.refusal: AgentError | None = None

    def known_terms(self, rollout_id: str, hostname: str, target_closure: str) -> Any:
        if self.refusal is not None:
            raise self.refusal
        return SimpleNamespace(resolved=SimpleNamespace(policy=Policy.ROLLBACK_AND_HALT))


class PrefetchCase(PipelineCase):
    """``self.host`` runs ``self.v1``; ``announce`` is what the manifest poll does."""

    settings = PrefetchConfig(spread_secs=0, min_free=0)

    def setUp(self) -> None:
        super().setUp()
        self.nixery.server.requests.clear()
        self.addCleanup(self._quiet_server)
        self.enterContext(mock.patch.dict(os.environ, self.host.environment))
        self.board = StatusBoard()
        self.known = Known()
        self.backoff = Backoff(0.05, 0.2)
        self.ran_here: set[str] = set()
        self.hold = HoldStore(self.host.state_dir, self.clock)
        self.quarantine = QuarantineStore(self.host.state_dir)
        self.worker_thread: threading.Thread | None = None
        self.addCleanup(self.stop)
        self.begin()

    def _quiet_server(self) -> None:
        server = self.nixery.server
        server.drip = server.stall_after = server.cut_after = None
        server.endless, server.status = False, lambda path: None

    def begin(self, **changes: Any) -> None:
        """A new worker, as after a start of the agent; its thread is not started yet."""
        self.settings = replace(self.settings, **changes)
        self.shutdown = ShutdownToken(self.clock)
        self.handover = Handover(self.shutdown)
        self.inputs = InputQueue(self.shutdown)
        self.running_download = self.handover.take_over
        config = Config(
            control_plane_url="https://cp.invalid",
            machine_id="web-01",
            state_dir=self.host.state_dir,
            activation=self.host.activation,
            prefetch=self.settings,
        )
        self.worker = PrefetchWorker(
            services(
                config=config,
                clock=self.clock,
                shutdown=self.shutdown,
                board=self.board,
                inputs=self.inputs,
                prefetch=self.handover,
                cache=self.known,
                hold=self.hold,
                quarantine=self.quarantine,
                journal=SimpleNamespace(knows=lambda rollout_id: rollout_id in self.ran_here),
                read_current=self.host.running,
            ),
            rng=random.Random(17),
            backoff=self.backoff,
        )

    def start(self) -> None:
        self.worker_thread = threading.Thread(target=self.worker.run, name="prefetch")
        self.worker_thread.start()

    def stop(self) -> None:
        """End the process; the files stay."""
        self.shutdown.set()
        if self.worker_thread is not None:
            self.worker_thread.join(PATIENCE_SECS)
            self.assertFalse(self.worker_thread.is_alive(), "the worker does not end")
            self.worker_thread = None
            self.assertIsNone(self.inputs.get(0.0), "no rollout hears of it")

    def restart(self, **changes: Any) -> None:
        self.stop()
        self.begin(**changes)
        self.start()

    def announce(self, closure: str | None, rollout_id: str = NEXT_ROLLOUT) -> None:
        """CI signed that closure for this host."""
        at = EPOCH + timedelta(seconds=1)
        self.board.publish(RELEASE, None if closure is None else SignedRelease(rollout_id, closure, at, at))
        self.handover.announce()

    # -- what came of it ----------------------------------------------------------------------

    @property
    def status(self) -> NextStatus | None:
        return self.board.read(NEXT)

    @property
    def root(self) -> Path:
        return self.host.state_dir / "gcroots" / "next"

    def held(self) -> str | None:
        return self.root.readlink().name if self.root.is_symlink() else None

    def nars(self) -> list[str]:
        """The downloads that the cache was asked for."""
        return [path for path in self.nixery.server.requests if path.startswith("/nar/")]

    def until_state(self, state: State, closure: str | None = None) -> NextStatus:
        def there() -> NextStatus | None:
            now = self.status
            fits = now is not None and now.state is state and closure in (None, now.target_closure)
            return now if fits else None

        found: NextStatus = until(there, f"{state}; it is {self.status}")
        return found

    def until_asleep(self) -> None:
        """The worker has seen all that was announced, and has nothing to do."""
        until(lambda: self.seen() and self.worker.limit == float("inf"), "the worker sleeps until something changes")

    def seen(self) -> bool:
        """Whether the worker has woken since the last announcement; asked before what it came to."""
        return not self.handover.changed.is_set()

    def nix_processes(self) -> dict[int, str]:
        """The downloads that run: process id and command line."""
        return {pid: line for pid, line in processes_of(self.host.root).items() if "--realise" in line}

    def big(self, name: str, size: int = 400_000) -> str:
        """A system of one large path."""
        return self.nixery.system(name, files={"big": name[0] * size})

    def waits_for(self, condition: Callable[[], Any], what: str) -> Any:
        return until(condition, what)
