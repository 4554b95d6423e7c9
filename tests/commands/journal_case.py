"""A host with a journal, for the commands that show it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nixfleet_agent.telemetry.status_socket import Handler, StatusSocketWorker
from nixfleet_agent.threads.clock import SystemClock
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.commands.host_case import HostCase

ROLLOUT = "stable@abc123"


class Case(HostCase):
    @contextmanager
    def agent(self, handlers: dict[str, Handler]) -> Iterator[None]:
        """Something that answers at the socket as the running agent does."""
        clock = SystemClock()
        shutdown = ShutdownToken(clock)
        worker = StatusSocketWorker(shutdown, clock, self.state, handlers)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            self.assertTrue(worker.listening.wait(30))
            yield
        finally:
            shutdown.set()
            thread.join(30)

    def names(self, folder: str) -> list[str]:
        path = self.state / folder
        return sorted(child.name for child in path.rglob("*.json")) if path.exists() else []

    def rejected(self) -> Path:
        """An event that the control plane refused."""
        accepted = self.accept(ROLLOUT)
        self.log(accepted, *self.activated(accepted)[:2], delivered=False)
        journal = self.journal()
        path = journal.first(ROLLOUT)
        assert path is not None
        journal.reject(ROLLOUT, path, 422, b"odd\x1b[2J", self.now)
        return path
