"""A long poll against a real server."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from nixfleet_agent.config.model import TuningConfig
from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.proto.times import format_time
from nixfleet_agent.runtime.dispatch.check import Gates
from nixfleet_agent.runtime.rollout.input_queue import InputQueue
from nixfleet_agent.runtime.rollout.inputs import Activate, Answer, ReplayRequested
from nixfleet_agent.runtime.workers.longpoll import LongPollWorker
from nixfleet_agent.threads.shutdown import ShutdownToken
from tests.artifacts.release_base import ReleaseTestCase, target
from tests.runtime.harness import until
from tests.runtime.parts import services
from tests.support.behaviours import Reply, Request
from tests.support.signing import Release, closure_name

PATH = "/v1/agent/dispatch"


RUNNING = closure_name("running")


class Longest(random.Random):
    """Full jitter without the jitter: always the longest wait."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


class Token(ShutdownToken):
    """Shows its event, on which the worker waits when it is at rest; for the reducer it waits on one of its own."""

    @property
    def event(self) -> threading.Event:
        return self._set


class LongPollTestCase(ReleaseTestCase):
    """A server that answers every poll at once, and a reducer that says what the test has put in ``answers``."""

    def setUp(self) -> None:
        super().setUp()
        self.config = self.configure(tuning=TuningConfig(backoff_initial=2.0, backoff_max=8.0))
        self.bodies: list[bytes | Reply] = []
        self.server.route("GET", PATH, handler=self._next_body)
        self.answers: list[tuple[Answer, str]] = []
        self.accepted: list[Acceptance] = []
        self.replays: list[ReplayRequested] = []
        self.until: list[float] = []
        self.hold: str | None = None
        self.window: str | None = None
        self.told_accepted: list[str] = []
        self.quarantine: str | None = None
        self.known: set[str] = set()
        self.read_current: Callable[[], str] = lambda: RUNNING
        self.shutdown = Token(self.clock)
        self.inputs = InputQueue(self.shutdown)
        self.on_activate: Callable[[], object] = lambda: None
        self.threads: list[threading.Thread] = []
        self.addCleanup(self.stop)
        self._start(self._reduce)
        self.worker = self.new_worker()

    def new_worker(self) -> LongPollWorker:
        gates = Gates(
            knows=lambda rollout_id: rollout_id in self.known,
            hold=lambda: self.hold,
            quarantined=lambda channel, closure: self.quarantine,
            read_current=lambda: self.read_current(),
            window=lambda: self.window,
            accepted=self.told_accepted.append,
        )
        parts = services(
            config=self.config,
            shutdown=self.shutdown,
            clock=self.clock,
            inputs=self.inputs,
            control_plane=self.control_plane,
            cache=self.cache,
            board=self.board,
        )
        return LongPollWorker(parts, gates, Longest())

    def _start(self, body: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=body)
        thread.start()
        self.threads.append(thread)
        return thread

    def _reduce(self) -> None:
        shutdown, inputs = self.shutdown, self.inputs
        while not shutdown.is_set:
            item = inputs.get(0.02)
            if isinstance(item, Activate):
                self.on_activate()
                self.until.append(item.until)
                answer, reason = self.answers.pop(0) if self.answers else (Answer.ACCEPTED, "")
                if answer is Answer.ACCEPTED:
                    self.accepted.append(item.acceptance)
                    self.known.add(item.acceptance.rollout_id)
                item.ack.reply(answer, reason)
            elif isinstance(item, ReplayRequested):
                self.replays.append(item)

    def _next_body(self, request: Request) -> Reply:
        body = self.bodies.pop(0) if self.bodies else Reply(204)
        return body if isinstance(body, Reply) else Reply(200, body)

    def stop(self) -> None:
        self.shutdown.set()
        self.control_plane.abort()
        for thread in self.threads:
            thread.join(30)
            self.assertFalse(thread.is_alive())

    def dispatch(self, release: Release, **changes: Any) -> bytes:
        body = {
            "hostname": "web-01",
            "rollout_id": release.rollout_id("stable"),
            "target_closure": target(release),
            "soak_due_at": format_time(self.clock.now() + timedelta(minutes=3)),
            "enqueued_at": format_time(self.clock.now()),
        }
        return json.dumps({**body, **changes}).encode()

    def run_worker(self, *bodies: bytes | Reply) -> None:
        """Start the worker, with these as the first answers, and let it come to rest after the first."""
        self.bodies += bodies
        self._start(self.worker.run)
        self.rest()

    def rest(self) -> None:
        """Until the worker sleeps, and not for the reducer's answer."""
        self.clock.until_waiting(on=self.shutdown.event)

    def seconds(self, count: int) -> None:
        """Let ``count`` seconds go by, the worker coming to rest after each."""
        for _ in range(count):
            self.clock.advance(1)
            self.rest()

    def until_asked(self, path: str) -> None:
        """Until the server has a request for ``path`` (which it may never answer)."""
        until(lambda: bool(self.asked(path)), f"a request for {path}")

    def waits(self) -> list[str]:
        """The ``wait`` of each poll so far."""
        return [request.query["wait"][0] for request in self.asked(PATH)]

    def pending(self) -> Any:
        """What is on disk as pending, None when nothing is."""
        path = self.state_dir / "pending-dispatch.json"
        return json.loads(path.read_bytes()) if path.exists() else None

    def refusals(self) -> list[tuple[str, str]]:
        """Outcome and label of what the status board shows."""
        return [(entry["outcome"], entry["label"]) for entry in self.board.snapshot().get("refusals", [])]

    def counted(self, name: str) -> dict[str, int]:
        return {next(iter(labels))[1]: n for (counter, labels), n in self.board.counters().items() if counter == name}
