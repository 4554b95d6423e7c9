"""Why a demo can't run here, in one line each."""

from __future__ import annotations

from nixfleet_agent.errors import AgentError


class DemoError(AgentError):
    """The demo can't run on this machine, or did not end as it should."""
