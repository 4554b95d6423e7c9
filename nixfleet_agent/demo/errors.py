"""Why a demo can't run here, in one line each."""

from __future__ import annotations

from nixfleet_agent.errors import EXIT_CONFIG, AgentError


class DemoError(AgentError):
    """The demo can't run on this machine, or did not end as it should."""


class ScenarioError(DemoError):
    """A scenario file can't be used; the message names the file and the key."""

    exit_code = EXIT_CONFIG
