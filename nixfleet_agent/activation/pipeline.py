"""The activation pipeline as the activation worker calls it: intents in, outcomes out, no exception for a failure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from nixfleet_agent.activation import changes, host, way_back
from nixfleet_agent.activation.backends import choose
from nixfleet_agent.activation.context import SUPERSEDED, Context
from nixfleet_agent.activation.errors import ActivationError, PhaseFailed, PhaseInterrupted
from nixfleet_agent.activation.forward import ForwardRun, Telling
from nixfleet_agent.activation.guard import Guard
from nixfleet_agent.activation.model import (
    EXIT_UNKNOWN,
    Completed,
    Deferred,
    Failed,
    Forward,
    ForwardOutcome,
    Interrupted,
    Rollback,
    RollbackFailed,
    RollbackOutcome,
)
from nixfleet_agent.activation.records import Records, awaits_successor
from nixfleet_agent.activation.rollback import RollbackRun
from nixfleet_agent.activation.steps import Parts
from nixfleet_agent.activation.switches import Switches
from nixfleet_agent.errors import StorageError
from nixfleet_agent.text import clip_tail

#: Longest `stderrTail`, its phase included.
STDERR_TAIL_BYTES = 4096


def _nobody_else() -> None:
    """No other rollout answers for what runs."""


class Pipeline:
    """Brings this host to a closure and back. Not thread-safe: one thread owns it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._records = Records(context.state_dir, context.machine.boot_id())
        backend = choose(context)
        self._switches = Switches(self._context, self._records, backend)
        self._guard = Guard(self._context, self._records, backend, self._switches)
        # A guard that is being renewed is none: a shutdown has to wait for it, for milliseconds.
        steady = dataclasses.replace(context, interrupted=lambda: None)
        calm = choose(steady)
        self._steady_guard = Guard(steady, self._records, calm, Switches(steady, self._records, calm))
        self._parts = Parts(self._context, self._records, backend, self._switches, self._guard)

    def forward(
        self, intent: Forward, on_started: Callable[[str], None], on_switch: Callable[[], None] = _nobody_else
    ) -> ForwardOutcome:
        """Run the whole way forward.

        ``on_started`` is told how it switches, and ``on_switch`` that the switch comes next: from then on nothing else
        answers for what runs. What they raise goes to the caller and nothing is fired.
        """
        return self._outcome(intent, ForwardRun(self._parts, intent, Telling(on_started, on_switch)).run)

    def resume(
        self,
        intent: Forward,
        on_started: Callable[[str], None],
        already_started: bool,
        on_switch: Callable[[], None] = _nobody_else,
    ) -> ForwardOutcome:
        """Go on after a restart, without firing again what runs or has ended.

        ``on_started`` is not called when the start has been reported already.
        """
        tell = Telling(_reported if already_started else on_started, on_switch)
        return self._outcome(intent, ForwardRun(self._parts, intent, tell).resume)

    def rollback(self, intent: Rollback) -> RollbackOutcome:
        """One attempt to get back; call it again after a RollbackFailed."""
        try:
            return RollbackRun(self._parts, intent).run()
        except PhaseInterrupted as interruption:
            return Interrupted(interruption.reason)
        except PhaseFailed as failure:
            return RollbackFailed(failure.exit_code, stderr_tail(failure.phase, failure.tail), failure.phase)
        except StorageError as error:
            return RollbackFailed(EXIT_UNKNOWN, stderr_tail("state-dir", str(error)), "state-dir")
        except ActivationError as error:
            return RollbackFailed(EXIT_UNKNOWN, stderr_tail("host", str(error)), "host")

    def disarm(self, *, keep_hand_over: bool = False) -> None:
        """Nothing outside the agent takes this host back any more; what stands in the way is logged: call again.

        ``keep_hand_over``: but the guard of a release's own agent.
        """
        if self._guard.armed_for() is None:
            return
        try:
            self._guard.disarm(keep_hand_over=keep_hand_over)
        except (StorageError, ActivationError) as error:
            self._context.log.warning("%s", error)

    def guard_successor(self, intent: Forward, agent: str) -> str | None:
        """Have the host taken back unless the agent that unit ``agent`` starts is ready in time, counted from now.

        Returns:
            Why that can't be done, or None; also where nothing is to be taken back.
        """
        try:
            self._steady_guard.arm_for_successor(intent, agent)
        except (StorageError, ActivationError) as error:
            return str(error)
        return None

    def awaits_successor(self) -> str | None:
        """The rollout whose guard waits for its own agent to be ready, or None."""
        return awaits_successor(self._records)

    def successor_ready(self, rollout_id: str) -> bool:
        """The agent that is waited for is this one, and ready: whether the guard is disarmed and has not acted."""
        self.disarm()
        return self.awaits_successor() is None and self._guard.mark(rollout_id) is None

    def release(self, rollout_id: str) -> None:
        """The rollout is terminal: its guard, its garbage collector's roots and its notes go.

        Raises:
            StorageError: the disk refused; call again.
            PhaseInterrupted: shutdown while a guard that acts is awaited.
        """
        if self._guard.armed_for() == rollout_id:
            self._guard.disarm()
        way_back.release_roots(self._context.state_dir, rollout_id)
        self._records.forget_failure(rollout_id)

    def keep_changes(self) -> None:
        """Keep what each switch changed for people to read later; what can't be told now is tried at the next call."""
        try:
            changes.keep(self._context, self._records)
        except (StorageError, ActivationError) as error:
            self._context.log.debug("what a switch changed is not kept yet: %s", error)

    def holding(self) -> set[str]:
        """Rollouts that still hold garbage collector's roots."""
        return way_back.holding(self._context.state_dir)

    def forward_fired(self, rollout_id: str) -> bool:
        """Whether a switch of this rollout has started, so that units may be half changed; from disk."""
        return bool(self._switches.attempts(rollout_id))

    def _outcome(self, intent: Forward, run: Callable[[], Completed | Deferred]) -> ForwardOutcome:
        try:
            return run()
        except PhaseInterrupted as interruption:
            return Interrupted(interruption.reason)
        except PhaseFailed as failure:
            return self._failed(intent, failure)
        except StorageError as error:
            return self._failed(intent, PhaseFailed("state-dir", str(error)))
        except ActivationError as error:
            return self._failed(intent, PhaseFailed("host", str(error)))
        finally:
            self._leave_to_the_newer()

    def _failed(self, intent: Forward, failure: PhaseFailed) -> Failed:
        observed = failure.observed or host.read_current(self._context.config)
        fired = self.forward_fired(intent.rollout_id)
        if fired:
            try:
                self._records.note_failure(intent.rollout_id, observed)
            except StorageError as error:
                self._context.log.warning("%s", error)
        return Failed(failure.exit_code, stderr_tail(failure.phase, failure.tail), failure.phase, fired, observed)

    def _leave_to_the_newer(self) -> None:
        """A superseded rollout takes nothing back: a guard that acted now would undo the newer one.

        What soaks under both stays guarded until the newer one's switch.
        """
        if self._context.interrupted() == SUPERSEDED:
            self.disarm(keep_hand_over=True)


def stderr_tail(phase: str, words: str) -> str:
    """``<phase>: <the end of the words>``, at most 4 KiB of whole UTF-8 characters."""
    head = f"{phase}: "
    return head + clip_tail(words.encode("utf-8", "replace"), STDERR_TAIL_BYTES - len(head.encode()))


def _reported(method: str) -> None:
    """The start was reported before the restart."""
