"""What an answer to a posted event means: pure, by status code and by whose answer it is."""

from __future__ import annotations

from enum import Enum

#: A conflict that lasts this long on a rollout that is over will not resolve itself, in seconds.
CONFLICT_LIMIT = 24 * 3600.0
#: An event that something before the control plane refuses for this long is set aside once others pass, in seconds.
BLOCKED_LIMIT = 600.0


class Disposition(Enum):
    """What becomes of the event."""

    DELIVERED = "delivered"
    RETRY = "kept, tried again with backoff"
    REFUSED = "refused as it is, set aside with the answer"
    MISMATCH = "kept, nothing is sent for a while: protocol mismatch"
    MISROUTED = "kept, tried again with long backoff: wrong door or identity"
    BLOCKED = "kept, tried again with long backoff: refused, and not by the control plane for all that is known"


def disposition(status: int, *, own_error: bool, conflict_for: float, over: bool) -> Disposition:
    """The disposition of an answer with ``status``.

    ``own_error`` says that it has the form of the control plane's errors: only that is a verdict on the event.
    ``conflict_for`` is how long (seconds) this event has been answered with 409; ``over`` says that its rollout is
    terminal or superseded, so that nothing which comes later can make the control plane change its mind.
    """
    if 200 <= status < 300:
        return Disposition.DELIVERED
    if status == 409:
        return Disposition.REFUSED if over and conflict_for >= CONFLICT_LIMIT else Disposition.RETRY
    if status in (408, 425, 429) or status >= 500:
        return Disposition.RETRY
    if status == 426:
        return Disposition.MISMATCH
    if not own_error:
        return Disposition.BLOCKED
    return Disposition.REFUSED if status in (400, 413, 415, 422) else Disposition.MISROUTED
