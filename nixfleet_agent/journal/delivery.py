"""What an answer to a posted event means: pure, by status code and by whose answer it is."""

from __future__ import annotations

from enum import Enum

#: A conflict that lasts this long on a rollout that is over will not resolve itself, in seconds.
CONFLICT_LIMIT = 24 * 3600.0
#: A refused event that later ones rest on holds them back this long (seconds) before it is set aside: a control plane
#: that is mended meanwhile must not meet an order of events that can't be.
PREREQUISITE_LIMIT = 600.0
#: Kinds of events that change the state which those after them need.
PREREQUISITES = frozenset({"DispatchAck", "ActivationCompleted", "ActivationDeferred", "ActivationFailed", "Failed"})
#: Statuses that refuse the event itself.
REFUSALS = frozenset({400, 413, 415, 422})
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


def disposition(status: int, *, own_error: bool, refused_for: float, kind: str, over: bool) -> Disposition:
    """The disposition of an answer with ``status``.

    ``own_error`` says that it has the form of the control plane's errors: only that is a verdict on the event.
    ``refused_for`` is how long (seconds) this event of ``kind`` has been answered in the same way: with 409, or with
    one of ``REFUSALS``. ``over`` says that its rollout is terminal or superseded, so that nothing which comes later can
    make the control plane change its mind.
    """
    if 200 <= status < 300:
        return Disposition.DELIVERED
    if status == 409:
        return Disposition.REFUSED if over and refused_for >= CONFLICT_LIMIT else Disposition.RETRY
    if status in (408, 425, 429) or status >= 500:
        return Disposition.RETRY
    if status == 426:
        return Disposition.MISMATCH
    if not own_error:
        return Disposition.BLOCKED
    if status not in REFUSALS:
        return Disposition.MISROUTED
    held = kind in PREREQUISITES and refused_for < PREREQUISITE_LIMIT
    return Disposition.RETRY if held else Disposition.REFUSED
