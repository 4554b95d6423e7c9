"""Whether each event of a rollout, as somebody else holds it, follows the one before it there. Pure.

A verdict is GOOD; GAP (signed so, but what it follows is not there); MISSING (of an older agent); STRIPPED (missing,
where an event before it has its link); or BAD.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nixfleet_agent.errors import TrustError
from nixfleet_agent.journal import chain

GOOD, GAP, MISSING, STRIPPED, BAD = "good", "gap", "missing", "stripped", "bad"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a chain stands: the hash that its next event must name, and whether an event before it named one."""

    previous: str
    chained: bool = False


def start(hostname: str, rollout_id: str) -> Standing:
    """Before the first event of a rollout."""
    return Standing(chain.beginning(hostname, rollout_id))


def follow(
    standing: Standing, envelope: Mapping[str, Any], verified: Callable[[object, object], bool]
) -> tuple[str, Standing]:
    """The verdict on the next event of a rollout, and where the chain stands after it.

    Args:
        envelope: as it came over the wire, with strings for ``hostname`` and ``rolloutId`` and an object for ``event``.
        verified: whether a signature (second) is the host's over a statement (first).
    """
    hostname, rollout_id, event = envelope["hostname"], envelope["rolloutId"], envelope["event"]
    previous, chained = envelope.get("previous"), True
    if "chainSignature" not in envelope and previous is None:
        verdict, chained = (STRIPPED if standing.chained else MISSING), standing.chained
        previous = standing.previous
    elif not isinstance(previous, str):
        verdict, previous, chained = BAD, standing.previous, standing.chained
    elif not verified(chain.statement(hostname, rollout_id, event, previous), envelope.get("chainSignature")):
        verdict = BAD
    else:
        verdict = GOOD if previous == standing.previous else GAP
    try:
        return verdict, Standing(chain.link(hostname, rollout_id, event, previous), chained)
    except TrustError:
        return BAD, Standing(standing.previous, chained)
