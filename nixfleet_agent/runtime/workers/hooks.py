"""Hooks worker: tells this host's own programs what has happened to it, once it is durable and at least once."""

from __future__ import annotations

import queue
from collections.abc import Iterable
from pathlib import Path

from nixfleet_agent.activation.errors import PhaseInterrupted
from nixfleet_agent.errors import StorageError
from nixfleet_agent.hooks.folder import find, problems
from nixfleet_agent.hooks.ledger import Ledger
from nixfleet_agent.hooks.moments import FOLDERS, MOMENTS, Occasion, owed
from nixfleet_agent.hooks.runner import Ran
from nixfleet_agent.proto.events import to_wire
from nixfleet_agent.runtime.rollout.rollouts import Host
from nixfleet_agent.runtime.services import Services
from nixfleet_agent.state_machine.events import Event
from nixfleet_agent.state_machine.record import RolloutRecord
from nixfleet_agent.threads.timers import Timer
from nixfleet_agent.threads.worker import Worker

#: Occasions that wait for a slow hook; a rollout has four at the most. What does not fit is told after a restart.
MOST_WAITING = 256
#: Seconds between two looks when nobody has told anything, and between two tries of a disk that takes no mark.
IDLE_SECS = 60.0


class HooksWorker(Worker):
    """``tell`` is called by the reducer's thread and never waits; the worker runs one hook after the other."""

    name = "hooks"

    def __init__(self, services: Services, host: Host) -> None:
        """``host`` as recovered: what its logs owe the hooks is told first."""
        super().__init__(services.shutdown, services.clock)
        config = services.config
        self.limit = config.hooks.timeout_secs + 180.0
        self._folder: Path = config.hooks.folder
        self._ledger = Ledger(config.state_dir)
        self._runner = services.hook_runner()
        self._waiting: queue.Queue[Occasion] = queue.Queue(MOST_WAITING)
        self._timer = Timer(IDLE_SECS, services.clock, services.shutdown)
        self._problems: dict[str, tuple[str, ...]] = {}
        self._begin(services, host)

    def tell(self, record: RolloutRecord, event: Event) -> None:
        """An event of this rollout is durable."""
        if event.kind not in MOMENTS:
            return
        occasion = Occasion(
            moment=MOMENTS[event.kind],
            rollout_id=record.rollout_id,
            seq=event.seq,
            target=record.target_closure,
            prior=record.current_closure_at_dispatch,
            details=to_wire(event),
        )
        self._put(occasion)
        self._timer.kick()

    def run(self) -> None:
        self._say_unfit()
        while self._timer.wait():
            self.alive()
            while not self.shutdown.is_set and not self._waiting.empty():
                occasion = self._waiting.queue[0]
                if not self._handle(occasion):
                    break  # the disk takes no mark: once more at the next turn
                self._waiting.get_nowait()

    def _say_unfit(self) -> None:
        """What will not be run is said at the start, when somebody looks, and not only when its moment comes."""
        self._problems = {moment: find(self._folder, moment).problems for moment in FOLDERS}
        for problem in problems(self._folder):
            self.log.error("%s", problem)

    def _begin(self, services: Services, host: Host) -> None:
        """Before any worker moves a file of the journal."""
        try:
            if not self._folder.is_dir():
                self._ledger.forget()
                return
            self._ledger.begin({name: rollout.record.last_event_seq for name, rollout in host.rollouts.items()})
            for name, rollout in host.rollouts.items():
                if rollout.record.last_event_seq > self._ledger.told(name):
                    self._put_all(owed(services.journal.read(name), self._ledger.told(name)))
        except StorageError as error:
            self.log.error("what the hooks are still to be told can't be found out: %s", error)

    def _put_all(self, occasions: Iterable[Occasion]) -> None:
        for occasion in occasions:
            self._put(occasion)

    def _put(self, occasion: Occasion) -> None:
        try:
            self._waiting.put_nowait(occasion)
        except queue.Full:
            fields = {"rollout_id": occasion.rollout_id, "seq": occasion.seq}
            self.log.error("hooks are too slow: %s is told after the next start", occasion.moment, extra=fields)

    def _handle(self, occasion: Occasion) -> bool:
        """Run every hook of the moment, then note it; False when it could not be noted, or shutdown came first."""
        if not self._folder.is_dir():
            return True
        found = find(self._folder, occasion.moment)
        self._say(occasion.moment, found.problems)
        ran: list[Ran] = []
        for hook in found.hooks:
            self.alive()
            try:
                done = self._runner.run(hook, occasion, self._check)
            except PhaseInterrupted:
                return False
            ran.append(done)
            fields = {"rollout_id": occasion.rollout_id, "seq": occasion.seq, "hook": done.hook}
            if done.exit_code:
                self.log.warning("a hook failed (%s): %s", occasion.moment, done.reason, extra=fields)
            else:
                self.log.info("told a hook: %s", occasion.moment, extra=fields)
        try:
            self._ledger.note(occasion, ran)
        except (StorageError, OSError) as error:
            self.log.warning("told hooks, and can't note it: %s", error, extra={"rollout_id": occasion.rollout_id})
            return False
        return True

    def _check(self) -> None:
        if self.shutdown.is_set:
            raise PhaseInterrupted("shutdown")

    def _say(self, moment: str, problems: tuple[str, ...]) -> None:
        if self._problems.get(moment, ()) != problems:
            self._problems[moment] = problems
            for problem in problems:
                self.log.error("%s", problem)
