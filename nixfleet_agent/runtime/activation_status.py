"""What `status` shows of the activation worker: the step it is in, what it waits for, and how a rollback goes."""

from __future__ import annotations

from datetime import timedelta

from nixfleet_agent.activation.consent import VETO
from nixfleet_agent.activation.context import Waiting
from nixfleet_agent.activation.model import RollbackFailed
from nixfleet_agent.state_machine.events import Phase
from nixfleet_agent.telemetry.status import SWITCHING, StatusBoard
from nixfleet_agent.threads.clock import Clock


class ActivationStatus:
    """Used by the activation worker alone. ``phases`` are the steps of the order in hand, as its event tells them."""

    def __init__(self, board: StatusBoard, clock: Clock) -> None:
        self._board = board
        self._clock = clock
        self._waits = False
        self._stands: tuple[str, dict[str, object]] | None = None
        self.phases: list[Phase] = []

    def begin(self) -> None:
        """Another order, or another try."""
        self.phases = []

    def phase(self, name: str, seconds: float) -> None:
        """A step is over."""
        self.phases.append(Phase(name=name, seconds=round(seconds, 3)))
        self._board.publish("activation", {"phase": name, "seconds": round(seconds, 3)})

    def switching(self, now: bool) -> None:
        """Whether a switch of ours runs, so that what is current may be half of it."""
        self._board.publish(SWITCHING, now)

    def waiting(self, rollout_id: str | None, waiting: Waiting | None) -> None:
        """What a rollout waits for before anything on the host is changed; None: nothing any more."""
        if waiting is None:
            if self._waits:
                self._board.publish("waiting", None)
            self._waits = False
            return
        self._waits = True
        section = {
            "rollout_id": rollout_id,
            "closure": waiting.closure,
            "kind": waiting.kind,
            "reason": waiting.reason,
            "tries": waiting.tries,
            "next_try_at": self._clock.now() + timedelta(seconds=waiting.seconds),
        }
        self._board.publish("waiting", section)
        if waiting.kind != VETO:
            self._board.count("realise_retries", reason=waiting.kind)

    def rollback_begins(self) -> None:
        """Another order to go back: what it stands still for is news."""
        self._stands = None

    def stands_still(self, rollout_id: str, **why: object) -> bool:
        """Nothing is to be done for a rollback until somebody else acts; True when that is news."""
        if self._stands == (rollout_id, why):
            return False
        self._stands = (rollout_id, why)
        self.rollback(rollout_id, **why)
        return True

    def rollback(self, rollout_id: str, **shown: object) -> None:
        """A rollback that is given up, or that stands still: for an operator's own switch, or until a reboot."""
        self._board.publish("rollback", {"rollout_id": rollout_id, **shown})

    def rollback_failed(self, rollout_id: str, failed: RollbackFailed, failures: int, seconds: float) -> None:
        """One try failed, the next is in ``seconds``."""
        self.rollback(
            rollout_id,
            failures=failures,
            reason=failed.stderr_tail,
            next_try_at=self._clock.now() + timedelta(seconds=seconds),
        )
        self._board.count("rollback_failures")

    def rolled_back(self) -> None:
        """No rollback is owed any more."""
        self._board.publish("rollback", None)
