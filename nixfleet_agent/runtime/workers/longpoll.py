"""Long poll worker: waits for "it is your turn", and hands the reducer only what CI signed for this host.

A Dispatch goes to disk at once, while its artifacts are fetched, and stays there until it is decided. It is verified
from the start at each try; between tries the long poll goes on with a short wait.
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from nixfleet_agent.errors import ProtoError, StorageError, TransportError
from nixfleet_agent.net.answers import Answer as HttpAnswer
from nixfleet_agent.net.answers import retry_after
from nixfleet_agent.proto.dispatch import Dispatch
from nixfleet_agent.proto.strict_json import BODY_LIMIT, loads_strict
from nixfleet_agent.runtime.dispatch import decision
from nixfleet_agent.runtime.dispatch.check import DispatchCheck, Gates
from nixfleet_agent.runtime.dispatch.decision import Done, Expire, Pending, Refuse, Retry
from nixfleet_agent.runtime.dispatch.pending import PendingDispatch
from nixfleet_agent.runtime.dispatch.refusals import Refusals
from nixfleet_agent.runtime.dispatch.window import PollWindow
from nixfleet_agent.runtime.rollout.inputs import ReplayRequested
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.threads.backoff import Backoff
from nixfleet_agent.threads.threads import Thread
from nixfleet_agent.threads.worker import Worker
from nixfleet_agent.trouble import Trouble

PATH = "/v1/agent/dispatch"
#: What a client waits longer than the server was asked to, in seconds.
GRACE = 5.0
#: Least seconds between the starts of two requests: a server that ignores ``wait`` must not cause a hot loop.
LEAST_INTERVAL = 1.0
#: What a proxy answers when it has waited long enough for the control plane, Cloudflare's number included.
_CUT_STATUSES = (408, 502, 504, 524)
#: The longest long poll that the protocol knows, in seconds.
LONGEST_POLL = 60.0
#: Longest that one try may be without a sign of life: three artifacts at two requests each, all of them twice, each to
#: its deadline (450 s), and the reducer's answer. A server that drips must not have the watchdog restart the agent.
LONGEST_TRY = 500.0
#: Seconds without this worker once a Dispatch was accepted: its next words would take the interpreter from the reducer
#: and the outbound worker, who acknowledge it meanwhile.
YIELD_SECS = 0.05


@dataclass(frozen=True, slots=True)
class PendingStatus:
    """The section ``dispatch`` of the status board: what is kept, and why it is not accepted yet."""

    rollout_id: str
    target_closure: str
    received_at: datetime
    label: str | None
    reason: str | None
    next_try_at: datetime | None
    tries: int


class LongPollWorker(Worker):
    """At most one Dispatch is pending; a newer well-formed one takes its place."""

    name = "longpoll"

    def __init__(self, services: Services, gates: Gates, rng: random.Random | None = None) -> None:
        super().__init__(services.shutdown, services.clock)
        config, clock, tuning = services.config, services.clock, services.config.tuning
        self.limit = LONGEST_TRY + tuning.dispatch_wait + 2 * tuning.backoff_max
        self._machine_id = config.machine_id
        self._window = PollWindow.of(min(LONGEST_POLL, tuning.dispatch_wait))
        self._control_plane = services.control_plane
        self._cache = services.cache
        self._board = services.board
        self._check = DispatchCheck(services, gates, self.alive, self._settle)
        self._disk = PendingDispatch(config.state_dir)
        self._refusals = Refusals(services.board, clock, self.log)
        self._poll_backoff = Backoff(tuning.backoff_initial, tuning.backoff_max, rng)
        self._try_backoff = Backoff(tuning.backoff_initial, tuning.backoff_max, rng)
        self._threads = services.platform.threads
        self._saving: Thread | None = None
        self._pending: Pending | None = None
        self._measured = clock.monotonic()
        self._next_try = 0.0
        self._tries = 0
        self._last: Retry | None = None
        self._last_start = -LEAST_INTERVAL
        self._trouble = Trouble(self.log, "long poll failed", "the control plane answers again")
        self._inputs = services.inputs
        self._repeated = ""

    def run(self) -> None:
        """Decide what is pending when its time has come; poll; and so on until shutdown."""
        self._board.publish("poll", self._window)
        self._restore()
        while not self.shutdown.is_set:
            self.alive()
            if self._pending is not None and self.clock.monotonic() >= self._next_try:
                self._try(self._pending)
            early = self._last_start + LEAST_INTERVAL - self.clock.monotonic()
            if not self.shutdown.wait(max(0.0, early)):
                self._poll()
        self._settle()

    # -- the long poll ------------------------------------------------------------------------

    def _poll(self) -> None:
        left = None if self._pending is None else self._next_try - self.clock.monotonic()
        wait = decision.poll_wait(self._window.ask, left)
        self._last_start = self.clock.monotonic()
        try:
            answer = self._control_plane.get(PATH, params={"wait": f"{wait:g}"}, deadline=wait + GRACE)
        except TransportError as error:
            if error.kind in ("timeout", "reset"):
                silently = error.kind == "timeout"
                self._adapt(self._window.died(wait, self._lived(), silently=silently))
            self._no_poll(str(error), 0.0)
            return
        if answer.status not in (200, 204):
            if answer.status in _CUT_STATUSES:
                self._adapt(self._window.died(wait, self._lived(), silently=False))
            after = retry_after(answer, self.clock.now()) or 0.0
            self._no_poll(answer.told(), after)
            return
        self._adapt(self._window.answered(self._lived(), self.clock.monotonic()))
        self._trouble.over()
        self._poll_backoff.reset()
        if answer.status == 200 and answer.body.strip() not in (b"", b"null"):
            self._receive(answer)

    def _lived(self) -> float:
        return self.clock.monotonic() - self._last_start

    def _adapt(self, window: PollWindow) -> None:
        """Take over what was learned of the way to the control plane; a change of what polls ask for is said."""
        before, self._window = self._window, window
        if window.wait != before.wait:
            shorter = window.wait < before.wait
            self.log.log(logging.WARNING if shorter else logging.INFO, "%s", window.told(shorter=shorter))
            self._board.publish("poll", window)

    def _no_poll(self, trouble: str, at_least: float) -> None:
        if self.shutdown.is_set:
            return
        self._trouble.failed(trouble)
        wait = self._poll_backoff.next(at_least)
        if self._pending is not None:
            wait = min(wait, max(LEAST_INTERVAL, self._next_try - self.clock.monotonic()))
        self.shutdown.wait(wait)

    def _receive(self, answer: HttpAnswer) -> None:
        """A body came: keep it when it is a Dispatch for this host, refuse it at once when it is not."""
        self._board.count("dispatches", outcome="received")
        try:
            dispatch = Dispatch.parse(loads_strict(answer.body, limit=BODY_LIMIT, what="a Dispatch"))
        except ProtoError as error:
            self._refusals.refused(None, Refuse("pattern", str(error)))
            return
        refusal = decision.check_recipient(dispatch, self._machine_id)
        if refusal is not None:
            self._refusals.refused(dispatch, refusal)
            return
        if self._check.ran_here(dispatch):
            # It will not run again, so it is no newer word than the Dispatch that is kept.
            self._done(dispatch, decision.REPEAT)
            return
        replaced = self._pending
        if replaced is not None and dispatch.is_same_turn(replaced.dispatch):
            self.log.debug("a kept Dispatch was handed out again", extra={"rollout_id": dispatch.rollout_id})
            return
        if replaced is not None:
            self._board.count("dispatches", outcome="replaced")
            self.log.info("a newer Dispatch replaces a kept one", extra={"rollout_id": replaced.dispatch.rollout_id})
        now = self.clock.now()
        pending = Pending(dispatch, received_at=now, as_of=now)
        self._settle()
        self._begin(pending)
        self._saving = self._threads.start("longpoll disk", partial(self._save, pending))

    # -- one try ------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Take up what was pending: at start, and after this worker died of something unexpected."""
        self._settle()
        pending = self._disk.load()
        if pending is None and self._pending is not None:
            self._next_try = self.clock.monotonic()  # it could never be written, and is known here alone
        elif pending is not None:
            self._begin(decision.resumed(pending, self.clock.now()))

    def _begin(self, pending: Pending) -> None:
        self._pending = pending
        self._measured = self._next_try = self.clock.monotonic()
        self._tries = 0
        self._last = None
        self._try_backoff.reset()
        self._publish()

    def _try(self, pending: Pending) -> None:
        pending = self._measure(pending)
        gated = self._last is not None and self._last.gated
        outcome = self._check.outcome(pending, anew=self._tries > 0, gated=gated)
        self._settle()
        self._tries += 1
        if self.shutdown.is_set and isinstance(outcome, Retry):
            return
        if isinstance(outcome, Retry):
            self._keep(pending, outcome)
        else:
            self._end(pending.dispatch, outcome)
        # An accepted Dispatch carries its marks itself, and its artifacts are left to the next turn of the manifest
        # poll: their five fsyncs would compete with the one that the acknowledgement waits for.
        if outcome != decision.ACCEPTED:
            self._cache.flush()

    def _measure(self, pending: Pending) -> Pending:
        monotonic = self.clock.monotonic()
        pending = decision.advanced(pending, timedelta(seconds=monotonic - self._measured), self.clock.now())
        self._measured, self._pending = monotonic, pending
        return pending

    # -- what comes of it ---------------------------------------------------------------------

    def _keep(self, pending: Pending, keep: Retry) -> None:
        wait = decision.GATE_RECHECK if keep.gated else self._try_backoff.next(at_least=keep.after)
        self._next_try = self.clock.monotonic() + wait
        held = keep.pauses
        if pending.held != held:
            self._pending = replace(pending, held=held)
            self._save(self._pending)
        if keep.differs_from(self._last):
            self._refusals.kept(pending.dispatch, keep)
        self._last = keep
        self._publish()

    def _end(self, dispatch: Dispatch, outcome: Refuse | Expire | Done) -> None:
        self._pending = None
        if outcome == decision.ACCEPTED:
            self.shutdown.wait(YIELD_SECS)
        try:
            self._disk.clear()
        except StorageError as error:
            self.log.warning("a decided Dispatch is still on disk: %s", error)
        if isinstance(outcome, Refuse):
            self._refusals.refused(dispatch, outcome)
        elif isinstance(outcome, Expire):
            self._refusals.expired(dispatch, outcome)
        else:
            self._done(dispatch, outcome)
        self._publish()

    def _done(self, dispatch: Dispatch, outcome: Done) -> None:
        fields = {"rollout_id": dispatch.rollout_id, "closure": dispatch.target_closure}
        self._board.count("dispatches", outcome=outcome.label)
        said_before = outcome == decision.REPEAT and self._repeated == dispatch.rollout_id
        say = self.log.debug if said_before else self.log.info
        say("Dispatch: %s", outcome.label, extra=fields)
        if outcome == decision.REPEAT:
            self._repeated = dispatch.rollout_id
            # Whoever asks for what ran here has lost what was told of it.
            self._inputs.put(ReplayRequested((dispatch.rollout_id,), 1), self.alive)

    def _settle(self) -> None:
        """Wait until what was received is on disk, or has been said not to be."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.join()

    def _save(self, pending: Pending) -> None:
        try:
            self._disk.save(pending)
        except StorageError as error:
            # It goes on in memory: a host whose disk is full may still have to learn that it must stand still.
            self.log.warning("a Dispatch is kept in memory only: %s", error)

    def _publish(self) -> None:
        pending = self._pending
        if pending is None:
            self._board.publish("dispatch", None)
            return
        left = timedelta(seconds=max(0.0, self._next_try - self.clock.monotonic()))
        self._board.publish(
            "dispatch",
            PendingStatus(
                rollout_id=pending.dispatch.rollout_id,
                target_closure=pending.dispatch.target_closure,
                received_at=pending.received_at,
                label=self._last.label if self._last else None,
                reason=self._last.reason if self._last else None,
                next_try_at=self.clock.now() + left if self._last else None,
                tries=self._tries,
            ),
        )
