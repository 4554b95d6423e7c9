"""What ``step`` raises; each leaves the record as it was."""

from __future__ import annotations


class TransitionError(Exception):
    """An event that the record can't take."""


class IllegalForState(TransitionError):
    """The table has no edge for this event in this state."""


class SeqRegression(TransitionError):
    """The event's ``seq`` is not above the last one taken: a repeat, or a number used twice."""


class InvariantViolation(TransitionError):
    """The edge exists, but taking it would break a promise of the machine."""
