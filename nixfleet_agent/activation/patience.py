"""Tries a step again while what stands in its way can pass: only before the point of no return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from nixfleet_agent.activation import failures
from nixfleet_agent.activation.context import Context, Waiting
from nixfleet_agent.activation.errors import CommandError
from nixfleet_agent.activation.failures import Failure

_Result = TypeVar("_Result")

#: How often a failure that nobody has described is met before it counts: most of those are not by chance.
UNKNOWN_TRIES = 3
TIMED_OUT = "realise_timeout_secs are over"


@dataclass(frozen=True, slots=True)
class Tried:
    """A try that failed. ``unknown`` counts those of no known class; times are seconds.

    ``left`` is what the whole step may still take, ``fresh_left`` how long the signed release is still good.
    """

    failure: Failure
    unknown: int
    left: float
    fresh_left: float | None


def given_up(tried: Tried) -> str | None:
    """Why there is no other try; None when there is one."""
    failure = tried.failure
    if failure.kind == failures.UNKNOWN.kind:
        if tried.unknown >= UNKNOWN_TRIES:
            return f"failed {tried.unknown} times"
    elif not failure.passes:
        return "that does not pass by itself"
    if tried.left <= 0:
        return TIMED_OUT
    if tried.fresh_left is not None and tried.fresh_left <= 0:
        return "the signed release is too old by now"
    return None


class Patience:
    """What one way forward has left of ``realise_timeout_secs``; one for all of its steps.

    Args:
        fresh_until: when the signed release stops being good for another try; None: not limited.
    """

    def __init__(self, context: Context, closure: str, fresh_until: datetime | None) -> None:
        self._context = context
        self._closure = closure
        self._fresh_until = fresh_until
        self._deadline = context.clock.monotonic() + context.config.realise_timeout_secs
        self._backoff = context.retrying.backoff()
        self._unknown = 0
        self._said: tuple[str, str] | None = None

    @property
    def left(self) -> float:
        """Seconds until ``realise_timeout_secs`` are over."""
        return self._deadline - self._context.clock.monotonic()

    def persist(self, attempt: Callable[[], _Result]) -> _Result:
        """The result of ``attempt``, which is called again after each CommandError that can pass.

        Raises:
            CommandError: the last one, with how often it was tried.
            PhaseInterrupted: shutdown, or something more important.
        """
        tries, last = 0, None
        while True:
            tries += 1
            try:
                result = attempt()
            except CommandError as error:
                # A try that the end of the time cut short tells less than the one before it.
                last = error if last is None or self.left > 0 else last
                failure = last.failure or failures.classify(last.text)
                reason = given_up(self._tried(failure)) or self._wait(failure, tries)
                if reason is not None:
                    raise last.after(tries, reason) from error
            else:
                self._over(tries)
                return result

    def _tried(self, failure: Failure) -> Tried:
        if failure.kind == failures.UNKNOWN.kind:
            self._unknown += 1
        fresh = self._fresh_until
        fresh_left = None if fresh is None else (fresh - self._context.clock.now()).total_seconds()
        return Tried(failure, self._unknown, self.left, fresh_left)

    def _wait(self, failure: Failure, tries: int) -> str | None:
        """Until the next try is due; the reason when there is no time for it."""
        seconds = min(self._backoff.next(), max(self.left, 0.0))
        said = (failure.kind, failure.detail.partition("HTTP error")[2][:5])
        write_log = self._context.log.debug if said == self._said else self._context.log.warning
        write_log("not yet: %s; next try in %.1f s", failure, seconds, extra={"closure": self._closure})
        self._said = said
        self._context.retrying.on_wait(Waiting(self._closure, failure.kind, str(failure), tries, seconds))
        self._pause(seconds)
        return TIMED_OUT if self.left <= 0 else None

    def _pause(self, seconds: float) -> None:
        """All of it: what wakes a pause early is either a reason to leave or nothing."""
        end = self._context.clock.monotonic() + seconds
        while (left := end - self._context.clock.monotonic()) > 0:
            self._context.pause(left)

    def _over(self, tries: int) -> None:
        if self._said is not None:
            self._context.log.info("what stood in the way is over (try %d)", tries, extra={"closure": self._closure})
            self._context.retrying.on_wait(None)
            self._said = None
            self._backoff.reset()
