"""Outbound worker: posts the journal's events to the control plane, per rollout strictly by seq, and loses none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from nixfleet_agent.errors import ProtoError, StorageError, TransportError, TrustError
from nixfleet_agent.journal.delivery import Disposition, disposition
from nixfleet_agent.journal.entries import DAMAGED, Entry, decode, read_raw
from nixfleet_agent.net.answers import Answer, retry_after
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.threads.backoff import Backoff
from nixfleet_agent.threads.timers import Timer
from nixfleet_agent.threads.worker import Worker

#: Seconds that one POST may take, all of it.
POST_DEADLINE = 10.0
#: Longest without a sign of life while one event is read, sent and moved on a slow disk, in seconds.
LONGEST_POST = 60.0
#: Largest answer that is read, in bytes.
ANSWER_LIMIT = 1 << 20
#: How long nothing is sent after a 426, in seconds: the other side speaks another protocol until somebody acts.
MISMATCH_PAUSE = 300.0
#: Where a door or an identity is wrong, waits grow to this many times ``backoff_max``.
LONG_BACKOFF = 5.0
EVENTS = "/v1/agent/events"


@dataclass(slots=True)
class RolloutQueue:
    """One rollout's way out: its backoff, and when (monotonic seconds) it may be tried again.

    ``conflict`` is the event that was answered with 409, and since when.
    """

    backoff: Backoff
    long_backoff: Backoff
    not_before: float = 0.0
    trouble: str = ""
    label: str = ""
    conflict: tuple[str, float] | None = None


def envelope(entry: Entry, sign: Callable[[dict[str, object]], str | None]) -> bytes:
    """The body of an event's POST, with the host's signature over the event where its key can be read.

    Raises:
        TrustError: the event has no canonical form.
    """
    body: dict[str, object] = {"hostname": entry.hostname, "rolloutId": entry.rollout_id, "event": entry.event}
    signature = sign(dict(entry.event))
    if signature is not None:
        body["signature"] = signature
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


@dataclass(slots=True)
class Gate:
    """Holds every lane back: set by an answer that is about the two programs and not about one event."""

    until: float = field(default=0.0)


class Outbound(Worker):
    """Drains when kicked and every ``interval`` seconds; one stuck rollout holds up no other."""

    name = "outbound"

    def __init__(self, services: Services, sign: Callable[[dict[str, object]], str | None]) -> None:
        super().__init__(services.shutdown, services.clock)
        tuning = services.config.tuning
        self.limit = max(self.limit, LONGEST_POST + 3 * tuning.drain_interval)
        self._journal = services.journal
        self._control_plane = services.control_plane
        self._sign = sign
        self._board = services.board
        self._backoff = (tuning.backoff_initial, tuning.backoff_max)
        self._timer = Timer(tuning.drain_interval, services.clock, services.shutdown)
        self._lanes: dict[str, RolloutQueue] = {}
        self._gate = Gate()

    def kick(self) -> None:
        """There is something new to send."""
        self._timer.kick()

    def run(self) -> None:
        """Empty what can be sent, then sleep until the next event, the next try or the next interval."""
        next_try = None
        while self._timer.wait(next_try):
            self.alive()
            next_try = self.drain()

    def drain(self) -> float | None:
        """Send all that can be sent now, rollouts in turn; when (monotonic seconds) a held-back one may be tried."""
        waiting = self._journal.waiting()
        self._lanes = {rollout_id: self._lanes.get(rollout_id) or self._new_lane() for rollout_id in waiting}
        ready = list(self._lanes)
        while ready and not self.shutdown.is_set:
            # One event of each in turn: ten thousand old events must not stand before a new rollout's first.
            ready = [rollout_id for rollout_id in ready if self._send_next(rollout_id, self._lanes[rollout_id])]
        self._publish()
        held = [
            max(lane.not_before, self._gate.until) for name, lane in self._lanes.items() if self._journal.first(name)
        ]
        return min(held, default=None)

    def _send_next(self, rollout_id: str, lane: RolloutQueue) -> bool:
        """Send the rollout's first event; False when it has none, or must wait."""
        self.alive()
        path = self._journal.first(rollout_id)
        if path is None or self.clock.monotonic() < max(lane.not_before, self._gate.until):
            return False
        try:
            self._send(rollout_id, lane, path)
        except (StorageError, OSError) as error:
            # Delivered or not, the file stays where it is: at worst the event is sent again.
            self._later(rollout_id, lane, str(error), lane.backoff.next())
        return True

    def _new_lane(self) -> RolloutQueue:
        initial, maximum = self._backoff
        return RolloutQueue(Backoff(initial, maximum), Backoff(maximum, maximum * LONG_BACKOFF))

    def _send(self, rollout_id: str, lane: RolloutQueue, path: Path) -> None:
        try:
            entry = decode(read_raw(path))
            body = envelope(entry, self._sign)
        except FileNotFoundError:
            self._journal.vanished(rollout_id, path)
            return
        except OSError as error:
            # Out of file descriptors or of memory says nothing about the file.
            if error.errno not in DAMAGED:
                raise
            self._journal.set_aside(path, str(error))
            return
        except (ProtoError, TrustError) as error:
            # Damaged, or it holds what has no canonical form and can't be signed: nothing that is written here.
            self._journal.set_aside(path, str(error))
            return
        now = self.clock.now()
        try:
            answer = self._control_plane.post_bytes(EVENTS, body, deadline=POST_DEADLINE, limit=ANSWER_LIMIT)
        except TransportError as error:
            if not self.shutdown.is_set:
                self._later(rollout_id, lane, str(error), lane.backoff.next(), label=error.kind)
            return
        self._judge(rollout_id, lane, path, entry.kind, answer, now)

    def _judge(self, rollout_id: str, lane: RolloutQueue, path: Path, kind: str, answer: Answer, now: datetime) -> None:
        monotonic = self.clock.monotonic()
        if answer.status != 409:
            lane.conflict = None
        elif lane.conflict is None or lane.conflict[0] != path.name:
            lane.conflict = (path.name, monotonic)
        conflict_for = 0.0 if lane.conflict is None else monotonic - lane.conflict[1]
        label = f"status {answer.status}"
        said = f"{label}: {answer.excerpt(200)}"
        match disposition(answer.status, conflict_for, self._board.is_over(rollout_id)):
            case Disposition.DELIVERED:
                self._journal.delivered(rollout_id, path)
                self._board.count("events_sent", kind=kind)
                self._well_again(rollout_id, lane)
            case Disposition.REFUSED:
                self.log.error("an event was refused and set aside: %s", said, extra={"rollout_id": rollout_id})
                self._journal.reject(rollout_id, path, answer.status, answer.body, now)
                self._board.count("events_rejected", kind=kind)
                self._well_again(rollout_id, lane)
            case Disposition.RETRY:
                wait = lane.backoff.next(at_least=retry_after(answer, now) or 0.0)
                self._later(rollout_id, lane, said, wait, label=label)
            case Disposition.MISMATCH:
                self._gate.until = monotonic + MISMATCH_PAUSE
                self.log.error("protocol mismatch, nothing is sent for %d s: %s", MISMATCH_PAUSE, said)
            case Disposition.MISROUTED:
                self._later(rollout_id, lane, said, lane.long_backoff.next(), label=label, error=True)

    def _later(
        self, rollout_id: str, lane: RolloutQueue, trouble: str, seconds: float, *, label: str = "", error: bool = False
    ) -> None:
        """Try this rollout again after ``seconds``; the first failure and each change of reason are said aloud.

        ``label`` tells one reason from another where the words differ at each try.
        """
        lane.not_before = self.clock.monotonic() + seconds
        known, lane.label = lane.label, label or trouble
        if lane.label != known:
            write_stdout = self.log.error if error else self.log.warning
            write_stdout("an event waits: %s", trouble, extra={"rollout_id": rollout_id})
        else:
            self.log.debug("an event still waits: %s", trouble, extra={"rollout_id": rollout_id})
        lane.trouble = trouble

    def _well_again(self, rollout_id: str, lane: RolloutQueue) -> None:
        if lane.trouble:
            self.log.info("events are delivered again", extra={"rollout_id": rollout_id})
        lane.trouble = lane.label = ""
        lane.backoff.reset()
        lane.long_backoff.reset()

    def _publish(self) -> None:
        queued, rejected = self._journal.counts()
        trouble = {rollout: lane.trouble for rollout, lane in self._lanes.items() if lane.trouble}
        self._board.publish(
            "queue",
            {"queued": queued, "rejected": rejected, "oldest": self._journal.oldest_queued(), "trouble": trouble},
        )
