"""Heartbeat worker: tells the control plane that the host lives, what runs, and how far each rollout's log goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nixfleet_agent import __version__
from nixfleet_agent.errors import AgentError, ProtoError, TransportError
from nixfleet_agent.journal.header import Acceptance
from nixfleet_agent.net.answers import Answer, replay_from
from nixfleet_agent.proto.heartbeat import Heartbeat, Snapshot, snapshots
from nixfleet_agent.proto.strict_json import BODY_LIMIT, loads_strict
from nixfleet_agent.runtime.rollout.inputs import BootstrapHost, ReplayRequested
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.telemetry.status import SWITCHING
from nixfleet_agent.text import printable
from nixfleet_agent.threads.timers import Timer
from nixfleet_agent.threads.worker import Worker
from nixfleet_agent.trouble import Trouble

PATH = "/v1/agent/heartbeat"
#: Seconds that one heartbeat may take; the first carries the handshake and may take longer.
DEADLINE = 10.0
HANDSHAKE_DEADLINE = 30.0
#: Snapshots of one answer that are looked at: each may cost fetches, and a host has few rollouts that are not over.
SNAPSHOT_LIMIT = 16
#: Longest without a sign of life: a beat, or all that one snapshot rests on fetched by drops (450 s), with room.
LONGEST_TURN = 500.0


class HeartbeatWorker(Worker):
    """The first beat names no rollout, so that the control plane sends what it knows of this host.

    ``verify_snapshot`` fetches and verifies fleet and manifest of a rollout that this host has no log of; it returns
    None, or raises, when they do not name this host with exactly that target.
    """

    name = "heartbeat"

    def __init__(self, services: Services, verify_snapshot: Callable[[Snapshot], Acceptance | None]) -> None:
        super().__init__(services.shutdown, services.clock)
        self._interval = services.config.tuning.heartbeat_interval
        self.limit = LONGEST_TURN + 3 * self._interval
        self._inputs = services.inputs
        self._journal = services.journal
        self._control_plane = services.control_plane
        self._board = services.board
        self._read_current = services.read_current
        self._verify_snapshot = verify_snapshot
        self._backoff = services.backoff()
        self._started = services.clock.monotonic()
        self._first = True
        self._trouble = Trouble(self.log, "heartbeat failed", "heartbeats arrive again")

    def run(self) -> None:
        """One beat at once, then one each interval; sooner with backoff while the handshake has not come through."""
        timer = Timer(self._interval, self.clock, self.shutdown)
        again: float | None = None
        while timer.wait(again):
            self.alive()
            arrived = self.beat()
            again = None if arrived or not self._first else self.clock.monotonic() + self._backoff.next()

    def beat(self) -> bool:
        """Send one heartbeat and forward what the answer asks for; True when it was answered well."""
        request = self.compose()
        deadline = HANDSHAKE_DEADLINE if self._first else DEADLINE
        try:
            answer = self._control_plane.post(PATH, request.to_json(), deadline=deadline)
        except TransportError as error:
            self._trouble.failed(error)
            return False
        if answer.status != 200:
            self._trouble.failed(answer.told())
            return False
        self._trouble.over()
        self._backoff.reset()
        self._first = False
        self._replay(answer, request)
        if request.rollout_id is None:
            self._forward_snapshots(answer)
        return True

    def compose(self) -> Heartbeat:
        """What is true now. While our own switch runs, what the link shows is half a switch and is left out."""
        known = self._board.rollouts
        seqs = dict(known.reported)
        for rollout_id in self._journal.waiting():
            seqs[rollout_id] = max(self._journal.last_seq(rollout_id), seqs.get(rollout_id, 0))
        switching = self._board.read(SWITCHING)
        return Heartbeat(
            hostname=self._journal.hostname,
            at=self.clock.now(),
            agent_version=__version__,
            uptime_secs=int(self.clock.monotonic() - self._started),
            rollout_id=known.active_id if known.active_open and not self._first else None,
            current_closure=None if switching else self._read_current(),
            last_event_seq_by_rollout=seqs,
        )

    def _replay(self, answer: Answer, request: Heartbeat) -> None:
        seq = replay_from(answer)
        if seq is not None:
            named = (request.rollout_id,) if request.rollout_id else tuple(request.last_event_seq_by_rollout)
            self._inputs.put(ReplayRequested(named, seq), self.alive)

    def _forward_snapshots(self, answer: Answer) -> None:
        try:
            body = loads_strict(answer.body, limit=BODY_LIMIT, what="the heartbeat's answer")
        except ProtoError as error:
            self.log.warning("%s", error)
            return
        good, bad, more = snapshots(body if isinstance(body, Mapping) else None, SNAPSHOT_LIMIT)
        for wrong in bad:
            self.log.warning("a snapshot was ignored: %s", wrong)
        if more:
            self.log.warning("only the first %d snapshots of an answer are read: %d more", SNAPSHOT_LIMIT, more)
        for snapshot in good:
            self.alive()
            if snapshot.hostname != self._journal.hostname:
                self.log.warning("a snapshot of another host was ignored: %s", printable(snapshot.hostname))
                continue
            self._inputs.put(BootstrapHost(snapshot, self._verified(snapshot)), self.alive)

    def _verified(self, snapshot: Snapshot) -> Acceptance | None:
        # Only what runs here can be adopted: for anything else a hint must not cost requests.
        if not self._journal.may_adopt(snapshot.rollout_id) or snapshot.target_closure != self._read_current():
            return None
        try:
            return self._verify_snapshot(snapshot)
        except AgentError as error:
            self.log.info("a snapshot was not adopted: %s", error, extra={"rollout_id": snapshot.rollout_id})
            return None
