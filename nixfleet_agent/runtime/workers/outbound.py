"""Outbound worker: posts the journal's events to the control plane, per rollout strictly by seq, and loses none."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from nixfleet_agent.errors import ProtoError, StorageError, TransportError, TrustError
from nixfleet_agent.journal import chain
from nixfleet_agent.journal.delivery import BLOCKED_LIMIT, REFUSALS, Disposition, disposition
from nixfleet_agent.journal.entries import DAMAGED, Entry, decode, read_raw
from nixfleet_agent.net.answers import Answer, retry_after
from nixfleet_agent.net.failures import ForeignAnswerError
from nixfleet_agent.net.verdict import Verdict
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.threads.backoff import Backoff
from nixfleet_agent.threads.timers import Timer
from nixfleet_agent.threads.worker import Worker
from nixfleet_agent.trouble import Trouble

#: Seconds that one POST may take, all of it.
POST_DEADLINE = 10.0
#: Longest without a sign of life while one event is read, sent and moved on a slow disk, in seconds.
LONGEST_POST = 60.0
#: How long nothing is sent after a 426, in seconds: the other side speaks another protocol until somebody acts.
MISMATCH_PAUSE = 300.0
#: Where a door or an identity is wrong, waits grow to this many times ``backoff_max``.
LONG_BACKOFF = 5.0
#: How many events behind one that is refused without the control plane's word are tried, to see whether others pass.
LOOK_BEHIND = 8
EVENTS = "/v1/agent/events"


@dataclass(slots=True)
class RolloutQueue:
    """One rollout's way out: its backoff, and when (monotonic seconds) it may be tried again.

    ``refused`` is the event that was answered with 409 or as one that can't be taken, which of both, and since when;
    ``blocked`` the one that something before the control plane refuses.
    """

    trouble: Trouble
    backoff: Backoff
    long_backoff: Backoff
    not_before: float = 0.0
    refused: tuple[str, bool, float] | None = None
    blocked: tuple[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """An event that was refused, and not by the control plane for all that is known."""

    path: Path
    kind: str
    status: int
    said: str


def envelope(entry: Entry, sign: Callable[[dict[str, object]], str | None]) -> bytes:
    """The body of an event's POST, with the host's signatures where its key can be read.

    ``signature`` is over the event alone, ``chainSignature`` over the host, the rollout and what the event follows too.

    Raises:
        TrustError: the event has no canonical form.
    """
    body: dict[str, object] = {"hostname": entry.hostname, "rolloutId": entry.rollout_id, "event": entry.event}
    signature = sign(dict(entry.event))
    if signature is not None:
        body["signature"] = signature
    if entry.previous is not None:
        chained = sign(chain.statement(entry.hostname, entry.rollout_id, entry.event, entry.previous))
        if chained is not None:
            body |= {"previous": entry.previous, "chainSignature": chained}
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
        self._rng = services.platform.rng
        self._timer = Timer(tuning.drain_interval, services.clock, services.shutdown)
        self._lanes: dict[str, RolloutQueue] = {}
        self._gate = Gate()
        self._at_once = threading.Event()

    def kick(self) -> None:
        """There is something new to send."""
        self._timer.kick()

    def retry_now(self) -> None:
        """Try what waits at once, whatever it was told to wait for: an operator asks (from any thread)."""
        self._at_once.set()
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
        if self._at_once.is_set():
            self._at_once.clear()
            self._gate.until = 0.0
            for lane in self._lanes.values():
                lane.not_before = 0.0
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
        if path is not None and lane.refused is not None and lane.refused[0] != path.name:
            # A replay has put what the refused one lacks before it: the wait was that one's.
            lane.refused, lane.not_before = None, 0.0
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
        trouble = Trouble(self.log, "event delivery delayed", "events are delivered again")
        short = Backoff(initial, maximum, self._rng())
        return RolloutQueue(trouble, short, Backoff(maximum, maximum * LONG_BACKOFF, self._rng()))

    def _send(self, rollout_id: str, lane: RolloutQueue, path: Path) -> None:
        read = self._read(rollout_id, path)
        if read is None:
            return
        entry, body = read
        now = self.clock.now()
        try:
            answer = self._post(body)
        except ForeignAnswerError as error:
            self._blocked(rollout_id, lane, Block(path, entry.kind, error.status, error.told))
        except TransportError as error:
            if self.shutdown.is_set:
                return
            if error.kind == "reset" and self._is_alone(rollout_id, lane, Block(path, entry.kind, 0, str(error))):
                return
            self._later(rollout_id, lane, str(error), lane.backoff.next(), label=error.kind)
        else:
            self._judge(rollout_id, lane, path, entry.kind, answer, now)

    def _read(self, rollout_id: str, path: Path) -> tuple[Entry, bytes] | None:
        """The event in a file and the body of its POST; None where it can't be sent and is out of the way now.

        Raises:
            OSError: the machine is short of something.
            StorageError: it can't be set aside.
        """
        try:
            entry = decode(read_raw(path))
            body = envelope(entry, self._sign)
        except FileNotFoundError:
            self._journal.vanished(rollout_id, path)
        except OSError as error:
            # Out of file descriptors or of memory says nothing about the file.
            if error.errno not in DAMAGED:
                raise
            self._journal.set_aside(path, str(error))
        except (ProtoError, TrustError) as error:
            # Damaged, or it holds what has no canonical form and can't be signed: nothing that is written here.
            self._journal.set_aside(path, str(error))
        else:
            return entry, body
        return None

    def _post(self, body: bytes) -> Answer:
        return self._control_plane.post_bytes(EVENTS, body, deadline=POST_DEADLINE)

    def _judge(self, rollout_id: str, lane: RolloutQueue, path: Path, kind: str, answer: Answer, now: datetime) -> None:
        monotonic = self.clock.monotonic()
        conflict = answer.status == 409
        if not conflict and answer.status not in REFUSALS:
            lane.refused = None
        elif lane.refused is None or lane.refused[:2] != (path.name, conflict):
            lane.refused = (path.name, conflict, monotonic)
        refused_for = 0.0 if lane.refused is None else monotonic - lane.refused[2]
        label, said = f"status {answer.status}", answer.told()
        match self._disposition(rollout_id, kind, answer, refused_for):
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
            case Disposition.BLOCKED:
                self._blocked(rollout_id, lane, Block(path, kind, answer.status, said))

    def _disposition(self, rollout_id: str, kind: str, answer: Answer, refused_for: float = 0.0) -> Disposition:
        own = answer.verdict is Verdict.ERROR
        over = self._board.is_over(rollout_id)
        return disposition(answer.status, own_error=own, refused_for=refused_for, kind=kind, over=over)

    # -- refused, and not by the control plane ------------------------------------------------

    def _blocked(self, rollout_id: str, lane: RolloutQueue, block: Block) -> None:
        """Keep the event; once it was refused for long, it goes out of the way of those that pass."""
        if not self._is_alone(rollout_id, lane, block):
            wait = lane.long_backoff.next()
            self._later(rollout_id, lane, block.said, wait, label=f"status {block.status}", error=True)

    def _is_alone(self, rollout_id: str, lane: RolloutQueue, block: Block) -> bool:
        """Whether this event was set aside: refused for long, just now again, while one behind it passes.

        A firewall that dislikes one body would hold up its rollout for ever; a door that is shut to all must cost no
        event. Only a try tells them apart.
        """
        since = lane.blocked[1] if lane.blocked and lane.blocked[0] == block.path.name else self.clock.monotonic()
        lane.blocked = (block.path.name, since)
        blocked_for = self.clock.monotonic() - since
        return blocked_for >= BLOCKED_LIMIT and self._look_behind(rollout_id, lane, block)

    def _look_behind(self, rollout_id: str, lane: RolloutQueue, block: Block) -> bool:
        blocks = [block]
        for path in self._journal.behind(rollout_id, block.path)[:LOOK_BEHIND]:
            self.alive()
            read = None if self.shutdown.is_set else self._read(rollout_id, path)
            if read is None:
                return False
            (entry, body), now = read, self.clock.now()
            try:
                answer = self._post(body)
            except ForeignAnswerError as error:
                blocks.append(Block(path, entry.kind, error.status, error.told))
                continue
            except TransportError:
                return False
            meaning = self._disposition(rollout_id, entry.kind, answer)
            if meaning is Disposition.BLOCKED:
                blocks.append(Block(path, entry.kind, answer.status, answer.told()))
                continue
            if meaning not in (Disposition.DELIVERED, Disposition.REFUSED):
                return False
            for refused in blocks:
                self._set_aside(rollout_id, refused, now)
            self._judge(rollout_id, lane, path, entry.kind, answer, now)
            return True
        return False

    def _set_aside(self, rollout_id: str, block: Block, now: datetime) -> None:
        self.log.error(
            "an event was set aside: for %d minutes something before the control plane has refused it, and lets"
            " others pass: %s",
            BLOCKED_LIMIT // 60,
            block.said,
            extra={"rollout_id": rollout_id},
        )
        self._journal.reject(rollout_id, block.path, block.status, block.said.encode(), now)
        self._board.count("events_rejected", kind=block.kind)

    def _later(
        self, rollout_id: str, lane: RolloutQueue, trouble: str, seconds: float, *, label: str = "", error: bool = False
    ) -> None:
        """Try this rollout again after ``seconds``; ``label`` tells one reason from another."""
        lane.not_before = self.clock.monotonic() + seconds
        level = logging.ERROR if error else logging.WARNING
        lane.trouble.failed(trouble, label, level=level, fields={"rollout_id": rollout_id})

    def _well_again(self, rollout_id: str, lane: RolloutQueue) -> None:
        lane.trouble.over(fields={"rollout_id": rollout_id})
        lane.blocked = None
        lane.backoff.reset()
        lane.long_backoff.reset()

    def _publish(self) -> None:
        queued, rejected = self._journal.counts()
        trouble = {rollout: lane.trouble.reason for rollout, lane in self._lanes.items() if lane.trouble.reason}
        self._board.publish(
            "queue",
            {"queued": queued, "rejected": rejected, "oldest": self._journal.oldest_queued(), "trouble": trouble},
        )
