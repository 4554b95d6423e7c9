"""Asks this host's own programs for their consent before a live switch, and waits for as long as one refuses it."""

from __future__ import annotations

from nixfleet_agent.activation.context import Context, Waiting
from nixfleet_agent.activation.model import Forward

#: The kind of the wait, in status.
VETO = "veto"


def await_consent(context: Context, intent: Forward) -> None:
    """Return once nobody refuses; like a hold it has no end of its own, and a newer release or a rollback ends it.

    Raises:
        PhaseInterrupted: shutdown, or something more important.
    """
    tries, said, seconds = 0, "", context.retrying.recheck_secs
    while (reason := context.consent(intent, context.check)) is not None:
        tries += 1
        if reason != said:
            context.log.warning("the switch waits: %s", reason, extra={"closure": intent.target})
            said = reason
        context.retrying.on_wait(Waiting(intent.target, VETO, reason, tries, seconds))
        end = context.clock.monotonic() + seconds
        while (left := end - context.clock.monotonic()) > 0:
            context.pause(left)
    if tries:
        context.log.info("the switch waits no more (asked %d times)", tries, extra={"closure": intent.target})
        context.retrying.on_wait(None)
