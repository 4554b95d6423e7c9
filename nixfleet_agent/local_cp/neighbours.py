"""What agents on this machine say they wait for: asked at their own door, as an operator's `why` asks there.

The wire has no words for it: a control plane elsewhere knows of a host that waits only that its turn was fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def waiting_reason(status: Mapping[str, Any]) -> str | None:
    """Why an agent of this status does not go on, in its own words; None while nothing holds it up."""
    for section in ("dispatch", "waiting"):
        reason = (status.get(section) or {}).get("reason")
        if isinstance(reason, str):
            return reason
    return None
