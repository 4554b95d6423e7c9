"""An outbound worker and a real server."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from nixfleet_agent.journal.entries import Entry, entry_of
from nixfleet_agent.journal.journal import Journal
from nixfleet_agent.runtime.workers.outbound import EVENTS, Outbound
from nixfleet_agent.telemetry.status import RolloutsView, StatusBoard
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.net.base import NetTestCase
from tests.runtime.harness import HOSTNAME
from tests.runtime.parts import services
from tests.state_machine.machine import T0, event
from tests.support.clock import FakeClock

R, S = "stable@aa", "edge@bb"


QUEUE, REJECTED = "outbound-queue", "outbound-rejected"


class Case(NetTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.number = 0
        self.server = self.serve()
        self.fresh()

    def fresh(self) -> None:
        """Another host on the same server."""
        self.number += 1
        self.state = self.folder / f"state-{self.number}"
        self.clock = FakeClock()
        self.shutdown = ShutdownToken(self.clock)
        self.board = StatusBoard()
        self.board.publish_rollouts(RolloutsView(active_id=R, active_open=True))
        self.server.requests.clear()
        self.control_plane = self.connect(self.server)
        self.journal = Journal(self.state, HOSTNAME)
        self.journal.open()
        self.worker = self.make()

    def make(self, sign: Callable[[dict[str, object]], str | None] = lambda event: None) -> Outbound:
        parts = services(
            shutdown=self.shutdown,
            clock=self.clock,
            journal=self.journal,
            control_plane=self.control_plane,
            board=self.board,
        )
        return Outbound(parts, sign)

    def fill(self, *seqs: int, rollout_id: str = R) -> None:
        self.journal.accept(
            Entry(seq=0, hostname=HOSTNAME, rollout_id=rollout_id, kind="Dispatch", created_at=T0, event={"kind": "x"})
        )
        for seq in seqs:
            self.journal.append(entry_of(event("ProbeResult", seq), HOSTNAME, rollout_id, T0))

    def answer(self, *behaviours: Any) -> None:
        self.server.route("POST", EVENTS, *behaviours)

    def names(self, folder: str) -> list[str]:
        return sorted(os.listdir(self.state / folder))

    def seqs(self, folder: str = QUEUE) -> list[int]:
        return [int(name[:20]) for name in self.names(folder)]

    def posted(self) -> list[tuple[str, int]]:
        bodies = [request.json() for request in self.server.requests]
        return [(body["rolloutId"], body["event"]["seq"]) for body in bodies]

    def trouble(self) -> dict[str, str]:
        queue: Any = self.board.get("queue")
        found: dict[str, str] = queue["trouble"]
        return found

    def wait_of(self, next_try: float | None) -> float:
        assert next_try is not None
        return next_try - self.clock.monotonic()
