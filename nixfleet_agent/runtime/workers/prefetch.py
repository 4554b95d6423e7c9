"""Prefetch worker: brings the release that comes next into the store before its turn, and looks what awaits it there.

It asks the decision what to do, does it, and sleeps until something changes. Whatever goes wrong changes its section of
`status` and nothing else: no rollout hears of it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from nixfleet_agent import durable
from nixfleet_agent.activation import failures, nix, readiness, realise, way_back
from nixfleet_agent.activation.backends import choose
from nixfleet_agent.activation.context import SHUTDOWN, Context
from nixfleet_agent.activation.errors import CommandError, PhaseFailed, PhaseInterrupted
from nixfleet_agent.activation.host import read_link
from nixfleet_agent.activation.model import Forward
from nixfleet_agent.activation.readiness import Readiness
from nixfleet_agent.activation.script_words import lock_refused
from nixfleet_agent.errors import AgentError, StorageError
from nixfleet_agent.prefetch import gentle
from nixfleet_agent.prefetch.decision import RECHECK_SECS, Decision, Do, Situation, State, decide, starts_at
from nixfleet_agent.prefetch.oversight import Oversight
from nixfleet_agent.prefetch.status import NextStatus, expected_end, percent
from nixfleet_agent.proto.ids import channel_of
from nixfleet_agent.runtime.dispatch.check import Gates
from nixfleet_agent.runtime.release import RELEASE, SignedRelease, next_way_back
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.state_machine import Policy
from nixfleet_agent.telemetry.status import Section
from nixfleet_agent.threads.backoff import Backoff
from nixfleet_agent.threads.worker import Worker
from nixfleet_agent.trouble import Trouble

#: The first and the longest pause after a fetch that failed, in seconds.
RETRY_INITIAL, RETRY_MAX = 60.0, 3600.0
#: Until what stands in the way of a release is looked at again, in seconds: each look runs the closure's script.
OBSTRUCTED_SECS = 600.0
#: A slow one at the lowest priority may take this long; what is there by then is there at the next try.
LONGEST_SECS = 24 * 3600.0
#: Without a sign of life while it works.
_LIMIT = 180.0

NEXT: Section[NextStatus | None] = Section("next", None)


@dataclass(slots=True)
class _Job:
    """What is known of one release that comes next; times are monotonic seconds."""

    rollout_id: str
    closure: str
    starts_at: float
    policy: str = Policy.ROLLBACK_AND_HALT
    looked: bool = False
    failure: str | None = None
    next_try_at: float = 0.0
    found: Readiness | None = None
    found_under: str | None = None
    inspect_at: float | None = 0.0
    ready_at: datetime | None = None


class PrefetchWorker(Worker):
    """``rng`` spreads the starts of a fleet; ``backoff`` the tries after a failure."""

    name = "prefetch"

    def __init__(self, services: Services, *, rng: random.Random | None = None, backoff: Backoff | None = None) -> None:
        super().__init__(services.shutdown, services.clock)
        config = services.config
        self._settings = config.prefetch
        self._hostname = config.machine_id
        self._handover = services.prefetch
        self._board = services.board
        self._cache = services.cache
        self._gates = Gates.of(services)
        self._rng = rng or services.platform.rng()
        self._backoff = backoff or Backoff(RETRY_INITIAL, RETRY_MAX, services.platform.rng())
        self._root = way_back.root_of_next(config.state_dir)
        self._context = Context(
            config.activation,
            config.state_dir,
            services.clock,
            self._interrupted,
            self._pause,
            self.log,
            machine=services.platform.machine,
        )
        self._backend = choose(self._context)
        self._rate = gentle.Rate(self._context, config.prefetch)
        self._room = gentle.Room(self._context, config.prefetch.min_free)
        self._trouble = Trouble(self.log, "the next release can't be fetched before its turn")
        self._job: _Job | None = None

    def run(self) -> None:
        """One step after the other, as the decision has it."""
        steps = {Do.LOOK: self._look, Do.FETCH: self._fetch, Do.INSPECT: self._inspect}
        while True:
            self._handover.changed.clear()
            if self.shutdown.is_set:  # looked at after the event was cleared, which shutdown sets too
                return
            self.alive()
            decision = self._decide()
            self._settle(decision)
            if decision.do is Do.REST or self._job is None:
                self._sleep(decision.until)
            else:
                steps[decision.do](self._job)

    # -- what to do ---------------------------------------------------------------------------

    def _decide(self) -> Decision:
        release, now = self._board.read(RELEASE), self.clock.monotonic()
        if release is None or not self._settings.enabled:
            self._job = None
        elif self._job is None or (self._job.rollout_id, self._job.closure) != _name(release):
            self._job = _Job(*_name(release), starts_at(now, self._settings.spread_secs, self._rng))
            self._backoff.reset()
        return decide(self._situation(self._job, now))

    def _situation(self, job: _Job | None, now: float) -> Situation:
        s = Situation(
            now=now,
            enabled=self._settings.enabled,
            announced=self._handover.announced,
            closure=None if job is None else job.closure,
            held=read_link(self._root)[0],
        )
        current = self._gates.read_current()
        if job is None or job.closure == current:
            return replace(s, current=current)
        if job.found is not None and job.found_under != current:
            job.inspect_at = now
        return replace(
            s,
            current=current,
            refusal=self._refusal(job),
            in_progress=self._is_under_way(job),
            had_its_turn=self._gates.knows(job.rollout_id),
            urgent=self._handover.urgent,
            quarantined=self._gates.quarantined(channel_of(job.rollout_id), job.closure),
            hold=self._gates.hold(),
            looked=job.looked,
            starts_at=job.starts_at,
            failure=job.failure,
            next_try_at=job.next_try_at,
            inspect_at=job.inspect_at,
            obstructed=job.found is not None and not job.found.ready,
        )

    def _is_under_way(self, job: _Job) -> bool:
        """Whether its turn has come, and its rollout has not ended."""
        view = self._board.rollouts
        return view.active is not None and view.active_open and view.active.target_closure == job.closure

    def _refusal(self, job: _Job) -> str | None:
        """Why a Dispatch for it would be refused at this moment: only what CI signed, and what is fresh, is fetched."""
        try:
            terms = self._cache.known_terms(job.rollout_id, self._hostname, job.closure)
        except AgentError as error:
            return str(error)
        job.policy = terms.resolved.policy
        return None

    def _interrupted(self) -> str | None:
        self.alive()
        return SHUTDOWN if self.shutdown.is_set else self._handover.stop_reason()

    # -- doing it -----------------------------------------------------------------------------

    def _look(self, job: _Job) -> None:
        """Whether it is in the store already; that costs the caches nothing, and so need not be spread."""
        job.looked = True
        try:
            way_back.make_roots_folder(self._context.state_dir)
            if nix.hold(self._context, job.closure, self._root):
                self._count("present")
        except PhaseInterrupted:
            job.looked = False
        except (CommandError, StorageError) as error:
            self._failed(job, str(error))

    def _fetch(self, job: _Job) -> None:
        try:
            options = self._rate.options()
        except PhaseInterrupted:
            return
        download = self._handover.begin(job.closure, limited=bool(options))
        if download is None:
            return
        began = self.clock.monotonic()
        oversight = Oversight(
            self._context, download, self._room, lambda fetched: self._show(job, began, fetched), self._unwanted
        )
        manner = realise.Manner(options, LONGEST_SECS, math.inf, self._room.admit, oversight.on_start, oversight.look)
        self.log.info("fetching %s before its turn", job.closure, extra={"rollout_id": job.rollout_id})
        try:
            way_back.make_roots_folder(self._context.state_dir)
            realise.realise(self._context, job.closure, self._root, manner=manner)
        except PhaseInterrupted as interruption:
            self._count("stopped")
            self.log.info("fetching before its turn is stopped: %s", interruption.reason)
        except (PhaseFailed, StorageError) as error:
            self._failed(job, _reason(error))
        else:
            job.failure = None
            self._trouble.over()
            self._count("fetched")
        finally:
            self._handover.end(download)

    def _unwanted(self) -> str | None:
        """Why the download that runs is not wanted any more: another release, a hold, a quarantine."""
        before, decision = self._job, self._decide()
        if before is not None and self._job is before and (decision.do is Do.FETCH or self._is_under_way(before)):
            return None
        return decision.reason or "another release came, or this one is not wanted any more"

    def _failed(self, job: _Job, reason: str) -> None:
        seconds = self._backoff.next()
        job.failure, job.next_try_at = reason, self.clock.monotonic() + seconds
        self._trouble.failed(reason, failures.classify(reason).kind, fields={"closure": job.closure})
        self._count("failed")

    def _inspect(self, job: _Job) -> None:
        current = self._gates.read_current()
        prior = next_way_back(self._board.rollouts, current)
        try:
            found = readiness.inspect(
                self._context, self._backend, Forward(job.rollout_id, job.closure, prior, job.policy)
            )
        except PhaseInterrupted:
            return
        news = job.found is None or job.found.obstacles != found.obstacles
        job.ready_at = (job.ready_at or self.clock.now()) if found.ready else None
        job.found, job.found_under = found, current
        job.inspect_at = _inspect_again(found, self.clock.monotonic())
        if news:
            write_log = self.log.info if found.ready else self.log.warning
            in_the_way = "; ".join(obstacle.text for obstacle in found.obstacles) or "nothing stands in its way"
            write_log("%s is in the store before its turn: %s", job.rollout_id, in_the_way)

    # -- around it ----------------------------------------------------------------------------

    def _settle(self, decision: Decision) -> None:
        """Let go of what is not wanted any more, and show how far it is."""
        try:
            if not decision.keep:
                durable.remove(self._root)
        except StorageError as error:
            self.log.warning("what was fetched before its turn can't be let go of: %s", error)
        self._board.publish(NEXT, self._status(decision))

    def _status(self, decision: Decision) -> NextStatus | None:
        job = self._job
        if job is None or decision.state is None:
            return None
        wait = None if decision.until is None else decision.until - self.clock.monotonic()
        return NextStatus(
            job.rollout_id,
            job.closure,
            decision.state,
            decision.reason,
            ready_at=job.ready_at if decision.state is State.READY else None,
            next_try_at=None if wait is None else self.clock.now() + timedelta(seconds=wait),
            obstacles=job.found.obstacles if job.found is not None and decision.do is Do.REST else (),
        )

    def _show(self, job: _Job, began: float, fetched: int) -> None:
        """How far the download is that began at that monotonic second."""
        total, seconds = self._room.total, self.clock.monotonic() - began
        status = NextStatus(
            job.rollout_id,
            job.closure,
            State.FETCHING,
            fetched_bytes=fetched,
            total_bytes=total,
            percent=percent(fetched, total),
            ready_at=expected_end(self.clock.now(), seconds, fetched, total),
        )
        self._board.publish(NEXT, status)

    def _count(self, outcome: str) -> None:
        self._board.count("prefetches", outcome=outcome)

    def _pause(self, seconds: float) -> None:
        self.clock.wait(self._handover.changed, seconds)

    def _sleep(self, until: float | None) -> None:
        """Until something changes, or that monotonic second. Who waits for others owes no sign of life meanwhile."""
        seconds = None if until is None else max(0.0, until - self.clock.monotonic())
        self.limit = math.inf if seconds is None else seconds + _LIMIT
        self.clock.wait(self._handover.changed, seconds)
        self.alive()
        self.limit = _LIMIT


def _name(release: SignedRelease) -> tuple[str, str]:
    return release.rollout_id, release.target_closure


def _reason(error: PhaseFailed | StorageError) -> str:
    """One line for people: what Nix said, as far as it is understood."""
    if isinstance(error, StorageError):
        return str(error)
    return str(failures.classify(error.tail)) if error.phase == realise.PHASE else error.tail


def _inspect_again(found: Readiness, now: float) -> float | None:
    """When what stands in the way may be gone; None: nothing does."""
    if found.dry_run is not None and lock_refused(found.dry_run.output):
        return now + RECHECK_SECS
    return None if found.ready else now + OBSTRUCTED_SECS
