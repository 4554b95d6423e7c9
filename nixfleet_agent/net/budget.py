"""How long a call may still take and how much it may receive, and the one wait that every blocked call sits in.

A per-read timeout never ends a peer that sends one byte a second, so each call has one monotonic deadline and
every wait for its socket goes through ``CallBudget.wait``. The same wait watches the abort pipe, which is how a
shutdown wakes a long poll without touching another thread's socket.
"""

from __future__ import annotations

import select

from nixfleet_agent.errors import TransportError
from nixfleet_agent.net.failures import AnswerTooLargeError
from nixfleet_agent.threads.cancel import CancelToken
from nixfleet_agent.threads.clock import Clock
from nixfleet_agent.threads.deadline import Deadline


class CallBudget:
    """What the call that one session has in progress may cost; ``start`` begins the next call."""

    def __init__(self, clock: Clock, switch: CancelToken) -> None:
        self._clock = clock
        self._switch = switch
        self._seconds = 0.0
        self._until = 0.0
        self._most = 0
        self._bytes_left = 0

    def start(self, seconds: float, most: int) -> None:
        """Begin a call that may take ``seconds`` and receive ``most`` bytes in all."""
        self._most = self._bytes_left = most
        self._seconds = seconds
        self._until = self._clock.monotonic() + seconds

    @property
    def cancel(self) -> CancelToken:
        """What ends the call from outside."""
        return self._switch

    def deadline(self) -> Deadline:
        """The end of the call, for waits that have no descriptor (raises as ``remaining``)."""
        return Deadline(self._clock, self.remaining())

    def monotonic(self) -> float:
        """The clock that the deadline is on, for a limit within the call."""
        return self._clock.monotonic()

    def remaining(self) -> float:
        """Seconds left, above zero.

        Raises:
            TransportError: ``aborted`` or ``timeout``.
        """
        if self._switch.is_set:
            raise aborted()
        left = self._until - self._clock.monotonic()
        if left <= 0:
            raise self._expired()
        return left

    def received(self, count: int) -> None:
        """``count`` bytes more came, of whatever: interim answers, headers and the sizes of chunks have no end either.

        Raises:
            AnswerTooLargeError: the call has had its share.
        """
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise AnswerTooLargeError(f"more than {self._most} bytes came for one answer, headers counted", "too_large")

    def wait(self, descriptor: int, *, write: bool, at_most: float | None = None) -> bool:
        """Block until ``descriptor`` is ready; False when ``at_most`` seconds passed before the deadline did.

        Raises:
            TransportError: ``aborted`` or ``timeout``.
        """
        left = self.remaining()
        limited = at_most is not None and at_most < left
        poller = select.poll()
        poller.register(descriptor, select.POLLOUT if write else select.POLLIN)
        poller.register(self._switch.fileno(), select.POLLIN)
        # Rounded up: a poll that ends a fraction of a millisecond early would spin until the deadline.
        ready = poller.poll(int((at_most if limited and at_most is not None else left) * 1000) + 1)
        if self._switch.is_set:
            raise aborted()
        if ready:
            return True
        if limited:
            return False
        raise self._expired()

    def _expired(self) -> TransportError:
        return TransportError(f"no complete answer within {self._seconds:g} s", "timeout")


def aborted() -> TransportError:
    """What every call ends with once the token is set."""
    return TransportError("given up because the agent is stopping", "aborted")
